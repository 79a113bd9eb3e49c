"""Read the results of slide folders below OUT.

A folder without a manifest is incomplete, even if it contains arrays.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from flows.batch.result_rows import Row, flags, manifest_rows, tissue_areas_mm2
from pipeline.errors import ConfigError, DamagedError
from pipeline.slides.bad_tiles import BadTile
from pipeline.storage.atomic_files import read_json
from pipeline.storage.layout import MANIFEST
from pipeline.storage.manifest import read_manifest
from pipeline.storage.slide_store import SlideStore


@dataclass(frozen=True, slots=True)
class Record:
    """The result of one slide folder. Fields after ``content`` are empty unless it is complete."""

    key: str
    state: Literal["complete", "incomplete", "damaged"]
    content: Mapping[str, Any]
    figures: Mapping[str, Any] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    case: Mapping[str, str] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)
    stages: Mapping[str, Any] = field(default_factory=dict)

    @property
    def hashes(self) -> Mapping[str, str]:
        """Plan hashes by stage; empty unless complete."""
        found: Mapping[str, str] = self.plan.get("hashes", {})
        return found


def read_record(store: SlideStore, key: str) -> Record:
    """Read a slide folder: counts and figures, or the cause of its failure."""
    try:
        manifest = read_manifest(store)
        if manifest is None:
            failure = store.work / "failure.json"
            cause = read_json(failure) if failure.exists() else {}
            return Record(key, "incomplete", {"folder": store.root.name, "state": "incomplete", **cause})
        rows = tuple(manifest_rows(manifest))
    except DamagedError as error:
        return Record(key, "damaged", {"folder": store.root.name, "state": "damaged", "cause": str(error)})
    found, plan = figures(manifest), manifest["plan"]
    content = {"folder": store.root.name, "state": "complete", "finished": manifest["finished"], **found}
    return Record(key, "complete", content, found, rows, plan.get("case") or {}, plan, manifest["stages"])


def slide_record(store: SlideStore) -> dict[str, Any]:
    """The result of one slide folder as plain data."""
    return dict(read_record(store, store.root.name).content)


def slide_stores(out: Path) -> Iterator[SlideStore]:
    """Every slide folder below ``out``, complete or not, in order of key."""
    for current, folders, _ in os.walk(out):
        here = Path(current)
        if here.suffix == ".zarr" or here.name == ".work":
            folders.clear()
            continue
        folders.sort()
        if ".work" in folders or (here / MANIFEST).exists():
            yield SlideStore(here)


def slides_of(out: Path) -> dict[str, SlideStore]:
    """Slide folders below ``out`` by key.

    Raises:
        ConfigError: There is none, or ``out`` is itself a slide folder.
    """
    stores = {store.root.relative_to(out).as_posix(): store for store in slide_stores(out)}
    if not stores:
        raise ConfigError(f"{out} holds no results: expected the folder that segment writes to")
    if "." in stores:
        raise ConfigError(f"{out} is one slide's folder: expected the folder that segment writes to")
    return stores


def figures(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The main figures of a slide: tissue, objects, objects per mm2, flags and warnings.

    Where regions are drawn, tissue and objects are those in the regions.
    """
    plan, stages = manifest["plan"], manifest["stages"]
    tissue_mm2 = sum(tissue_areas_mm2(manifest).values())
    objects = stages.get("label", {}).get("facts", {}).get("objects", 0)
    return {
        "key": plan["key"],
        "model": plan["model"]["name"],
        "mpp": plan["image"]["mpp"],
        "tissue_mm2": round(tissue_mm2, 4),
        "objects": objects,
        "objects_per_mm2": round(objects / tissue_mm2, 1) if tissue_mm2 else 0.0,
        "seconds": round(sum(run["seconds"] for stage in stages.values() for run in stage["runs"]), 1),
        "flags": flags(manifest),
        "masked": [str(tile) for tile in BadTile.listed(stages.get("ingest", {}).get("facts", {}))],
        "warnings": plan["image"]["warnings"],
    }


def run_settings(config: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """Every key of a configuration as ``section.key``, with its value."""
    for section, keys in sorted(config.items()):
        for name, value in sorted(keys.items()) if isinstance(keys, Mapping) else [("", keys)]:
            yield f"{section}.{name}".rstrip("."), value
