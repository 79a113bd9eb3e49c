"""Copies of one finished result, each damaged in its own way.

A result depends neither on its name nor on its position. A copy of a result with a copy of its slide therefore equals
what a run would have written, and many kinds of damage cost one run.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

SHARDS = {
    "ingest": "slide.ome.zarr/0/c/0/0/1",
    "tissue": "slide.ome.zarr/tissue/c/0/0",
    "predict": "slide.ome.zarr/probability/0/c/0/0/1",
    "label": "slide.ome.zarr/labels/objects/0/c/0/1",
    "measure": "objects.parquet",
    "pyramid": "slide.ome.zarr/labels/objects/1/c/0/0",
    "export": "objects.geojson.gz",
    "overlay": "overview.png",
}
"""One file written by each stage of a slide of several blocks."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A slide and its complete result."""

    slide: Path
    result: Path

    def copies(self, folder: Path, names: Iterable[str]) -> tuple[Path, Path]:
        """Copy the slide and its result for each name; return the folder of slides and the output folder."""
        slides, out = folder / "slides", folder / "out"
        slides.mkdir(parents=True)
        out.mkdir()
        for name in names:
            shutil.copy2(self.slide, slides / f"{name}.tif")
            shutil.copytree(self.result, out / name)
        return slides, out


def truncated(path: Path) -> None:
    """Remove the second half of the file."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def zeroed(path: Path) -> None:
    """Set every byte to 0."""
    path.write_bytes(bytes(path.stat().st_size))


def flipped(path: Path) -> None:
    """Flip one bit, at a position drawn with the file's length as seed."""
    data = bytearray(path.read_bytes())
    bit = random.Random(len(data)).randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def deleted(path: Path) -> None:
    """Delete the file."""
    path.unlink()


DAMAGES: dict[str, Callable[[Path], None]] = {
    damage.__name__: damage for damage in (truncated, zeroed, flipped, deleted)
}
