"""Hand results on: which files a format has, where they go, and that nothing is overwritten by accident.

The one decision made here: copies lie in ``exports`` beside the result, or below ``--into``. They are no part of the
result: verify does not know them, and segment neither updates nor removes them.
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
    """Let ``write`` make a folder that gets its name when it is whole; one of that name is replaced.

    What a killed run left is removed by the next.
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
"""Files of each format, and who writes each."""

NEEDS = {
    "geojson": ("tables", "labels"),
    "geoparquet": ("tables", "labels"),
    "csv": ("tables",),
    "ngff04": ("image", "labels", "probability"),
    "ome-tiff": ("labels", "probability"),
}
"""Parts of a result that a format is made from."""


def lacking(result: CompleteResult, formats: Sequence[str]) -> str:
    """Which parts were pruned that these formats are made from, in words; empty where all are there."""
    gone = set(pruned_parts(result.manifest))
    drawn = "geojson" not in gone
    needed = {part for name in formats if not (name == "geojson" and drawn) for part in NEEDS.get(name, ())}
    return ", ".join(sorted(needed & gone))


def targets(result: CompleteResult, formats: Sequence[str], into: Path | None) -> Iterator[tuple[Path, Write]]:
    """Where each file goes. Raises ConfigError for a format that is not known."""
    folder = result.store.root / FOLDER if into is None else into / result.manifest["plan"]["key"]
    for name in formats:
        if name not in FORMATS:
            raise ConfigError(f"--to {name}: expected one of {', '.join(FORMATS)}")
        if name != "ngff04":
            result.section  # noqa: B018  refuses a result without objects before anything is written
        for file, write in FORMATS[name].items():
            yield folder / file, write


def export(result: CompleteResult, formats: Sequence[str], into: Path | None, *, force: bool) -> Iterator[Path]:
    """Write what is asked for; yields each path when it is there.

    Raises ConfigError, before anything is written, for what exists already (unless ``force``), DamagedError when the
    result is damaged, DiskError.
    """
    wanted = list(targets(result, formats, into))
    for path, _ in wanted:
        if path.exists() and not force:
            raise ConfigError(f"{path} exists already. Add --force to write it anew")
    for path, write in wanted:
        write(result, path)
        yield path
