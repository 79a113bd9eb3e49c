"""Estimate the cost of a batch from the extent of its slides and the measured cost of samples. No I/O.

Costs scale with pixels, separately for tissue and glass, except those that scale with network calls or occur once per
slide.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.stage_table import OVERLAY, PREDICT

EFFICIENCY = 0.93
"""Efficiency of several workers, which share caches and memory bandwidth."""
START_S, SLIDE_S = 10.0, 0.5
"""Seconds per batch and per slide for Prefect and dask: starting servers and workers, submitting stages."""
SLIDE_BYTES = 60_000
"""Bytes of a slide's manifest and other small files."""
OUTSIDE_BYTES = 1_000_000_000
"""Memory of the command and of Prefect's server, beside the workers."""

LEVEL_0 = {"image": "image", "probability": "probability", "maps": "probability"}
"""Outputs that can be dropped, and their keys in section ``outputs``."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Work on a slide: pixels of cells with and without tissue, and network calls.

    ``left`` is the remaining share of a stage's blocks, where it is below 1.
    """

    tissue_px: int
    glass_px: int
    calls: int
    left: Mapping[str, float] = field(default_factory=dict)

    @property
    def tissue_share(self) -> float:
        """Share of tissue in the image."""
        return self.tissue_px / max(1, self.tissue_px + self.glass_px)


@dataclass(frozen=True, slots=True)
class WindowCost:
    """Measured cost of one window: seconds by stage, bytes by output."""

    pixels: int
    calls: int
    seconds: Mapping[str, float]
    sizes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Rates:
    """Cost per pixel by stage and output, for tissue and glass, and cost per network call and per overview."""

    tissue_s: Mapping[str, float]
    glass_s: Mapping[str, float]
    tissue_bytes: Mapping[str, float]
    glass_bytes: Mapping[str, float]
    call_s: float
    picture_s: float
    picture_bytes: float

    @classmethod
    def of(cls, tissue: Sequence[WindowCost], glass: Sequence[WindowCost]) -> Rates:
        """Rates of windows on tissue and on glass; where one kind is missing, the other is used for it."""
        everything = [*tissue, *glass]
        tissue, glass = tissue or glass, glass or tissue
        calls = sum(seen.calls for seen in everything)
        called = sum(seen.seconds.get(PREDICT, 0.0) for seen in everything if seen.calls)
        return cls(
            tissue_s=_per_pixel([seen.seconds for seen in tissue], tissue),
            glass_s=_per_pixel([seen.seconds for seen in glass], glass),
            tissue_bytes=_per_pixel([seen.sizes for seen in tissue], tissue),
            glass_bytes=_per_pixel([seen.sizes for seen in glass], glass),
            call_s=called / calls if calls else 0.0,
            picture_s=max(seen.seconds.get(OVERLAY, 0.0) for seen in everything),
            picture_bytes=max(seen.sizes.get(OVERLAY, 0) for seen in everything),
        )


def _per_pixel(amounts: Sequence[Mapping[str, float]], windows: Sequence[WindowCost]) -> dict[str, float]:
    names = {name for amount in amounts for name in amount} - {PREDICT, OVERLAY}
    pixels = sum(seen.pixels for seen in windows)
    return {name: sum(amount.get(name, 0.0) for amount in amounts) / pixels for name in sorted(names)}


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """Seconds of one worker, and bytes by output before anything is dropped."""

    seconds: float
    sizes: Mapping[str, float]
    dropped: float

    @property
    def stays(self) -> float:
        """Bytes of the complete slide."""
        return sum(self.sizes.values()) - self.dropped


def price(extent: Extent, rates: Rates, dropped: Iterable[str] = ()) -> CostEstimate:
    """The cost of a slide of this extent; ``dropped`` names the outputs that it drops once complete."""
    seconds = extent.calls * rates.call_s * extent.left.get(PREDICT, 1.0)
    for pixels, costs in ((extent.tissue_px, rates.tissue_s), (extent.glass_px, rates.glass_s)):
        seconds += sum(pixels * cost * extent.left.get(stage, 1.0) for stage, cost in costs.items())
    seconds += rates.picture_s * extent.left.get(OVERLAY, 1.0)
    names = sorted({*rates.tissue_bytes, *rates.glass_bytes})
    sizes = {
        name: extent.tissue_px * rates.tissue_bytes.get(name, 0.0) + extent.glass_px * rates.glass_bytes.get(name, 0.0)
        for name in names
    }
    sizes["pictures and records"] = rates.picture_bytes + SLIDE_BYTES
    return CostEstimate(seconds, sizes, sum(sizes.get(name, 0.0) for name in dropped))


@dataclass(frozen=True, slots=True)
class Total:
    """The cost of a batch: wall time in seconds, bytes by output, bytes when complete and at most during the run."""

    seconds: float
    sizes: Mapping[str, float]
    stays: float
    at_most: float


def total(prices: Sequence[CostEstimate], workers: int, open_at_once: int = 2) -> Total:
    """The cost of a batch on so many workers. Dropped outputs count while their slide is open."""
    share = workers * (EFFICIENCY if workers > 1 else 1.0)
    seconds = START_S + sum(cost.seconds / share + SLIDE_S for cost in prices) if prices else 0.0
    names = sorted({name for cost in prices for name in cost.sizes})
    sizes = {name: sum(cost.sizes.get(name, 0.0) for cost in prices) for name in names}
    stays = sum(cost.stays for cost in prices)
    waiting = sorted((cost.dropped for cost in prices), reverse=True)
    return Total(seconds, sizes, stays, stays + sum(waiting[:open_at_once]))
