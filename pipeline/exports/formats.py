"""Export of complete results: files of each format, their location, and protection against overwriting.

Exports are written to ``exports`` beside the result, or below ``--into``. They are not part of the result: ``verify``
does not check them, and ``segment`` neither updates nor removes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.exports.ome_tiff import LABELS, PROBABILITY, write_ome_tiff
from pipeline.exports.ome_zarr_04 import write_ngff04
from pipeline.exports.vector_formats import CompleteResult, write_csv, write_geojson, write_geoparquet
from pipeline.runs.prune import pruned_parts
from pipeline.storage.atomic_files import disk_errors, fsync_dir, remove

FOLDER = "exports"
Write = Callable[[CompleteResult, Path], None]


def _tiff(group: str) -> Write:
    return lambda result, path: write_ome_tiff(result, group, path)


def write_folder(write: Write, result: CompleteResult, path: Path) -> None:
    """Write a folder atomically; an existing folder of that name is replaced.

    The folder is written under a temporary name. Remains of a killed run are removed by the next one.

    Args:
        write: Writes the result into a folder that does not exist yet.
        result: The result.
        path: Final path of the folder.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(unfinished)
        try:
            write(result, unfinished)
            remove(path)
            unfinished.rename(path)
        finally:
            remove(unfinished)
        fsync_dir(path.parent)


FORMATS: dict[str, dict[str, Write]] = {
    "geojson": {"objects.geojson": write_geojson},
    "geoparquet": {"objects.geo.parquet": write_geoparquet},
    "csv": {"objects.csv": write_csv},
    "ngff04": {"slide.ngff04.zarr": partial(write_folder, write_ngff04)},
    "ome-tiff": {"objects.ome.tif": _tiff(LABELS), "probability.ome.tif": _tiff(PROBABILITY)},
}
"""Files of each format, and the function that writes each."""


def files_of(result: CompleteResult, name: str) -> dict[str, Write]:
    """Return the files of a format for one result: those of ``FORMATS``, and for ``ome-tiff`` one for each map."""
    maps = result.map_names if name == "ome-tiff" else ()
    return FORMATS[name] | {f"{one}.ome.tif": _tiff(f"maps/{one}") for one in maps}


NEEDS = {
    "geojson": ("tables", "labels"),
    "geoparquet": ("tables", "labels"),
    "csv": ("tables",),
    "ngff04": ("image", "labels", "probability"),
    "ome-tiff": ("labels", "probability"),
}
"""Parts of a result that each format is made from."""


def missing_parts(result: CompleteResult, formats: Sequence[str]) -> str:
    """Name the pruned parts of a result that some formats are made from.

    Returns:
        The parts, separated by commas; empty where none is missing.
    """
    gone = set(pruned_parts(result.manifest))
    drawn = "geojson" not in gone
    needed = {part for name in formats if not (name == "geojson" and drawn) for part in NEEDS.get(name, ())}
    return ", ".join(sorted(needed & gone))


def targets(result: CompleteResult, formats: Sequence[str], into: Path | None) -> Iterator[tuple[Path, Write]]:
    """Path and writer of each file of some formats.

    Args:
        result: The result.
        formats: Keys of ``FORMATS``.
        into: Folder for the files of all results; None for ``exports`` beside the result.

    Raises:
        ConfigError: A format is unknown, or the result has no objects.
    """
    folder = result.store.root / FOLDER if into is None else into / result.manifest["plan"]["key"]
    for name in formats:
        if name not in FORMATS:
            raise ConfigError(f"--to {name}: expected one of {', '.join(FORMATS)}")
        if name != "ngff04":
            result.section  # noqa: B018  rejects a result without objects before anything is written
        for file, write in files_of(result, name).items():
            yield folder / file, write


def export(result: CompleteResult, formats: Sequence[str], into: Path | None, *, force: bool) -> Iterator[Path]:
    """Write some formats; yields each path once it is complete.

    Raises:
        ConfigError: A file exists and ``force`` is False; nothing is written.
        DamagedError: The result is damaged.
        DiskError: The disk is full or fails.
    """
    files = list(targets(result, formats, into))
    for path, _ in files:
        if path.exists() and not force:
            raise ConfigError(f"{path} exists already. Add --force to write it anew")
    for path, write in files:
        write(result, path)
        yield path
