"""Pixel-wise agreement of two results of one slide.

Classes are compared, not ids: ids of two results differ as soon as one object differs. A pixel agrees when both results
have it in an object of the same class, or in none. One block is counted at a time, whatever the blocks of the other
result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import CELL_PX
from pipeline.errors import DamagedError
from pipeline.geometry import Box, TileGrid
from pipeline.storage.slide_store import StoredArray

Codes = NDArray[np.uint8]
"""Class, from 1, of each object id; entry 0 is 0."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Counts of pixels by class in both results.

    Attributes:
        pixels: Pixels of class i in the first and class j in the second result, 0 for none (classes + 1, classes + 1).
        place: The cell of 512 px with the most differing pixels; None without any.
    """

    pixels: NDArray[np.int64]
    place: Box | None

    @property
    def dice(self) -> float | None:
        """Dice of all objects, whatever their class; None where neither result has any."""
        both, first, second = self.pixels[1:, 1:].sum(), self.pixels[1:].sum(), self.pixels[:, 1:].sum()
        return _dice(both, first, second)

    def dice_of(self, number: int) -> float | None:
        """Dice of the objects of one class (from 1); None where neither result has any."""
        return _dice(self.pixels[number, number], self.pixels[number].sum(), self.pixels[:, number].sum())


def _dice(both: np.int64, first: np.int64, second: np.int64) -> float | None:
    return float(2 * both / (first + second)) if first + second else None


def compare_labels(first: StoredArray, second: StoredArray, codes: tuple[Codes, Codes] | None) -> Agreement:
    """Count the pixels of two label arrays (y, x); one block of each is in memory.

    Args:
        first: Labels of the first result.
        second: Labels of the second result.
        codes: Classes of the objects of each; None counts all objects as one class.

    Raises:
        ValueError: The shapes differ.
        DamagedError: A shard is damaged, or an id has no class.
    """
    if first.shape != second.shape:
        raise ValueError(f"expected labels of one shape, found {first.shape} and {second.shape}")
    kinds = 2 if codes is None else 1 + max(int(one.max(initial=0)) for one in codes)
    pixels = np.zeros((kinds, kinds), np.int64)
    most, place = 0, None
    for tile in TileGrid(Box.of_shape((first.shape[0], first.shape[1])), first.block_px):
        sides = (first, second)
        here, there = (_classes(side, tile.core, codes and codes[number]) for number, side in enumerate(sides))
        pair = here.astype(np.intp) * kinds + there
        pixels += np.bincount(pair.ravel(), minlength=kinds**2).reshape(kinds, kinds)
        count, cell = _worst_cell(here != there, tile.core)
        if count > most:
            most, place = count, cell
    return Agreement(pixels, place)


def _classes(labels: StoredArray, box: Box, codes: Codes | None) -> Codes:
    ids = labels.read(box)
    if codes is None:
        return (ids > 0).astype(np.uint8)
    if ids.max(initial=0) >= len(codes):
        raise DamagedError(f"{labels.location}: object {ids.max()} is not in the table. Run 'overtile verify'")
    return codes[ids]


def _worst_cell(differs: NDArray[np.bool_], core: Box) -> tuple[int, Box]:
    """Number of differing pixels in the cell of a block that has the most, and that cell."""
    rows, cols = (np.arange(0, side, CELL_PX) for side in differs.shape)
    counts: NDArray[Any] = np.add.reduceat(np.add.reduceat(differs, rows, axis=0, dtype=np.int64), cols, axis=1)
    row, col = np.unravel_index(int(counts.argmax()), counts.shape)
    cell = Box(int(row), int(col), int(row) + 1, int(col) + 1).scale(CELL_PX).shift(core.y0, core.x0).intersect(core)
    assert cell is not None, "the cell lies in the block"
    return int(counts[row, col]), cell
