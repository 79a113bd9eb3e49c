"""Holes of objects, block by block: the arithmetic, without files.

A hole is a component of background that does not touch the slide's border, whose area is at most a limit and whose
neighbours are all of one class: it becomes pixels of that class before objects are labelled. Background is connected
the other way round than objects (4 when they are 8, and 8 when they are 4), and the one decision made here follows:
a hole's neighbours are the foreground pixels that adjoin it in that same connectivity, so they are exactly what
stops the hole from growing. All holes are judged on the mask as it was before any was filled.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import Box
from pipeline.objects.components import BlockGraph, BlockPart, Borders, RunLengths, label_pieces, rasterize, union_find

Array = NDArray[Any]

_NONE_LOW, _NONE_HIGH = 255, 0


def background_connectivity(connectivity: int) -> int:
    """The connectivity of holes when objects have ``connectivity``."""
    return 4 if connectivity == 8 else 8


def background_pieces(classes_YX: Array, connectivity: int) -> RunLengths:
    """Components of background, as runs labelled 1.. by piece, for objects of ``connectivity``."""
    return label_pieces((classes_YX == 0).view(np.uint8), background_connectivity(connectivity))


def hole_part(classes_YX: Array, core: Box, shape_yx: tuple[int, int], connectivity: int) -> BlockPart:
    """Area, contact with the slide's border, lowest and highest neighbouring class of each background piece."""
    runs = background_pieces(classes_YX, connectivity)
    count = int(runs.label.max(initial=0))
    area = np.zeros(count, np.int64)
    np.add.at(area, runs.label - 1, runs.length)
    pieces = rasterize(runs, runs.label.astype(np.int32), core.shape)
    low, high = np.full(count, _NONE_LOW, np.uint8), np.full(count, _NONE_HIGH, np.uint8)
    for piece, neighbour in _neighbours(pieces, classes_YX, background_connectivity(connectivity)):
        np.minimum.at(low, piece - 1, neighbour)
        np.maximum.at(high, piece - 1, neighbour)
    columns = {"area": area, "open": _open(pieces, count, core, shape_yx), "low": low, "high": high}
    borders = Borders.of(np.where(pieces > 0, pieces, -classes_YX.astype(np.int32)))
    return BlockPart(borders, np.zeros(count, np.uint8), columns)


def _open(pieces: Array, count: int, core: Box, shape_yx: tuple[int, int]) -> Array:
    lines = (pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1])
    outermost = (core.y0 == 0, core.y1 == shape_yx[0], core.x0 == 0, core.x1 == shape_yx[1])
    found = np.zeros(count + 1, np.bool_)
    for line, at_border in zip(lines, outermost, strict=True):
        if at_border:
            found[line] = True
    return found[1:]


def _neighbours(pieces: Array, classes: Array, connectivity: int) -> Iterator[tuple[Array, Array]]:
    """Piece and class of every (background, foreground) pair of neighbours inside a block."""
    shifts = [(0, 1), (1, 0)] + ([(1, 1), (1, -1)] if connectivity == 8 else [])
    for dy, dx in shifts:
        here, there = _facing(pieces, dy, dx), _facing(classes, dy, dx)
        for piece, neighbour in ((here[0], there[1]), (here[1], there[0])):
            meet = (piece > 0) & (neighbour > 0)
            yield piece[meet], neighbour[meet]


def _facing(pixels: Array, dy: int, dx: int) -> tuple[Array, Array]:
    height, width = pixels.shape
    left, right = max(0, -dx), min(width, width - dx)
    return pixels[: height - dy, left:right], pixels[dy:, left + dx : right + dx]


def fill_classes(joined: BlockGraph, max_px: int) -> Array:
    """The class (uint8, 0 = stays background) that fills each background piece, in block order."""
    low, high = joined.columns["low"].copy(), joined.columns["high"].copy()
    for piece, other in (joined.contacts, joined.contacts[::-1]):
        across = other < -1  # -1 - c: a pixel of class c
        np.minimum.at(low, piece[across], (-1 - other[across]).astype(np.uint8))
        np.maximum.at(high, piece[across], (-1 - other[across]).astype(np.uint8))
    union = union_find(joined)
    low, high = union.merge(np.minimum, low), union.merge(np.maximum, high)
    area = union.merge(np.add, joined.columns["area"])
    closed = ~union.merge(np.logical_or, joined.columns["open"])
    fill: Array = np.where(closed & (area <= max_px) & (low == high), low, np.uint8(0))
    fill[union.piece] = fill[union.root]
    return fill


def fill_holes(classes_YX: Array, fill: Array, connectivity: int) -> Array:
    """The class map with the block's background pieces filled by ``fill`` (one class for each piece)."""
    if not fill.any():
        return classes_YX
    holes = background_pieces(classes_YX, connectivity)
    return classes_YX + rasterize(holes, fill[holes.label - 1], classes_YX.shape)
