"""Check whether block and tile borders are visible in probability and maps: one ratio a slide, about 1 if not.

The check compares short pieces of block and tile borders with the same pieces of control lines beside them. It counts
pieces and does not measure them. A piece counts when the probability bends more sharply across its line than anywhere
near on either side, so a wrong grey level in a flat area weighs as much as the edge of a nucleus, which no border has
caused. The ratio is the share of such pieces on borders over the share on control lines.

      ..  c-6 c-5 c-4 c-3 c-2 c-1 | c  c+1 c+2 c+3 c+4 c+5  ..     the bend at c is seen in the two pixels on each side,
          [ at c-4 ]  ..  [ at c-2 ]  [ at c+2 ]  ..  [ at c+4 ]   the others in pixels of one side alone

Control lines lie whole steps of the network away, because its output repeats the texture of its up-sampling with that
period. At most 1,024 sides of cells are sampled, one in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import CELL_PX
from pipeline.geometry import Box

Array = NDArray[Any]
Index = tuple[int, int]

PIECE_PX = 4
"""Length of a piece: the effect of a wrong border is as coarse as the network's deep levels, noise is not."""
ASIDE_PX = (2, 3, 4)
"""Distances from the line, on each side, at which the bend must be smaller."""
REACH_PX = max(ASIDE_PX) + 2
CONTROLS = 8
"""Largest number of control lines on each side."""
PLACES, FEWEST_PLACES = 1024, 8
"""Largest number of sampled cell sides, and the smallest for which there is a result."""


@dataclass(frozen=True, slots=True)
class Cut:
    """How the image is divided: its shape, the sides of blocks and of tiles, which restart in each block, the step."""

    shape_yx: tuple[int, int]
    block_px: int
    tile_px: int
    step_px: int

    def lines(self, axis: int) -> list[int]:
        """Positions along an axis at which a block or tile starts, without the first."""
        length = self.shape_yx[axis]
        starts = {block + tile for block in range(0, length, self.block_px) for tile in self._tiles}
        return sorted(start for start in starts if 0 < start < length)

    @property
    def _tiles(self) -> range:
        return range(0, self.block_px, self.tile_px)


@dataclass(frozen=True, slots=True)
class SeamSample:
    """Part of a line along one side of a cell: axis (0: between rows), position, control lines, pixels to read."""

    axis: int
    line: int
    controls: tuple[int, ...]
    box: Box


def seam_check(read: Callable[[Box], Array], computed: NDArray[np.bool_], cut: Cut) -> dict[str, Any] | None:
    """Compute the seam ratio of a slide.

    Args:
        read: Returns the planes of a box (k, h, w) uint8: the probability of each class, then the maps.
        computed: Cells (rows, cols) that the network computed; the others are zero, and their edge is not a seam.
        cut: How the image is divided.

    Returns:
        Ratio, standard error and number of sampled places; None when there are too few places.
    """
    found = [counted for sample in places(computed, cut) if any(counted := _count(read, sample))]
    on, beside = np.array(found, np.float64).reshape(-1, 2).T
    if len(found) < FEWEST_PLACES or not beside.sum():
        return None
    ratio = on.sum() / beside.sum()
    error = np.sqrt(np.square(on - ratio * beside).sum()) / beside.sum()
    return {"ratio": round(float(ratio), 4), "error": round(float(error), 4), "places": len(found)}


def places(computed: NDArray[np.bool_], cut: Cut) -> Iterator[SeamSample]:
    """Evenly sampled places, at most PLACES, at which both sides of a line were computed and a control line exists."""
    sides = [(axis, line, *one) for axis in (0, 1) for line in cut.lines(axis) for one in _sides(computed, axis, line)]
    lines = [frozenset(cut.lines(axis)) for axis in (0, 1)]
    for number in np.unique(np.linspace(0, max(0, len(sides) - 1), PLACES).astype(np.int64))[: len(sides)].tolist():
        axis, line, row, col = sides[number]
        cells = (
            Box(row, col, line // CELL_PX + 1, col + 1) if axis == 0 else Box(row, col, row + 1, line // CELL_PX + 1)
        )
        box = cells.scale(CELL_PX).intersect(Box.of_shape(cut.shape_yx))
        assert box is not None, "its cells lie in the image"
        start, stop = (box.y0, box.y1) if axis == 0 else (box.x0, box.x1)
        inside = range(start + REACH_PX, stop - REACH_PX + 1)
        beside = (line + cut.step_px * n for n in range(-CONTROLS, CONTROLS + 1))
        controls = tuple(at for at in beside if at in inside and at not in lines[axis])
        if line in inside and controls:
            yield SeamSample(axis, line, controls, _narrow(box, axis, (line, *controls)))


def _sides(computed: NDArray[np.bool_], axis: int, line: int) -> list[Index]:
    """First (row, col) of the one or two cells across a line, wherever all of them were computed."""
    first, last = (line - 1) // CELL_PX, line // CELL_PX
    along = np.flatnonzero(computed.take(range(first, last + 1), axis).all(axis)).tolist()
    return [(first, cell) if axis == 0 else (cell, first) for cell in along]


def _narrow(box: Box, axis: int, lines: tuple[int, ...]) -> Box:
    """The part of a box that is needed for the bends around these lines."""
    start, stop = min(lines) - REACH_PX, max(lines) + REACH_PX
    return Box(start, box.x0, stop, box.x1) if axis == 0 else Box(box.y0, start, box.y1, stop)


def _count(read: Callable[[Box], Array], sample: SeamSample) -> tuple[float, float]:
    """Number of pieces that bend most on the line, and the mean number on the control lines."""
    pixels = read(sample.box)
    across = pixels.swapaxes(1, 2) if sample.axis == 0 else pixels
    start = sample.box.y0 if sample.axis == 0 else sample.box.x0
    count = sharpest(across).sum(axis=(0, 1))
    on, *beside = (int(count[at - start]) for at in (sample.line, *sample.controls))
    return float(on), float(np.mean(beside))


def sharpest(pixels_KYX: Array) -> NDArray[np.bool_]:
    """Whether the bend between x - 1 and x exceeds the bends near it, for each plane, piece (of rows) and x (k, n, w).

    False near the ends, where not all neighbours exist, and wherever nothing bends.
    """
    classes, height, width = pixels_KYX.shape
    whole = pixels_KYX[:, : height // PIECE_PX * PIECE_PX].astype(np.int32)
    pieces = whole.reshape(classes, -1, PIECE_PX, width).sum(axis=2)
    slope = np.diff(pieces, axis=-1)
    bend = np.abs(2 * slope[..., 1:-1] - slope[..., :-2] - slope[..., 2:])  # element i is at x = i + 2
    answer = np.zeros(pieces.shape, np.bool_)
    inner = bend.shape[-1] - 2 * max(ASIDE_PX)
    near = [max(ASIDE_PX) + sign * aside for aside in ASIDE_PX for sign in (-1, 1)]
    others = np.max([bend[..., start : start + inner] for start in near], axis=0)
    answer[..., REACH_PX : REACH_PX + inner] = bend[..., max(ASIDE_PX) : max(ASIDE_PX) + inner] > others
    return answer
