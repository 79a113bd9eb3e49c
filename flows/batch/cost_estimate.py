"""What a batch will cost, from how much of each slide there is and what a sample of it was seen to cost. No I/O.

The one decision made here: everything scales with pixels, of tissue and of glass apart, except what scales with the
network's calls or comes once a slide. So a price is a handful of products, and the sample is the only thing that can
be wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.stage_table import OVERLAY as PICTURE
from pipeline.stage_table import PREDICT as NETWORK

EFFICIENCY = 0.93
"""Of several workers beside each other, for they share caches and memory."""
START_S, SLIDE_S = 10.0, 0.5
"""A batch's and a slide's share of Prefect and dask: starting servers and workers, handing stages over."""
SLIDE_BYTES = 60_000
"""A slide's manifest and other small files."""
OUTSIDE_BYTES = 1_000_000_000
"""What the command itself and Prefect's server take beside the workers."""

LEVEL_0 = {"image": "image", "probability": "probability"}
"""Outputs that can be dropped, and the key of the configuration that says so."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How much of a slide there is to do: pixels of cells with and without tissue, calls of the network.

    ``left`` is the share of a stage's blocks that are not done yet, where it is not all of them.
    """

    tissue_px: int
    glass_px: int
    calls: int
    left: Mapping[str, float] = field(default_factory=dict)

    @property
    def tissue_share(self) -> float:
        """Of the whole image."""
        return self.tissue_px / max(1, self.tissue_px + self.glass_px)


@dataclass(frozen=True, slots=True)
class Seen:
    """What one window of a slide took: seconds by stage, bytes by output."""

    pixels: int
    calls: int
    seconds: Mapping[str, float]
    sizes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Rates:
    """What a pixel costs by stage and by output, in tissue and on glass; what a call and a picture cost."""

    tissue_s: Mapping[str, float]
    glass_s: Mapping[str, float]
    tissue_bytes: Mapping[str, float]
    glass_bytes: Mapping[str, float]
    call_s: float
    picture_s: float
    picture_bytes: float

    @classmethod
    def of(cls, tissue: Sequence[Seen], glass: Sequence[Seen]) -> Rates:
        """From windows on tissue and on glass; where there are none of one kind, the other stands for it."""
        everything = [*tissue, *glass]
        tissue, glass = tissue or glass, glass or tissue
        calls = sum(seen.calls for seen in everything)
        called = sum(seen.seconds.get(NETWORK, 0.0) for seen in everything if seen.calls)
        return cls(
            tissue_s=_per_pixel([seen.seconds for seen in tissue], tissue),
            glass_s=_per_pixel([seen.seconds for seen in glass], glass),
            tissue_bytes=_per_pixel([seen.sizes for seen in tissue], tissue),
            glass_bytes=_per_pixel([seen.sizes for seen in glass], glass),
            call_s=called / calls if calls else 0.0,
            picture_s=max(seen.seconds.get(PICTURE, 0.0) for seen in everything),
            picture_bytes=max(seen.sizes.get(PICTURE, 0) for seen in everything),
        )


def _per_pixel(amounts: Sequence[Mapping[str, float]], windows: Sequence[Seen]) -> dict[str, float]:
    names = {name for amount in amounts for name in amount} - {NETWORK, PICTURE}
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
        """Bytes that a complete slide keeps."""
        return sum(self.sizes.values()) - self.dropped


def price(extent: Extent, rates: Rates, dropped: Iterable[str] = ()) -> CostEstimate:
    """What a slide of this extent takes at these rates; ``dropped`` names the outputs that do not stay."""
    seconds = extent.calls * rates.call_s * extent.left.get(NETWORK, 1.0)
    for pixels, costs in ((extent.tissue_px, rates.tissue_s), (extent.glass_px, rates.glass_s)):
        seconds += sum(pixels * cost * extent.left.get(stage, 1.0) for stage, cost in costs.items())
    seconds += rates.picture_s * extent.left.get(PICTURE, 1.0)
    names = sorted({*rates.tissue_bytes, *rates.glass_bytes})
    sizes = {
        name: extent.tissue_px * rates.tissue_bytes.get(name, 0.0) + extent.glass_px * rates.glass_bytes.get(name, 0.0)
        for name in names
    }
    sizes["pictures and records"] = rates.picture_bytes + SLIDE_BYTES
    return CostEstimate(seconds, sizes, sum(sizes.get(name, 0.0) for name in dropped))


@dataclass(frozen=True, slots=True)
class Total:
    """A batch: wall seconds, bytes that stay by output, bytes at the worst moment."""

    seconds: float
    sizes: Mapping[str, float]
    stays: float
    at_most: float


def total(prices: Sequence[CostEstimate], workers: int, open_at_once: int = 2) -> Total:
    """The batch's price on so many workers; what is dropped still lies there while its slide is open."""
    share = workers * (EFFICIENCY if workers > 1 else 1.0)
    seconds = START_S + sum(one.seconds / share + SLIDE_S for one in prices) if prices else 0.0
    names = sorted({name for one in prices for name in one.sizes})
    sizes = {name: sum(one.sizes.get(name, 0.0) for one in prices) for name in names}
    stays = sum(one.stays for one in prices)
    waiting = sorted((one.dropped for one in prices), reverse=True)
    return Total(seconds, sizes, stays, stays + sum(waiting[:open_at_once]))
