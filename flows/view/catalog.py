"""The slides below a results folder: overview cards, and the details shown on a slide's page.

Slides are found by scanning the folder, never by a path from a request. Each has a name derived from its key; any other
name finds nothing. During a run the folder is scanned repeatedly, but scanning takes at most a fixed share of the time.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from PIL import Image

from flows.batch.result_records import Record, read_record, run_settings, slide_stores
from flows.batch.status import SlideStatus, Status
from flows.reports.thumbnail import jpeg, thumbnail
from flows.view.access_control import require_inside
from flows.view.slide_tiles import Slide
from pipeline.errors import ConfigError, DamagedError, StoreError
from pipeline.printable import printable
from pipeline.runs.prune import pruned_parts
from pipeline.stage_table import STAGES
from pipeline.storage.layout import IMAGE, MANIFEST, OBJECTS, OVERVIEW, TABLE
from pipeline.storage.slide_store import SlideStore

THUMBNAIL_PX = 512
MOST_LEVELS = 16
"""Upper limit of pyramid levels, enough for a side of 2 ** 24 px."""
SLIDES_OPEN = 2
"""Number of slides whose chunks and tables are cached."""
MIN_INTERVAL_S, SCAN_SHARE = 1.0, 0.1
"""Minimum time between two scans of a folder, and the maximum share of the time spent on scans."""


def name_of(key: str) -> str:
    """Return the name used in URLs for a slide key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:16]


@dataclass(slots=True)
class Catalog:
    """The slides below ``root``: a results folder, or the folder of a single slide if ``alone``."""

    root: Path
    alone: bool
    _lock: Lock = field(default_factory=Lock)
    _stores: dict[str, tuple[str, SlideStore]] = field(default_factory=dict)
    _cards: list[dict[str, Any]] = field(default_factory=list)
    _due: float = 0.0
    _open: Any = field(init=False)
    _record: Any = field(init=False)

    def __post_init__(self) -> None:
        self._open = lru_cache(SLIDES_OPEN)(_opened)
        self._record = lru_cache(10_000)(_recorded)

    @classmethod
    def at(cls, path: Path) -> Catalog:
        """Open the catalog of a folder.

        Raises:
            ConfigError: If the folder holds no results.
        """
        root = path.resolve()
        alone = (root / MANIFEST).exists() or (root / ".work").is_dir()
        catalog = cls(root, alone)
        if not catalog.cards():
            raise ConfigError(f"{path} holds no results: expected a folder that 'overtile segment' wrote")
        return catalog

    def cards(self) -> list[dict[str, Any]]:
        """Return one card for each slide that exists or was requested, ordered by key."""
        with self._lock:
            if time.monotonic() >= self._due:
                began = time.monotonic()
                self._stores = {name_of(key): (key, store) for store, key in self._scan()}
                self._cards = [self._card(status) for status in Status.of(self.root).slides]
                ended = time.monotonic()
                self._due = ended + max(MIN_INTERVAL_S, (ended - began) / SCAN_SHARE)
            return self._cards

    def find(self, name: str) -> SlideStore | None:
        """Return the store of a slide, or None if the name is unknown. Only an unknown name triggers a new scan."""
        if name not in self._stores:
            self.cards()
        found = self._stores.get(name)
        return found[1] if found else None

    def slide(self, name: str) -> Slide | None:
        """Open a slide for viewing; None if the name is unknown or nothing has been planned yet."""
        store = self.find(name)
        if store is None:
            return None
        changed = [_changed(path) for path in (store.manifest, store.work / "plan.json")]
        found: Slide | None = self._open(store, tuple(changed))
        return found

    def _scan(self) -> list[tuple[SlideStore, str]]:
        """Return every slide folder that lies completely below the root; folders with links leading out are skipped."""
        found = []
        for store in slide_stores(self.root):
            parts = (store.root, store.zarr, store.work, store.manifest, *(store.root / name for name in _FILES))
            try:
                for part in parts:
                    require_inside(self.root, part)
            except StoreError:
                continue
            found.append((store, store.root.relative_to(self.root).as_posix()))
        return found

    def _card(self, status: SlideStatus) -> dict[str, Any]:
        name = name_of(status.key)
        _, store = self._stores.get(name, ("", None))
        record = None if store is None else self._record(store, status.key, _changed(store.manifest))
        figures = record.figures if record is not None else {}
        messages = {name: printable(str(getattr(status, name))) for name in ("state", "stage", "cause", "cure")}
        is_viewable = store is not None and bool(figures or (store.work / "plan.json").exists())
        is_viewable &= record is None or record.state != "damaged"
        return {
            "name": name if is_viewable else None,
            "key": printable(self.root.name if self.alone else status.key),
            **messages,
            "blocks_done": status.blocks_done,
            "blocks": status.blocks,
            "picture": store is not None and bool(figures) and _has_image(store),
            "finished": record.content.get("finished") if record is not None else None,
            **{column: figures.get(column) for column in ("objects", "objects_per_mm2", "tissue_mm2", "seconds")},
            "flags": [printable(flag.replace("_", " ")) for flag in figures.get("flags", ())],
        }


