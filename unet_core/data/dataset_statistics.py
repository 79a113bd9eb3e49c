"""Counts of an annotated image: pixels of each class by cell of 512 px, objects, sums of pixel values.

Everything is counted in one pass in integers, window by window, so memory does not grow with the image and the result
does not depend on the windows. Afterwards a pixel of a class is drawn uniformly by reading the one cell that holds it.
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
    """Class of each pixel as an array-like (y, x) of uint8.

    0 outside objects, 1 on objects if no classes are given, ``IGNORED`` where the classes are, also outside objects.
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
        """Return a part of the map, in memory."""
        classes = None if self.classes_YX is None else np.asarray(self.classes_YX[key])
        return ClassMap(np.asarray(self.labels_YX[key]), classes)


@dataclass(frozen=True, slots=True, eq=False)
class ImageStatistics:
    """Counts of an annotated image.

    Attributes:
        class_map: Class of each pixel.
        counts: Pixels of each class, up to the highest one, in each cell: (class, row, column), without ignored pixels.
        ignored: Number of ignored pixels.
        objects: Number of objects.
        dtype: Number type of the image.
        sums: Sum of the stored values of each channel.
        squares: Sum of their squares.
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
        """Count an image (c, y, x), reading every pixel once, by windows."""
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
        """Pixels of the image."""
        return math.prod(self.class_map.shape)

    def holds_object(self, y: int, x: int, side_px: int) -> bool:
        """Return whether any object is in the cells of a square that starts at a cell."""
        rows, columns = (slice(at // CELL_PX, -(-(at + side_px) // CELL_PX)) for at in (y, x))
        return bool(self.counts[1:, rows, columns].any())

    def total(self, index: int) -> int:
        """Return the number of pixels of one class."""
        return int(self.counts[index].sum()) if index < len(self.counts) else 0

    def draw(self, index: int, generator: Generator) -> tuple[int, int]:
        """Draw a pixel (y, x) of a class with at least one pixel, uniformly."""
        ends = np.cumsum(self.counts[index])
        drawn = below(int(ends[-1]), generator)
        number = int(np.searchsorted(ends, drawn, side="right"))
        row, column = divmod(number, self.counts.shape[2])
        found_YX = self.class_map[_cell(self.class_map.shape, row, column)] == index
        rank = drawn - (int(ends[number - 1]) if number else 0)
        y, x = divmod(int(np.flatnonzero(found_YX)[rank]), found_YX.shape[1])
        return row * CELL_PX + y, column * CELL_PX + x


def _cell(shape: tuple[int, ...], row: int, column: int) -> tuple[slice, slice]:
    """Return the slices of a cell; the last cell of a row or column ends at the image border."""
    (y, x), (height, width) = (row * CELL_PX, column * CELL_PX), shape
    return slice(y, min(y + CELL_PX, height)), slice(x, min(x + CELL_PX, width))


def _moments(pixels_YX: NDArray[Any]) -> tuple[int, int]:
    """Return sum and sum of squares, which 64 bits hold for any window."""
    values = pixels_YX.astype(np.int64).ravel()
    return int(values.sum()), int(values @ values)
