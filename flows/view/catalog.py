"""The slides below a folder, as cards and one by one: what the pages tell, in plain words and numbers.

The one decision made here: slides are found by looking, never by asking for a path. Each has a name made from its key,
and a name that was not made here finds nothing. While a run goes on the folder is looked at again and again, but never
for more than a small part of the time.
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
from pipeline.storage.layout import IMAGE, OBJECTS, OVERVIEW, TABLE
from pipeline.storage.slide_store import SlideStore

THUMBNAIL_PX = 512
MOST_LEVELS = 16
"""A slide of 2 ** 24 px a side has as many."""
SLIDES_OPEN = 2
"""Slides whose chunks and tables are kept."""
LEAST_S, SHARE = 1.0, 0.1
"""Between two looks at a folder at least this long, and so that looking takes at most this share of the time."""


def name_of(key: str) -> str:
    """The name under which a slide is found."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:16]


@dataclass(slots=True)
class Catalog:
    """What lies below ``root``: a results folder, or one slide's folder, which is then ``alone``."""

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
        """Raises ConfigError where there are no results."""
        root = path.resolve()
        alone = (root / "manifest.json").exists() or (root / ".work").is_dir()
        library = cls(root, alone)
        if not library.cards():
            raise ConfigError(f"{path} holds no results: expected a folder that 'overtile segment' wrote")
        return library

    def cards(self) -> list[dict[str, Any]]:
        """One for each slide that is there or was asked for, in order of key."""
        with self._lock:
            if time.monotonic() >= self._due:
                began = time.monotonic()
                self._stores = {name_of(key): (key, store) for store, key in self._found()}
                self._cards = [self._card(standing) for standing in Status.of(self.root).slides]
                ended = time.monotonic()
                self._due = ended + max(LEAST_S, (ended - began) / SHARE)
            return self._cards

    def find(self, name: str) -> SlideStore | None:
        """The folder of a slide; None where no slide was given that name. Looks anew only for one that is not known."""
        if name not in self._stores:
            self.cards()
        found = self._stores.get(name)
        return found[1] if found else None

    def slide(self, name: str) -> Slide | None:
        """A slide to be looked at; None where there is none of that name, or nothing is planned yet."""
        store = self.find(name)
        if store is None:
            return None
        changed = [_changed(path) for path in (store.manifest, store.work / "plan.json")]
        found: Slide | None = self._open(store, tuple(changed))
        return found

    def _found(self) -> list[tuple[SlideStore, str]]:
        """Every slide's folder that lies whole below the root: one that a link leads out of is none."""
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

    def _card(self, standing: SlideStatus) -> dict[str, Any]:
        name = name_of(standing.key)
        _, store = self._stores.get(name, ("", None))
        record = None if store is None else self._record(store, standing.key, _changed(store.manifest))
        known = record.figures if record is not None else {}
        told = {word: printable(str(getattr(standing, word))) for word in ("state", "stage", "cause", "cure")}
        is_there = store is not None and bool(known or (store.work / "plan.json").exists())
        is_there &= record is None or record.state != "damaged"
        return {
            "name": name if is_there else None,
            "key": printable(self.root.name if self.alone else standing.key),
            **told,
            "blocks_done": standing.blocks_done,
            "blocks": standing.blocks,
            "picture": store is not None and bool(known) and _has_image(store),
            "finished": record.content.get("finished") if record is not None else None,
            **{word: known.get(word) for word in ("objects", "objects_per_mm2", "tissue_mm2", "seconds")},
            "flags": [printable(flag.replace("_", " ")) for flag in known.get("flags", ())],
        }


def _has_image(store: SlideStore) -> bool:
    """Whether any level is there: the image may have been given up."""
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


# ---- pictures --------------------------------------------------------------------------------------------------------


def small_picture(slide: Slide) -> bytes | None:
    """A JPEG of the coarsest level with the objects tinted; None where there is none yet."""
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


# ---- words -----------------------------------------------------------------------------------------------------------


def slide_details(slide: Slide) -> list[tuple[str, list[tuple[str, str]]]]:
    """What was run, with what and how long it took: groups of names and values."""
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
        ("computed in", f"{compute['precision']} on {compute['device']}, tiles of {compute['tile_px']} px"),
        ("blocks", f"{facts.block_px} px"),
    ]
    groups = [("Image", image), ("Run", run)]
    if slide.manifest is not None:
        run += [("given up", ", ".join(gone))] if (gone := pruned_parts(slide.manifest)) else []
        groups.append(("Time", _times(slide.manifest)))
        groups.append(("Versions", [(name, str(version)) for name, version in slide.manifest["software"].items()]))
    groups.append(("Settings", [(name, str(value)) for name, value in run_settings(plan["config"])]))
    return [(title, [(printable(name), printable(value)) for name, value in pairs]) for title, pairs in groups]


def _times(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    stages = {name: manifest["stages"][name] for name in STAGES if name in manifest["stages"]}
    seconds = {name: sum(run["seconds"] for run in stage["runs"]) for name, stage in stages.items()}
    return [
        *((name, f"{taken:.1f} s") for name, taken in seconds.items()),
        ("all", f"{sum(seconds.values()):.1f} s"),
        ("finished", manifest["finished"]),
    ]
