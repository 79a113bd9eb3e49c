"""Fill holes of objects block by block.

A hole is a component of background that does not touch the slide's border, has an area of at most a limit, and has
neighbours of one class only. Its pixels get that class before objects are labelled. Background has the complementary
connectivity of objects (4 for 8, and 8 for 4). The neighbours of a hole are the foreground pixels adjacent in the
connectivity of background, so they are exactly the pixels that bound it. All holes are evaluated on the mask before any
is filled.
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
    """Connectivity of background for objects of ``connectivity``."""
    return 4 if connectivity == 8 else 8


def background_pieces(classes_YX: Array, connectivity: int) -> RunLengths:
    """Components of background as runs, labelled by piece from 1, for objects of ``connectivity``."""
    return label_pieces((classes_YX == 0).view(np.uint8), background_connectivity(connectivity))


def hole_part(classes_YX: Array, core: Box, shape_yx: tuple[int, int], connectivity: int) -> BlockPart:
    """Columns of each background piece of one block.

    Args:
        classes_YX: Class of each pixel of the block, 0 = background.
        core: The block, in pixels of the image.
        shape_yx: Shape of the whole image.
        connectivity: Connectivity of objects, 4 or 8.

    Returns:
        Borders and the columns ``area`` (int64), ``open`` (touches the slide's border), ``low`` and ``high`` (lowest
        and highest class of neighbours within the block, uint8; 255 and 0 without neighbours).
    """
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
    """The class that fills each background piece.

    Args:
        joined: Background pieces of all blocks.
        max_px: Largest area of a hole in pixels, inclusive.

    Returns:
        Class of each piece in block order (uint8); 0 for pieces that stay background.
    """
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
    """Fill the background pieces of one block.

    Args:
        classes_YX: Class of each pixel of the block.
        fill: Class of each background piece of this block, 0 = not filled.
        connectivity: Connectivity of objects.
    """
    if not fill.any():
        return classes_YX
    holes = background_pieces(classes_YX, connectivity)
    return classes_YX + rasterize(holes, fill[holes.label - 1], classes_YX.shape)