def _has_image(store: SlideStore) -> bool:
    """Whether any pyramid level of the image exists; the image may have been pruned."""
    return any((store.zarr / str(level) / "zarr.json").exists() for level in range(MOST_LEVELS))


_FILES = (TABLE, OVERVIEW)


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _opened(store: SlideStore, _changed: tuple[int, ...]) -> Slide | None:
    return Slide.open(store)


def _recorded(store: SlideStore, key: str, _changed: int) -> Record:
    return read_record(store, key)


# ---- thumbnail -------------------------------------------------------------------------------------------------------


def small_picture(slide: Slide) -> bytes | None:
    """Return a JPEG of the coarsest level with the objects tinted; None if that level does not exist or is damaged."""
    coarsest = slide.facts.levels - 1
    image, objects = (f"{path[:-1]}{coarsest}" for path in (IMAGE, OBJECTS))
    if not slide.has(image):
        return None
    tinted = objects if slide.has(objects) else None
    try:
        rgb = thumbnail(slide.store, slide.facts.channels, image, tinted, (THUMBNAIL_PX, THUMBNAIL_PX))
    except DamagedError:
        return None
    return jpeg(Image.fromarray(rgb), quality=85)


# ---- details ---------------------------------------------------------------------------------------------------------


def slide_details(slide: Slide) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return titled groups of (name, value) pairs: image, run, times, versions and settings."""
    facts, plan = slide.facts, slide.plan
    height, width = facts.shape_yx
    image = [
        ("size", f"{width:,} \u00d7 {height:,} px"),
        ("extent", f"{width * facts.mpp / 1000:.3g} \u00d7 {height * facts.mpp / 1000:.3g} mm"),
        ("resolution", f"{facts.mpp:.4g} \u00b5m per pixel"),
        ("channels", ", ".join(facts.channels)),
    ]
    compute, model = plan["compute"], plan["model"]
    run = [
        ("model", model["name"]),
        ("weights", model["sha256"][:12]),
        ("threshold", f"{facts.threshold:g}"),
        ("computed with", f"{compute['precision']} on {compute['device']}, tiles of {compute['tile_px']} px"),
        ("blocks", f"{facts.block_px} px"),
    ]
    groups = [("Image", image), ("Run", run)]
    if slide.manifest is not None:
        run += [("pruned", ", ".join(pruned))] if (pruned := pruned_parts(slide.manifest)) else []
        groups.append(("Time", _times(slide.manifest)))
        groups.append(("Versions", [(name, str(version)) for name, version in slide.manifest["software"].items()]))
    groups.append(("Settings", [(name, str(value)) for name, value in run_settings(plan["config"])]))
    return [(title, [(printable(name), printable(value)) for name, value in pairs]) for title, pairs in groups]


def _times(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    stages = {name: manifest["stages"][name] for name in STAGES if name in manifest["stages"]}
    seconds = {name: sum(run["seconds"] for run in stage["runs"]) for name, stage in stages.items()}
    return [
        *((name, f"{duration:.1f} s") for name, duration in seconds.items()),
        ("total", f"{sum(seconds.values()):.1f} s"),
        ("finished", manifest["finished"]),
    ]
