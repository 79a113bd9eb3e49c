"""Prune parts of complete results to save space, and delete whole results.

The manifest lists what is pruned before anything is removed. So a pruned result stays complete: no listed file is
missing, and no stage runs again until the user requests it. The stamps are removed first, so that no stamp stands for a
removed array, whatever happens to the manifest later. The end is the same when the call is killed at any moment and
repeated.

    1. remove stamps          the result is whole; without stamps its stages check their shards
    2. replace manifest.json  by one that lists what stays, and what is pruned under ``pruned``
    3. remove what it lists   each array atomically, by a rename to a folder outside the result; then the small results
                              of its blocks, without which there is never a shard
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, StoreError
from pipeline.runs.verify import damaged_files
from pipeline.stage_table import MAPS, WRITER
from pipeline.storage.atomic_files import fsync_dir, remove, sweep_partials
from pipeline.storage.layout import MANIFEST, RESULTS, ZARR, entry_of, path_of
from pipeline.storage.manifest import is_pruned, read_manifest, rewrite
from pipeline.storage.slide_store import SlideStore

ARTIFACTS = {
    "tables": ("table",),
    "overview": ("overview",),
    "geojson": ("geojson",),
    "labels": ("objects",),
    "probability": ("probability", *MAPS),
    "tissue": ("tissue", "quality"),
    "image": ("image",),
}
"""The parts that can be kept, and their artifacts in the stage table."""

PARTS = {part: tuple(dict.fromkeys(entry_of(path_of(name)) for name in names)) for part, names in ARTIFACTS.items()}
PARTS["image"] = (ZARR,)
"""Paths of each part. Everything else in the OME-Zarr belongs to the image: its levels and metadata."""

MAKERS = {part: WRITER[names[0]] for part, names in ARTIFACTS.items() if part not in ("overview", "geojson")}
"""The stage whose blocks' small results are of no use without a part. Overlay and export keep none."""


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """What is removed of a complete result: parts, their paths below its folder, and their size in bytes."""

    parts: tuple[str, ...]
    entries: tuple[str, ...]
    bytes: int


def read_parts(text: str) -> frozenset[str]:
    """Read names of parts, separated by commas.

    Raises:
        ConfigError: Unknown part. Names the nearest known part.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in PARTS:
            near = difflib.get_close_matches(name, list(PARTS), n=1, cutoff=0.5)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ConfigError(f"--keep {name or text!r}: expected some of {', '.join(PARTS)}{hint}")
    return frozenset(names)


def part_of(name: str) -> str:
    """The part that a file at this path below a slide's folder belongs to."""
    return next(part for part, places in PARTS.items() for place in places if name == place or _is_below(name, place))


def _is_below(name: str, folder: str) -> bool:
    return name.startswith(f"{folder}/")


def pruned_parts(manifest: Mapping[str, Any]) -> list[str]:
    """The parts that were pruned of a complete result."""
    gone = {part_of(entry) for entry in manifest.get("pruned", {}).get("entries", ())}
    return [part for part in PARTS if part in gone]


def prune_plan(manifest: Mapping[str, Any], keep: Collection[str]) -> PrunePlan:
    """What is removed of a complete result when these parts are kept."""
    files = {name: entry["size"] for name, entry in manifest["files"].items() if part_of(name) not in keep}
    entries = sorted({entry_of(name) for name in files}, key=lambda entry: (not entry.endswith("zarr.json"), entry))
    found = {part_of(name) for name in files}
    return PrunePlan(tuple(part for part in PARTS if part in found), tuple(entries), sum(files.values()))


def is_unfinished(store: SlideStore, manifest: Mapping[str, Any]) -> bool:
    """Whether a prune was killed before everything that it lists was removed."""
    return "pruned" in manifest and any(path.exists() for path in (*_paths_to_remove(store, manifest), _trash(store)))


def _paths_to_remove(store: SlideStore, manifest: Mapping[str, Any]) -> list[Path]:
    """What a prune removes: entries of the result, then folders of small results."""
    stages = [MAKERS[part] for part in pruned_parts(manifest) if part in MAKERS]
    return [*(store.root / entry for entry in manifest["pruned"]["entries"]), *(store.work / stage for stage in stages)]


def prune_slide(store: SlideStore, keep: Collection[str]) -> PrunePlan:
    """Prune all parts but ``keep`` of a complete result, or complete a prune that was killed.

    The caller holds the slide's lock.

    Returns:
        What was removed.

    Raises:
        StoreError: The result is not complete, or a part that is kept is damaged. Nothing was changed.
    """
    manifest = read_manifest(store)
    if manifest is None:
        raise StoreError(f"{store.root} is not complete: nothing is pruned of it")
    removed = prune_plan(manifest, keep)
    if removed.entries:
        manifest = _list_as_pruned(store, manifest, removed)
        sweep_partials(store.root, age_s=0)
    if is_unfinished(store, manifest):
        _remove_entries(store, _paths_to_remove(store, manifest))
    return removed


def _list_as_pruned(store: SlideStore, manifest: dict[str, Any], removed: PrunePlan) -> dict[str, Any]:
    """Let the manifest list what stays, and what is pruned."""
    before: Mapping[str, Any] = manifest.get("pruned", {"entries": [], "bytes": 0})
    pruned = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "entries": [*before["entries"], *removed.entries],
        "bytes": before["bytes"] + removed.bytes,
    }
    content = {**manifest, "pruned": pruned}
    for listing in ("files", "metadata"):
        content[listing] = {name: entry for name, entry in manifest[listing].items() if not is_pruned(content, name)}
    lost = [name for name in damaged_files(store, manifest) if name in content["files"]]
    if lost:
        raise StoreError(f"{store.root / lost[0]} is damaged: nothing is pruned. Segment it again first, or delete it")
    _unstamp(store)
    rewrite(store, content)
    return content


def _unstamp(store: SlideStore) -> None:
    """Remove all stamps: no stage counts as complete."""
    store.unstamp([path.stem for path in store.work.glob("*.stamp")])


def _trash(store: SlideStore) -> Path:
    return store.work / "old"


def _remove_entries(store: SlideStore, paths: Sequence[Path]) -> None:
    for path in (path for path in paths if path.exists()):
        _trash(store).mkdir(exist_ok=True)
        remove(_trash(store) / path.name)
        path.replace(_trash(store) / path.name)
        fsync_dir(path.parent)
    if store.zarr.exists() and not any(store.zarr.iterdir()):
        store.zarr.rmdir()
        fsync_dir(store.root)
    remove(_trash(store))


# ---- whole results ---------------------------------------------------------------------------------------------------


def own_paths(store: SlideStore) -> list[Path]:
    """The files and folders that runs wrote into a slide's folder, the manifest first and ``.work`` last."""
    names = (MANIFEST, ZARR, *RESULTS, ".work")
    return [path for name in names if (path := store.root / name).exists()]


def delete_slide(store: SlideStore, others: Sequence[Path]) -> None:
    """Remove what runs wrote into a slide's folder, and ``others``. Other files stay.

    The caller holds the slide's lock. Manifest and stamps are removed first: a kill leaves an incomplete slide.
    """
    remove(store.manifest)
    _unstamp(store)
    for path in (*others, *own_paths(store)):
        remove(path)
