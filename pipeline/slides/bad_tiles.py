"""Damaged tiles under ``input.on_bad_tile: mask``.

They are read around, filled and listed. A filled tile holds no pixels of the slide. Every cell whose network input
touches one is left out as a whole: its probability is 0, as in a cell without tissue.

    damaged slide tile | filled box of the image | excluded: every cell whose read touches the box
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
from pipeline.slide_reader import Pixels, SlideReader, TileError, TileIndex

if TYPE_CHECKING:  # importing it takes scipy, which reading manifests does not need
    from pipeline.slides.resample import Resampling

FLAG = "masked_tiles"
FACT = "masked"


@dataclass(frozen=True, slots=True, order=True)
class BadTile:
    """A tile or strip that cannot be decoded: its position, and the box of image pixels that it contributes to."""

    level: int
    row: int
    col: int
    box: tuple[int, int, int, int]

    @classmethod
    def of(cls, place: TileIndex, resampling: Resampling) -> BadTile:
        """Create it from the position of the tile in the slide."""
        box = image_box(resampling, place.box)
        return cls(place.level, place.row, place.col, (box.y0, box.x0, box.y1, box.x1))

    @classmethod
    def listed(cls, facts: Mapping[str, Any]) -> tuple[BadTile, ...]:
        """Bad tiles in the facts of ingest; empty under ``on_bad_tile: fail``."""
        return tuple(cls(level, row, col, (*box,)) for level, row, col, box in facts.get(FACT, ()))

    def fact(self) -> list[Any]:
        """JSON form: level, row, col and [y0, x0, y1, x1]."""
        return [self.level, self.row, self.col, list(self.box)]

    def __str__(self) -> str:
        return f"level {self.level}, tile ({self.row}, {self.col})"


def image_box(resampling: Resampling, source: Box) -> Box:
    """Box of all image pixels that depend on a box of the level.

    Args:
        resampling: Resampling from the level to the image.
        source: Box in pixels of the level.

    Returns:
        Box in pixels of the image.
    """
    spread = 1 if resampling.method == "bilinear" else 0
    lengths = zip(resampling.scale_yx, resampling.out_yx, (source.y0, source.x0), (source.y1, source.x1), strict=True)
    spans = [
        (max(0, math.floor(start / scale) - spread), min(length, math.ceil(stop / scale) + spread))
        for scale, length, start, stop in lengths
    ]
    (y0, y1), (x0, x1) = spans
    return Box(y0, x0, y1, x1)


def read_around(reader: SlideReader, level: int, box: Box) -> tuple[Pixels, tuple[TileIndex, ...]]:
    """Read a box, filling the tiles that cannot be decoded.

    The fill is white for three channels, which are bright-field, and black otherwise.

    Args:
        reader: The slide.
        level: Level to read.
        box: Box in pixels of the level.

    Returns:
        (c, y, x) pixels, and the places of the damaged tiles.

    Raises:
        TileError: If a reported tile does not lie in the box.
    """
    fill = np.iinfo(reader.dtype).max if reader.channels == 3 else 0
    pixels = np.full((reader.channels, *box.shape), fill, reader.dtype)
    bad: list[TileIndex] = []
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


def _around(box: Box, hole: Box) -> Iterator[Box]:
    """The parts of a box around a hole: above, below, left and right."""
    parts = (
        (box.y0, box.x0, hole.y0, box.x1),
        (hole.y1, box.x0, box.y1, box.x1),
        (hole.y0, box.x0, hole.y1, hole.x0),
        (hole.y0, hole.x1, hole.y1, box.x1),
    )
    return (Box(*part) for part in parts if part[0] < part[2] and part[1] < part[3])


def cells_without_bad_tiles(bad: Iterable[BadTile], shape_yx: tuple[int, int], halo_px: int) -> NDArray[np.bool_]:
    """Cells of an image whose network input contains no bad tile.

    Args:
        bad: The bad tiles.
        shape_yx: (y, x) shape of the image in pixels.
        halo_px: Width that the network reads around a cell.

    Returns:
        Boolean (rows, cols) array; False marks excluded cells.
    """
    grid = TileGrid(Box.of_shape(shape_yx), CELL_PX)
    sound = np.ones((grid.rows, grid.cols), bool)
    for tile in bad:
        near = Box(*tile.box).expand(halo_px).intersect(grid.area)
        if near is not None:
            sound[near.cover(CELL_PX).slices] = False
    return sound


def as_array(bad: Sequence[BadTile]) -> NDArray[np.int64]:
    """Bad tiles as an (n, 7) array: level, row, col, y0, x0, y1, x1."""
    return np.array([(tile.level, tile.row, tile.col, *tile.box) for tile in bad], np.int64).reshape(-1, 7)


def from_array(numbers: NDArray[np.int64]) -> list[BadTile]:
    """Inverse of ``as_array``."""
    return [BadTile(level, row, col, (y0, x0, y1, x1)) for level, row, col, y0, x0, y1, x1 in numbers.tolist()]
