"""Verify: is a finished result still what was written? And what must be made again if it is not.

The one decision made here: verifying only reads (and leaves a note in ``.work``); repairing is the business of the next
segment run, which makes the damaged files again and demands the digests the manifest promised.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from os.path import relpath
from pathlib import Path
from typing import Any

from pipeline.errors import DamagedError, DiskError
from pipeline.geometry import Box, TileGrid
from pipeline.stage_table import WRITER
from pipeline.storage.atomic_files import fsync_dir, read_json, remove, sha256_file, write_bytes, write_json
from pipeline.storage.layout import artifact_of
from pipeline.storage.manifest import is_pruned, read_manifest, result_files
from pipeline.storage.slide_store import SlideStore, StoredArray, shard_path


@dataclass(frozen=True, slots=True)
class Damage:
    """One file that is not what the manifest says, and in which way."""

    path: str
    reason: str


def verify_slide(store: SlideStore) -> list[Damage] | None:
    """Check every file against the manifest, contents included; None when the slide is not complete.

    What is damaged is also noted in ``.work/damage.json`` for the next segment run, where the file system allows.
    """
    try:
        manifest = read_manifest(store)
    except DamagedError as error:
        return [Damage(store.manifest.name, str(error))]
    if manifest is None:
        return None
    damaged = [*check_files(store.root, manifest["files"], contents=True), *_unexpected(store, manifest)]
    _note(store, damaged)
    return damaged


def check_files(root: Path, files: Mapping[str, Any], *, contents: bool) -> list[Damage]:
    """Files that are missing, of another size or (with ``contents``) of another digest."""
    found = (
        Damage(name, reason)
        for name, entry in files.items()
        if (reason := _fault(root / name, entry, contents=contents))
    )
    return list(found)


def _fault(path: Path, entry: Mapping[str, Any], *, contents: bool) -> str:
    try:
        size = path.stat().st_size
    except OSError:
        return "missing"
    if size != entry["size"]:
        return f"expected {entry['size']} bytes, found {size}"
    return "its bytes changed" if contents and sha256_file(path) != entry["sha256"] else ""


def _unexpected(store: SlideStore, manifest: Mapping[str, Any]) -> Iterable[Damage]:
    """Files that nobody knows; those of a prune that was killed are known, and on their way out."""
    for path in result_files(store):
        name = path.relative_to(store.root).as_posix()
        if name not in manifest["files"] and not is_pruned(manifest, name):
            yield Damage(name, "not in the manifest")


def _note(store: SlideStore, damaged: list[Damage]) -> None:
    path = store.work / "damage.json"
    try:
        if damaged:
            write_json(path, {damage.path: damage.reason for damage in damaged})
        else:
            path.unlink(missing_ok=True)
    except (DiskError, PermissionError):
        pass  # a read-only result can be verified all the same; what is damaged is also the return value


def damaged_files(store: SlideStore, manifest: Mapping[str, Any]) -> dict[str, str]:
    """What segment must make again, with the digest it must have: noted by verify, missing, or of another size."""
    names = _noted(store, manifest)
    names |= {damage.path for damage in check_files(store.root, manifest["files"], contents=False)}
    return {name: manifest["files"].get(name, {}).get("sha256", "") for name in sorted(names)}


def _noted(store: SlideStore, manifest: Mapping[str, Any]) -> set[str]:
    """Files of this result that verify found damaged; a note that cannot be read is made again."""
    note = store.work / "damage.json"
    if not note.exists():
        return set()
    try:
        names = set(read_json(note))
    except (DamagedError, TypeError):
        names = {damage.path for damage in check_files(store.root, manifest["files"], contents=True)}
    return names & {*manifest["files"], *(damage.path for damage in _unexpected(store, manifest))}


def prepare_repair(store: SlideStore, damaged: Mapping[str, str], metadata: Mapping[str, str]) -> None:
    """Drop manifest, affected stamps and damaged files, so that the stages make just those again.

    ``metadata`` holds the text of small files that are simply written again. What is to be made again, and the digests
    it must have, is noted first: a repair killed half-way is taken up by ``pending_repair``.
    """
    texts = {name: text for name, text in metadata.items() if name in damaged}
    write_json(_repair_note(store), {"damaged": dict(damaged), "metadata": texts})
    fsync_dir(store.work)
    store.manifest.unlink(missing_ok=True)
    fsync_dir(store.root)
    pending_repair(store)


def pending_repair(store: SlideStore) -> dict[str, str]:
    """Clear the way for the repair that was begun, if one was; the files to be made again and their digests."""
    if not _repair_note(store).exists():
        return {}
    note = read_json(_repair_note(store))
    (store.work / "damage.json").unlink(missing_ok=True)
    store.unstamp({stage_of(name) for name in note["damaged"] if name not in note["metadata"]})
    for name in note["damaged"]:
        if name in note["metadata"]:
            write_bytes(store.root / name, note["metadata"][name].encode())
        else:
            remove(store.root / name)
    return dict(note["damaged"])


def end_repair(store: SlideStore) -> None:
    """The repair is done: forget what was to be made again."""
    remove(_repair_note(store))


def _repair_note(store: SlideStore) -> Path:
    return store.work / "repair.json"


def repaired_differs(store: SlideStore, stage: str, damaged: Mapping[str, str]) -> bool:
    """Whether a file that ``stage`` made again is not the one the manifest promised."""
    promised = {name: sha256 for name, sha256 in damaged.items() if sha256 and stage_of(name) == stage}
    return any(
        not (store.root / name).exists() or sha256_file(store.root / name) != sha256
        for name, sha256 in promised.items()
    )


def remove_damaged(store: SlideStore, stages: Iterable[str]) -> None:
    """Remove whatever of an unfinished result cannot be read, and forget what was built on it.

    Shards that can be read stay: the next run makes only the others again, and the blocks' small results.
    """
    for path in list(_undecodable(store)):
        remove(path)
    for stage in stages:
        remove(store.work / stage)
    store.unstamp(stages)


def require_whole(store: SlideStore) -> None:
    """Raise DamagedError naming the first shard that is missing from a result about to be called complete."""
    for metadata in store.zarr.rglob("zarr.json"):
        array = _array_of(store, metadata)
        for shard, _ in _shards(array) if array else ():
            if not shard.exists():
                raise DamagedError(f"{shard} is missing: it was removed after it was written. Run segment again")


def _undecodable(store: SlideStore) -> Iterator[Path]:
    for metadata in [*store.zarr.rglob("zarr.json"), *(store.work / "new").rglob("zarr.json")]:
        try:
            array = _array_of(store, metadata)
        except DamagedError:
            yield metadata
        else:
            yield from (shard for shard, core in _shards(array) if not _reads(array, shard, core)) if array else ()


def _array_of(store: SlideStore, metadata: Path) -> StoredArray | None:
    """The array to which a zarr.json belongs, None when it is a group's. Raises DamagedError when it is neither's."""
    content = read_json(metadata)
    if isinstance(content, dict) and content.get("node_type") == "group":
        return None
    return store.read(relpath(metadata.parent, store.zarr))


def _shards(array: StoredArray) -> Iterator[tuple[Path, Box]]:
    height, width = array.shape[-2:]
    for tile in TileGrid(Box.of_shape((height, width)), array.block_px):
        yield shard_path(array.location, tile.index, ndim=len(array.shape)), tile.core


def _reads(array: StoredArray, shard: Path, core: Box) -> bool:
    """Whether a shard can be decoded, or is not there yet."""
    try:
        return not shard.exists() or array.read(core).size > 0
    except DamagedError:
        return False


def stage_of(name: str) -> str:
    """The stage that writes the file at this path below the slide's folder."""
    return WRITER[artifact_of(name)]
