"""Where the pixels of each class lie, without holding them: how many there are in every cell of 512 px.

Decision: the class map is read once, cell by cell, so one pass over a slide of any size needs the memory of one cell;
after it a pixel of a class is drawn, each as likely as the others, by reading the one cell that holds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from torch import Generator

from unet_core.augment import below
from unet_core.mirror import ArrayLike

CELL_PX = 512


@dataclass(frozen=True, slots=True)
class ClassMap:
    """The class of each pixel as an array-like (y, x) of uint8: 0 where no object is, 1 where classes are not given."""

    labels_YX: ArrayLike
    classes_YX: ArrayLike | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Pixels along each axis."""
        return self.labels_YX.shape

    def __getitem__(self, key: tuple[slice, ...], /) -> NDArray[np.uint8]:
        classes = 1 if self.classes_YX is None else np.asarray(self.classes_YX[key])
        return np.where(np.asarray(self.labels_YX[key]) != 0, classes, 0).astype(np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class Census:
    """Pixels of each class, 0 to the highest there is, in each cell: (class, row, column)."""

    class_map: ClassMap
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, class_map: ClassMap) -> Self:
        """Count them, reading everything once."""
        height, width = class_map.shape
        rows, columns = -(-height // CELL_PX), -(-width // CELL_PX)
        counts = np.zeros((256, rows, columns), np.int64)
        for row, column in np.ndindex(rows, columns):
            counts[:, row, column] = np.bincount(class_map[_cell(class_map.shape, row, column)].ravel(), minlength=256)
        return cls(class_map, counts[: int(np.flatnonzero(counts.any(axis=(1, 2)))[-1]) + 1].copy())

    def total(self, index: int) -> int:
        """Return the pixels of one class."""
        return int(self.counts[index].sum()) if index < len(self.counts) else 0

    def draw(self, index: int, generator: Generator) -> tuple[int, int]:
        """Return a pixel (y, x) of a class that has some."""
        ends = np.cumsum(self.counts[index])
        drawn = below(int(ends[-1]), generator)
        number = int(np.searchsorted(ends, drawn, side="right"))
        row, column = divmod(number, self.counts.shape[2])
        found_YX = self.class_map[_cell(self.class_map.shape, row, column)] == index
        rank = drawn - (int(ends[number - 1]) if number else 0)
        y, x = divmod(int(np.flatnonzero(found_YX)[rank]), found_YX.shape[1])
        return row * CELL_PX + y, column * CELL_PX + x


def _cell(shape: tuple[int, ...], row: int, column: int) -> tuple[slice, slice]:
    """Return the pixels of a cell; the last of a row or column ends with the image."""
    (y, x), (height, width) = (row * CELL_PX, column * CELL_PX), shape
    return slice(y, min(y + CELL_PX, height)), slice(x, min(x + CELL_PX, width))
