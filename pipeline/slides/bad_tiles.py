"""Tiles that cannot be decoded, where a run is told to go on without them: read around, filled, listed, never believed.

The one decision made here: a filled tile is no pixel of the slide. Whatever the network would answer where it sees one
is not computed, a whole cell at a time: its probability is 0, as without tissue.

    slide tile │ what is filled │    image: box     │ every cell whose read touches the box is left out
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import CELL_PX
from pipeline.geometry import Box, TileGrid
from pipeline.slide_reader import Pixels, SlideReader, TileError, TilePlace

if TYPE_CHECKING:  # of which manifests are read without, and which takes scipy to import
    from pipeline.slides.resample import Resampling

FLAG = "masked_tiles"
FACT = "masked"


@dataclass(frozen=True, slots=True, order=True)
class BadTile:
    """A tile or strip of the slide that cannot be decoded, and the pixels of the image that it would have changed."""

    level: int
    row: int
    col: int
    box: tuple[int, int, int, int]

    @classmethod
    def of(cls, place: TilePlace, resampling: Resampling) -> BadTile:
        """From where it lies in the slide."""
        box = image_box(resampling, place.box)
        return cls(place.level, place.row, place.col, (box.y0, box.x0, box.y1, box.x1))

    @classmethod
    def listed(cls, facts: Mapping[str, Any]) -> tuple[BadTile, ...]:
        """What the facts of ingest list; nothing where it was not told to go on."""
        return tuple(cls(level, row, col, (*box,)) for level, row, col, box in facts.get(FACT, ()))

    def fact(self) -> list[Any]:
        """As JSON: level, row, col and [y0, x0, y1, x1]."""
        return [self.level, self.row, self.col, list(self.box)]

    def __str__(self) -> str:
        return f"level {self.level}, tile ({self.row}, {self.col})"


def image_box(resampling: Resampling, source: Box) -> Box:
    """Every pixel of the image that is made with one of ``source``, pixels of the level."""
    spread = 1 if resampling.method == "bilinear" else 0
    lengths = zip(resampling.scale_yx, resampling.out_yx, (source.y0, source.x0), (source.y1, source.x1), strict=True)
    spans = [
        (max(0, math.floor(start / scale) - spread), min(length, math.ceil(stop / scale) + spread))
        for scale, length, start, stop in lengths
    ]
    (y0, y1), (x0, x1) = spans
    return Box(y0, x0, y1, x1)


def read_around(reader: SlideReader, level: int, box: Box) -> tuple[Pixels, tuple[TilePlace, ...]]:
    """Pixels of ``box`` (c, y, x), and the tiles in it that cannot be decoded, whose pixels are filled.

    White fills what has three channels, which is bright-field; black all else.
    """
    fill = np.iinfo(reader.dtype).max if reader.channels == 3 else 0
    pixels = np.full((reader.channels, *box.shape), fill, reader.dtype)
    bad: list[TilePlace] = []
    waiting = [box]
    while waiting:
        part = waiting.pop()
        try:
            pixels[(slice(None), *part.shift(-box.y0, -box.x0).slices)] = reader.read(level, part)
        except TileError as error:
            hole = part.intersect(error.place.box) if error.place.level == level else None
            if hole is None:
                raise
            bad.append(error.place)
            waiting.extend(_around(part, hole))
    return pixels, tuple(bad)


def _around(whole: Box, hole: Box) -> Iterator[Box]:
    """What is left of a box: above, below, and at both sides."""
    parts = (
        (whole.y0, whole.x0, hole.y0, whole.x1),
        (hole.y1, whole.x0, whole.y1, whole.x1),
        (hole.y0, whole.x0, hole.y1, hole.x0),
        (hole.y0, hole.x1, hole.y1, whole.x1),
    )
    return (Box(*part) for part in parts if part[0] < part[2] and part[1] < part[3])


def untouched_cells(bad: Iterable[BadTile], shape_yx: tuple[int, int], halo_px: int) -> NDArray[np.bool_]:
    """Which cells (rows, cols) of an image are computed from sound pixels alone, read with a halo."""
    grid = TileGrid(Box.of_shape(shape_yx), CELL_PX)
    sound = np.ones((grid.rows, grid.cols), bool)
    for tile in bad:
        near = Box(*tile.box).expand(halo_px).intersect(grid.area)
        if near is not None:
            sound[near.cover(CELL_PX).slices] = False
    return sound


def as_array(bad: Sequence[BadTile]) -> NDArray[np.int64]:
    """(n, 7) numbers, as a block's small result."""
    return np.array([(tile.level, tile.row, tile.col, *tile.box) for tile in bad], np.int64).reshape(-1, 7)


def from_array(numbers: NDArray[np.int64]) -> list[BadTile]:
    """What ``as_array`` was given."""
    return [BadTile(level, row, col, (y0, x0, y1, x1)) for level, row, col, y0, x0, y1, x1 in numbers.tolist()]
