"""How far two results of one slide agree, pixel by pixel.

The one decision made here: what is compared are classes, not ids. Two results number their objects differently as soon
as one object differs, so a pixel agrees when both have it in an object of the same class, or both in none. Blocks are
counted one at a time, whatever their size in the other result.
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
"""By id of an object the number of its class, from 1; 0 stays 0."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Pixels (classes + 1, classes + 1): how many are of class i in the first and of class j in the second, 0 for none.

    ``place`` is the cell of 512 px in which most pixels differ; None where none does.
    """

    pixels: NDArray[np.int64]
    place: Box | None

    @property
    def dice(self) -> float | None:
        """Of all objects together, whatever their class; None where neither has any."""
        both, first, second = self.pixels[1:, 1:].sum(), self.pixels[1:].sum(), self.pixels[:, 1:].sum()
        return _dice(both, first, second)

    def dice_of(self, number: int) -> float | None:
        """Of the objects of one class (from 1); None where neither has any."""
        return _dice(self.pixels[number, number], self.pixels[number].sum(), self.pixels[:, number].sum())


def _dice(both: np.int64, first: np.int64, second: np.int64) -> float | None:
    return float(2 * both / (first + second)) if first + second else None


def compare_labels(first: StoredArray, second: StoredArray, codes: tuple[Codes, Codes] | None) -> Agreement:
    """Count the pixels of two label arrays (y, x) of one shape; without ``codes`` all objects are of one class.

    Holds one block of each. Raises ValueError for two shapes, DamagedError for a damaged shard or an id without a code.
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
    """The cell of a block in which most pixels differ, and how many do."""
    rows, cols = (np.arange(0, side, CELL_PX) for side in differs.shape)
    counts: NDArray[Any] = np.add.reduceat(np.add.reduceat(differs, rows, axis=0, dtype=np.int64), cols, axis=1)
    row, col = np.unravel_index(int(counts.argmax()), counts.shape)
    cell = Box(int(row), int(col), int(row) + 1, int(col) + 1).scale(CELL_PX).shift(core.y0, core.x0).intersect(core)
    assert cell is not None, "it lies in the block"
    return int(counts[row, col]), cell
