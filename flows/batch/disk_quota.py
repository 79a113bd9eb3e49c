"""Room in OUT: which slides may still be begun under ``outputs.max_gb``.

The one decision made here: a slide is reckoned at what it may need at worst until it is complete, and at what lies on
disk from then on. So the limit is kept while slides run, and what one drops at its end makes room for the next.
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
"""An array with its pyramid, over the array."""
PROBABILITY, LABELS = 0.6, 0.3
"""Stored bytes a byte of probability (2 is usual: 0.3) and a pixel of labels, with tables and polygons."""
AROUND = 2_000_000
"""Bytes of a slide's small files."""


@dataclass(slots=True)
class DiskQuota:
    """What ``out`` holds and may hold. ``full`` is set when a slide had to wait, until another one has ended."""

    out: Path
    limit_gb: float | None
    held: dict[Path, int] = field(default_factory=dict)
    full: bool = False

    @classmethod
    def of(cls, out: Path, limit_gb: float | None) -> DiskQuota:
        """With what lies there now; without a limit nothing is counted."""
        held = {} if limit_gb is None else {store.root: _stored(store) for store in slide_stores(out)}
        return cls(out, limit_gb, held)

    def admits(self, plan: SlidePlan, running: Iterable[SlidePlan]) -> bool:
        """Whether a slide may be begun while these run."""
        if self.limit_gb is None:
            return True
        if self.full:
            return False
        return self._with([*running, plan]) <= self.limit_gb * GB

    def ended(self, plan: SlidePlan) -> None:
        """A slide has come to its end: count what it left, and let others try again."""
        self.full = False
        if self.limit_gb is not None:
            root = slide_root(self.out, plan.key)
            self.held[root] = _stored(SlideStore(root))

    def cause(self, plan: SlidePlan) -> str:
        """Why a slide was not begun, and what to do."""
        held = sum(self.held.values()) / GB
        return (
            f"not begun: {self.out} holds {held:.2f} GB, this slide may need {at_most_bytes(plan) / GB:.2f} GB more, "
            f"outputs.max_gb is {self.limit_gb:g}. Raise it, move results away, or let outputs.image=drop, then run "
            "the same command again"
        )

    def _with(self, open_slides: Iterable[SlidePlan]) -> int:
        needs = {slide_root(self.out, plan.key): at_most_bytes(plan) for plan in open_slides}
        others = sum(size for root, size in self.held.items() if root not in needs)
        return others + sum(max(need, _bytes_below(root)) for root, need in needs.items())


def at_most_bytes(plan: SlidePlan) -> int:
    """What a slide may take until it is complete: an image that does not compress, and what comes with it."""
    height, width = plan.shape_yx
    image = plan.channels * np.dtype(plan.dtype).itemsize
    a_pixel = (image + plan.model.spec.foreground * PROBABILITY) * COARSER + LABELS
    return round(height * width * a_pixel) + AROUND


def _stored(store: SlideStore) -> int:
    """Bytes of a result: as its manifest says, else as they lie there."""
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
