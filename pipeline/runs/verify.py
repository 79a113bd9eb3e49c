"""Verify that a finished result is still what was written, and prepare the repair of damaged files.

``verify`` only reads, and notes damage in ``.work``. The next segment run repairs: it makes the damaged files again and
requires the digests in the manifest.
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
    """A file that differs from the manifest, and in which way."""

    path: str
    reason: str


def verify_slide(store: SlideStore) -> list[Damage] | None:
    """Check every file of a slide, contents included, against the manifest.

    Damage is also noted in ``.work/damage.json`` for the next segment run, where the file system allows it.

    Returns:
        The damaged files; None when the slide is not complete.
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
    """Files that are missing, have another size or (with ``contents``) another digest."""
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
    """Files that are not in the manifest; those that a killed prune has yet to remove do not count."""
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
        pass  # a read-only result can be verified too: the damage is also the return value


def damaged_files(store: SlideStore, manifest: Mapping[str, Any]) -> dict[str, str]:
    """Files that segment must make again, with the required digest: noted by verify, missing, or of another size."""
    names = _noted(store, manifest)
    names |= {damage.path for damage in check_files(store.root, manifest["files"], contents=False)}
    return {name: manifest["files"].get(name, {}).get("sha256", "") for name in sorted(names)}


def _noted(store: SlideStore, manifest: Mapping[str, Any]) -> set[str]:
    """Files of this result that verify noted as damaged; when the note cannot be read, the files are checked again."""
    note = store.work / "damage.json"
    if not note.exists():
        return set()
    try:
        names = set(read_json(note))
    except (DamagedError, TypeError):
        names = {damage.path for damage in check_files(store.root, manifest["files"], contents=True)}
    return names & {*manifest["files"], *(damage.path for damage in _unexpected(store, manifest))}


def prepare_repair(store: SlideStore, damaged: Mapping[str, str], metadata: Mapping[str, str]) -> None:
    """Remove the manifest, the affected stamps and the damaged files, so that the stages make only those again.

    The files to repair and their digests are noted first: ``pending_repair`` resumes a repair that was killed.

    Args:
        store: The slide's folder.
        damaged: Required digest of each damaged file.
        metadata: Text of the zarr.json files, which are written again from it.
    """
    texts = {name: text for name, text in metadata.items() if name in damaged}
    write_json(_repair_note(store), {"damaged": dict(damaged), "metadata": texts})
    fsync_dir(store.work)
    store.manifest.unlink(missing_ok=True)
    fsync_dir(store.root)
    pending_repair(store)


def pending_repair(store: SlideStore) -> dict[str, str]:
    """Prepare the repair that was started, if one was; return the files to make again and their digests."""
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
    """Remove the note of a repair that is done."""
    remove(_repair_note(store))


def _repair_note(store: SlideStore) -> Path:
    return store.work / "repair.json"


def repaired_differs(store: SlideStore, stage: str, damaged: Mapping[str, str]) -> bool:
    """Whether a file that ``stage`` made again has another digest than in the manifest."""
    promised = {name: sha256 for name, sha256 in damaged.items() if sha256 and stage_of(name) == stage}
    return any(
        not (store.root / name).exists() or sha256_file(store.root / name) != sha256
        for name, sha256 in promised.items()
    )


def remove_damaged(store: SlideStore, stages: Iterable[str]) -> None:
    """Remove everything of an unfinished result that cannot be read, and the stamps and small results of its stages.

    Shards that can be read stay: the next run makes only the others again, and the blocks' small results.
    """
    for path in list(_undecodable(store)):
        remove(path)
    for stage in stages:
        remove(store.work / stage)
    store.unstamp(stages)


def require_whole(store: SlideStore) -> None:
    """Check that no shard is missing before a result is declared complete.

    Raises:
        DamagedError: A shard is missing. Names the first.
    """
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
    """The array to which a zarr.json belongs; None for a group. Raises DamagedError when it belongs to neither."""
    content = read_json(metadata)
    if isinstance(content, dict) and content.get("node_type") == "group":
        return None
    return store.read(relpath(metadata.parent, store.zarr))


def _shards(array: StoredArray) -> Iterator[tuple[Path, Box]]:
    height, width = array.shape[-2:]
    for tile in TileGrid(Box.of_shape((height, width)), array.block_px):
        yield shard_path(array.location, tile.index, ndim=len(array.shape)), tile.core


def _reads(array: StoredArray, shard: Path, core: Box) -> bool:
    """Whether a shard can be decoded or does not exist yet."""
    try:
        return not shard.exists() or array.read(core).size > 0
    except DamagedError:
        return False


def stage_of(name: str) -> str:
    """The stage that writes the file at a path below the slide's folder."""
    return WRITER[artifact_of(name)]
