"""Parts of complete results that are given up to make room, and whole results that are taken away.

The one decision made here: the manifest says first what is meant to go, then it goes. So a result of which parts were
pruned is complete as it stands: nothing is missing from it, and nothing is made again until somebody asks. Before that
its stages cease to count as complete, so that whatever becomes of the manifest later, no stamp vouches for an array
that went. Killed at any moment, the same again comes to the same end.

    1. stamps go                  the result is whole; its stages would look for their shards before trusting them
    2. manifest.json is replaced  by one that lists what stays, and names what goes under ``pruned``
    3. what it names goes         each array at once, by a rename to where no result is looked for; then the small
                                  results of its blocks, of which a shard is never without
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
from pipeline.stage_table import WRITER
from pipeline.storage.atomic_files import fsync_dir, remove, sweep_partials
from pipeline.storage.layout import RESULTS, ZARR, entry_of, path_of
from pipeline.storage.manifest import is_pruned, read_manifest, rewrite
from pipeline.storage.slide_store import SlideStore

ARTIFACTS = {
    "tables": ("table",),
    "overview": ("overview",),
    "geojson": ("geojson",),
    "labels": ("objects",),
    "probability": ("probability",),
    "tissue": ("tissue", "quality"),
    "image": ("image",),
}
"""What can be kept, and which artifacts of the stage table it is."""

PARTS = {part: tuple(entry_of(path_of(name)) for name in names) for part, names in ARTIFACTS.items()}
PARTS["image"] = (ZARR,)
"""Where each part lies. All else in the OME-Zarr is the image's: its levels and what describes them."""

MAKERS = {part: WRITER[names[0]] for part, names in ARTIFACTS.items() if part not in ("overview", "geojson")}
"""The stage whose blocks' small results are of no use without a part. Overlay and export keep none."""


@dataclass(frozen=True, slots=True)
class Going:
    """What goes of a complete result: the parts, where they lie below its folder, and how many bytes they are."""

    parts: tuple[str, ...]
    entries: tuple[str, ...]
    bytes: int


def read_parts(text: str) -> frozenset[str]:
    """Names of parts, separated by commas. Raises ConfigError for others, naming the nearest."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in PARTS:
            near = difflib.get_close_matches(name, list(PARTS), n=1, cutoff=0.5)
            meant = f" (did you mean {near[0]}?)" if near else ""
            raise ConfigError(f"--keep {name or text!r}: expected some of {', '.join(PARTS)}{meant}")
    return frozenset(names)


def part_of(name: str) -> str:
    """The part that a file at this path below a slide's folder belongs to."""
    return next(part for part, places in PARTS.items() for place in places if name == place or _is_below(name, place))


def _is_below(name: str, folder: str) -> bool:
    return name.startswith(f"{folder}/")


def pruned_parts(manifest: Mapping[str, Any]) -> list[str]:
    """The parts that were given up of a complete result."""
    gone = {part_of(entry) for entry in manifest.get("pruned", {}).get("entries", ())}
    return [part for part in PARTS if part in gone]


def going(manifest: Mapping[str, Any], keep: Collection[str]) -> Going:
    """What goes of a complete result when these parts are kept."""
    files = {name: entry["size"] for name, entry in manifest["files"].items() if part_of(name) not in keep}
    entries = sorted({entry_of(name) for name in files}, key=lambda entry: (not entry.endswith("zarr.json"), entry))
    found = {part_of(name) for name in files}
    return Going(tuple(part for part in PARTS if part in found), tuple(entries), sum(files.values()))


def is_unfinished(store: SlideStore, manifest: Mapping[str, Any]) -> bool:
    """Whether a prune was killed before all went that was meant to."""
    return "pruned" in manifest and any(path.exists() for path in (*_places(store, manifest), _aside(store)))


def _places(store: SlideStore, manifest: Mapping[str, Any]) -> list[Path]:
    """What a prune takes: entries of the result, then folders of small results."""
    stages = [MAKERS[part] for part in pruned_parts(manifest) if part in MAKERS]
    return [*(store.root / entry for entry in manifest["pruned"]["entries"]), *(store.work / stage for stage in stages)]


def prune_slide(store: SlideStore, keep: Collection[str]) -> Going:
    """Give up all but ``keep`` of a complete result, or end what was begun; under the slide's lock.

    Raises StoreError, and changes nothing, when the result is not complete or what is to stay is damaged.
    """
    manifest = read_manifest(store)
    if manifest is None:
        raise StoreError(f"{store.root} is not complete: nothing is pruned of it")
    meant = going(manifest, keep)
    if meant.entries:
        manifest = _give_up(store, manifest, meant)
        sweep_partials(store.root, age_s=0)
    if is_unfinished(store, manifest):
        _take(store, _places(store, manifest))
    return meant


def _give_up(store: SlideStore, manifest: dict[str, Any], meant: Going) -> dict[str, Any]:
    """Let the manifest tell what stays."""
    before: Mapping[str, Any] = manifest.get("pruned", {"entries": [], "bytes": 0})
    pruned = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "entries": [*before["entries"], *meant.entries],
        "bytes": before["bytes"] + meant.bytes,
    }
    content = {**manifest, "pruned": pruned}
    for listing in ("files", "metadata"):
        content[listing] = {name: one for name, one in manifest[listing].items() if not is_pruned(content, name)}
    lost = [name for name in damaged_files(store, manifest) if name in content["files"]]
    if lost:
        raise StoreError(f"{store.root / lost[0]} is damaged: nothing is pruned. Segment it again first, or delete it")
    _unstamp(store)
    rewrite(store, content)
    return content


def _unstamp(store: SlideStore) -> None:
    """Let no stage count as complete."""
    store.unstamp([path.stem for path in store.work.glob("*.stamp")])


def _aside(store: SlideStore) -> Path:
    return store.work / "old"


def _take(store: SlideStore, places: Sequence[Path]) -> None:
    for path in (one for one in places if one.exists()):
        _aside(store).mkdir(exist_ok=True)
        remove(_aside(store) / path.name)
        path.replace(_aside(store) / path.name)
        fsync_dir(path.parent)
    if store.zarr.exists() and not any(store.zarr.iterdir()):
        store.zarr.rmdir()
        fsync_dir(store.root)
    remove(_aside(store))


# ---- whole results ---------------------------------------------------------------------------------------------------


def own_places(store: SlideStore) -> list[Path]:
    """The files and folders that a slide's folder has of a run, the manifest first and ``.work`` last."""
    names = ("manifest.json", ZARR, *RESULTS, ".work")
    return [path for name in names if (path := store.root / name).exists()]


def delete_slide(store: SlideStore, others: Sequence[Path]) -> None:
    """Remove what runs wrote into a slide's folder, and ``others``; under its lock. What somebody else left stays.

    The manifest goes first, then what says that stages are complete: what a kill leaves is a slide that was begun.
    """
    remove(store.manifest)
    _unstamp(store)
    for path in (*others, *own_places(store)):
        remove(path)
