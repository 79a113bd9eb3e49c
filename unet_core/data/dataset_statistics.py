"""What there is in an annotated image, without holding it: pixels of each class by cell of 512 px, sums of values.

Decision: everything is counted in one pass and in whole numbers, window by window, so a slide of any size needs the
memory of one window, and its figures depend on none; after it a pixel of a class is drawn, each as likely as the
others, by reading the one cell that holds it.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import Generator

from unet_core.class_map import IGNORED
from unet_core.data.augmentation import below
from unet_core.mirror import ArrayLike

CELL_PX, WINDOW_PX = 512, 1024


@dataclass(frozen=True, slots=True)
class ClassMap:
    """The class of each pixel as an array-like (y, x) of uint8.

    0 where no object is, 1 on objects where classes are not given, ``IGNORED`` where these say so, object or none.
    """

    labels_YX: ArrayLike
    classes_YX: ArrayLike | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Pixels along each axis."""
        return self.labels_YX.shape

    def __getitem__(self, key: tuple[slice, ...], /) -> NDArray[np.uint8]:
        is_object = np.asarray(self.labels_YX[key]) != 0
        if self.classes_YX is None:
            return np.asarray(is_object, np.uint8)
        classes = np.asarray(self.classes_YX[key])
        return np.where(is_object | (classes == IGNORED), classes, 0).astype(np.uint8)

    def held(self, key: tuple[slice, ...]) -> ClassMap:
        """Return a part of it, in memory."""
        classes = None if self.classes_YX is None else np.asarray(self.classes_YX[key])
        return ClassMap(np.asarray(self.labels_YX[key]), classes)


@dataclass(frozen=True, slots=True, eq=False)
class ImageStatistics:
    """An annotated image, counted.

    `counts`: pixels of each class, 0 to the highest there is, in each cell: (class, row, column); what is `ignored` is
    not among them, but in `pixels`. `sums` and `squares`
    are of the pixels of each channel of the image, as stored.
    """

    class_map: ClassMap
    counts: NDArray[np.int64]
    ignored: int
    objects: int
    dtype: np.dtype[Any]
    sums: tuple[int, ...]
    squares: tuple[int, ...]

    @classmethod
    def of(cls, image_CYX: ArrayLike, class_map: ClassMap) -> Self:
        """Count it, reading everything once, by windows."""
        height, width = class_map.shape
        counts = np.zeros((256, -(-height // CELL_PX), -(-width // CELL_PX)), np.int64)
        objects: set[int] = set()
        sums, dtype = np.zeros((2, image_CYX.shape[0]), object), np.dtype(np.uint8)
        for y, x in itertools.product(range(0, height, WINDOW_PX), range(0, width, WINDOW_PX)):
            window = slice(y, min(y + WINDOW_PX, height)), slice(x, min(x + WINDOW_PX, width))
            pixels_CYX, part = np.asarray(image_CYX[(slice(None), *window)]), class_map.held(window)
            dtype = pixels_CYX.dtype
            sums += np.array([_moments(pixels_YX) for pixels_YX in pixels_CYX], object).T
            objects.update(np.unique(part.labels_YX[:, :]).tolist())
            for row, column in np.ndindex(*(-(-length // CELL_PX) for length in part.shape)):
                found = np.bincount(part[_cell(part.shape, row, column)].ravel(), minlength=256)
                counts[:, y // CELL_PX + row, x // CELL_PX + column] = found
        ignored, known = int(counts[IGNORED].sum()), counts[:IGNORED]
        highest = int(np.flatnonzero(known.any(axis=(1, 2))).max(initial=0))
        total, squares = (tuple(map(int, one)) for one in sums)
        return cls(class_map, known[: highest + 1].copy(), ignored, len(objects - {0}), dtype, total, squares)

    @property
    def pixels(self) -> int:
        """Of the image."""
        return math.prod(self.class_map.shape)

    def holds_object(self, y: int, x: int, side_px: int) -> bool:
        """Return whether any object lies in the cells that a square, which starts with a cell, is made of."""
        rows, columns = (slice(at // CELL_PX, -(-(at + side_px) // CELL_PX)) for at in (y, x))
        return bool(self.counts[1:, rows, columns].any())

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


def _moments(pixels_YX: NDArray[Any]) -> tuple[int, int]:
    """Return sum and sum of squares: whole numbers, which 64 bits hold for any window."""
    values = pixels_YX.astype(np.int64).ravel()
    return int(values.sum()), int(values @ values)
