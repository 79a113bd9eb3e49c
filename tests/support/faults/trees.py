"""Finished results to be damaged: one is computed, the others are copies of it, each damaged in its own way.

The one decision made here: a copy of a result beside a copy of its slide is what a run would have made, because
nothing in a result depends on its name or place. So many damages cost one run.
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
"""One file that each stage of a slide of several blocks writes."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A slide and its complete result."""

    slide: Path
    result: Path

    def copies(self, folder: Path, names: Iterable[str]) -> tuple[Path, Path]:
        """The slide and its result once for each name: the folder of slides and the output folder."""
        slides, out = folder / "slides", folder / "out"
        slides.mkdir(parents=True)
        out.mkdir()
        for name in names:
            shutil.copy2(self.slide, slides / f"{name}.tif")
            shutil.copytree(self.result, out / name)
        return slides, out


def truncated(path: Path) -> None:
    """Half of the file is gone."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def zeroed(path: Path) -> None:
    """Every byte is 0."""
    path.write_bytes(bytes(path.stat().st_size))


def flipped(path: Path) -> None:
    """One bit is another, somewhere (drawn by the file's length: the same in every run)."""
    data = bytearray(path.read_bytes())
    place = random.Random(len(data)).randrange(8 * len(data))
    data[place // 8] ^= 1 << place % 8
    path.write_bytes(data)


def deleted(path: Path) -> None:
    """The file is gone."""
    path.unlink()


DAMAGES: dict[str, Callable[[Path], None]] = {
    damage.__name__: damage for damage in (truncated, zeroed, flipped, deleted)
}
