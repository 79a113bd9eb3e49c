"""Disk quota (``outputs.max_gb``): decides which slides may start.

A slide counts with its worst-case size until it is complete, and with its size on disk afterwards. So the quota holds
while slides run, and arrays that a slide drops at its end make room for the next.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from flows.batch.result_records import slide_stores
from pipeline.errors import DamagedError
from pipeline.runs.plan import SlidePlan
from pipeline.runs.slide_run import slide_root
from pipeline.storage.manifest import read_manifest
from pipeline.storage.slide_store import SlideStore

GB = 10**9
COARSER = 4 / 3
"""Size of an array with its pyramid, relative to the array."""
PROBABILITY, LABELS = 0.6, 0.3
"""Stored bytes per byte of probability (usually 0.3) or of a map, and per pixel of labels with tables and polygons."""
AROUND = 2_000_000
"""Bytes of the small files of a slide."""


@dataclass(slots=True)
class DiskQuota:
    """Bytes in ``out`` and their limit. ``full`` is set from when a slide had to wait until another one ends."""

    out: Path
    limit_gb: float | None
    held: dict[Path, int] = field(default_factory=dict)
    full: bool = False

    @classmethod
    def of(cls, out: Path, limit_gb: float | None) -> DiskQuota:
        """The quota with the present content of ``out``; without a limit nothing is counted."""
        held = {} if limit_gb is None else {store.root: _stored(store) for store in slide_stores(out)}
        return cls(out, limit_gb, held)

    def admits(self, plan: SlidePlan, running: Iterable[SlidePlan]) -> bool:
        """Whether a slide may start while others run."""
        if self.limit_gb is None:
            return True
        if self.full:
            return False
        return self._with([*running, plan]) <= self.limit_gb * GB

    def ended(self, plan: SlidePlan) -> None:
        """Count the result of a slide that has ended, and let waiting slides try again."""
        self.full = False
        if self.limit_gb is not None:
            root = slide_root(self.out, plan.key)
            self.held[root] = _stored(SlideStore(root))

    def cause(self, plan: SlidePlan) -> str:
        """Why a slide was not started, and the remedy."""
        held = sum(self.held.values()) / GB
        return (
            f"not started: {self.out} holds {held:.2f} GB, this slide may need {at_most_bytes(plan) / GB:.2f} GB more, "
            f"outputs.max_gb is {self.limit_gb:g}. Raise it, move results away, or set outputs.image=drop, then run "
            "the same command again"
        )

    def _with(self, open_slides: Iterable[SlidePlan]) -> int:
        needs = {slide_root(self.out, plan.key): at_most_bytes(plan) for plan in open_slides}
        others = sum(size for root, size in self.held.items() if root not in needs)
        return others + sum(max(need, _bytes_below(root)) for root, need in needs.items())


def at_most_bytes(plan: SlidePlan) -> int:
    """The worst-case size of a slide until it is complete: an image that does not compress, and its other outputs."""
    height, width = plan.shape_yx
    image = plan.channels * np.dtype(plan.dtype).itemsize
    planes = plan.model.spec.foreground + len(plan.model.spec.maps)
    a_pixel = (image + planes * PROBABILITY) * COARSER + LABELS
    return round(height * width * a_pixel) + AROUND


def _stored(store: SlideStore) -> int:
    """Bytes of a result, by its manifest or else by its files."""
    try:
        manifest = read_manifest(store)
    except DamagedError:
        manifest = None
    if manifest is None:
        return _bytes_below(store.root)
    beside = store.manifest.stat().st_size + _bytes_below(store.work)
    return beside + sum(int(entry["size"]) for entry in manifest["files"].values())


def _bytes_below(root: Path) -> int:
    sizes = 0
    for path in root.rglob("*"):
        try:
            sizes += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # renamed or removed since it was listed
            continue
    return sizes
