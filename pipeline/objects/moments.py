"""Area, box and second moments of objects, merged across blocks.

Within a block the sums are integers of coordinates relative to the object's corner there, so none overflows. Second
moments of a whole slide about one origin would overflow int64 and cancel in floating point. Blocks are therefore merged
as counts, means and *central* moments, whose update terms are all squares or products of mean differences.

Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.objects.components import RunLengths

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class BlockSums:
    """Sums over the pixels of each object in one block. All arrays are int64 (objects,).

    Attributes:
        count: Number of pixels.
        y0: First row, in pixels of the image; ``x0``, ``y1``, ``x1`` complete the half-open box.
        sum_y: Sum of y relative to y0; ``sum_x``, ``sum_yy``, ``sum_xx``, ``sum_xy`` likewise, x relative to x0.
    """

    count: Array
    y0: Array
    x0: Array
    y1: Array
    x1: Array
    sum_y: Array
    sum_x: Array
    sum_yy: Array
    sum_xx: Array
    sum_xy: Array

    @classmethod
    def of_runs(cls, runs: RunLengths, object_index: Array, origin_yx: tuple[int, int]) -> Self:
        """Sums of the objects of one block; O(runs).

        Args:
            runs: Runs of the block.
            object_index: Object of each run, from 0; every object has a run.
            origin_yx: Upper left pixel of the block in the image.
        """
        y0, x0 = lowest(object_index, runs.y), lowest(object_index, runs.x0)
        y, left, right = runs.y - y0[object_index], runs.x0 - x0[object_index], runs.x1 - x0[object_index]
        length, sum_x = right - left, (right * (right - 1) - left * (left - 1)) // 2
        per_run = (length, y * length, sum_x, y * y * length, _squares(right) - _squares(left), y * sum_x)
        count, sum_y, sum_x, sum_yy, sum_xx, sum_xy = (total(object_index, column) for column in per_run)
        y1, x1 = -lowest(object_index, -runs.y - 1), -lowest(object_index, -runs.x1)
        (dy, dx) = origin_yx
        return cls(count, y0 + dy, x0 + dx, y1 + dy, x1 + dx, sum_y, sum_x, sum_yy, sum_xx, sum_xy)


def total(object_index: Array, column: Array) -> Array:
    """Sum of a column for each object index from 0 (int64, exact)."""
    sums = np.zeros(int(object_index.max(initial=-1)) + 1, np.int64)
    np.add.at(sums, object_index, column.astype(np.int64, copy=False))  # ten times slower where it has to cast
    return sums


def lowest(object_index: Array, column: Array) -> Array:
    """Minimum of a column for each object index from 0 (int64)."""
    found = np.full(int(object_index.max(initial=-1)) + 1, np.iinfo(np.int64).max)
    np.minimum.at(found, object_index, column)
    return found


def _squares(stop: Array) -> Array:
    """Sum of i² for 0 <= i < stop."""
    return np.asarray((stop - 1) * stop * (2 * stop - 1) // 6)


@dataclass(frozen=True, slots=True)
class Shapes:
    """Sums of all objects of a slide, updated in place; 80 bytes an object.

    Attributes:
        count: Pixels (objects,), int64.
        sum_y: Sum of y in pixels of the image (objects,), int64; ``sum_x`` likewise.
        box: Half-open boxes y0, x0, y1, x1 (4, objects), int64.
        moment: Central second moments yy, xx, xy (3, objects), float64, not divided by the count.
    """

    count: Array
    sum_y: Array
    sum_x: Array
    box: Array
    moment: Array

    @classmethod
    def empty(cls, objects: int) -> Self:
        """Objects without pixels."""
        far = np.iinfo(np.int64).max
        box = np.repeat(np.array([[far], [far], [-1], [-1]]), objects, axis=1)
        count, sum_y, sum_x = np.zeros((3, objects), np.int64)
        return cls(count, sum_y, sum_x, box, np.zeros((3, objects)))

    def add(self, object_index: Array, block: BlockSums) -> None:
        """Merge the sums of one block in place. Rounding of the moments depends on the order of blocks.

        Args:
            object_index: Distinct objects of the slide, one for each object of the block.
            block: Sums of the block.
        """
        count, before = block.count, self.count[object_index]
        mean_y, mean_x = block.sum_y / count, block.sum_x / count
        # Differences of integers first: an exactly straight object keeps a moment of exactly 0.
        away_y = np.where(
            before > 0, (self.sum_y[object_index] - before * block.y0) / np.maximum(before, 1) - mean_y, 0.0
        )
        away_x = np.where(
            before > 0, (self.sum_x[object_index] - before * block.x0) / np.maximum(before, 1) - mean_x, 0.0
        )
        share = count * (before / (count + before))
        self.moment[0, object_index] += block.sum_yy - mean_y * block.sum_y + share * away_y * away_y
        self.moment[1, object_index] += block.sum_xx - mean_x * block.sum_x + share * away_x * away_x
        self.moment[2, object_index] += block.sum_xy - mean_y * block.sum_x + share * away_y * away_x
        self.count[object_index] += count
        self.sum_y[object_index] += block.sum_y + count * block.y0
        self.sum_x[object_index] += block.sum_x + count * block.x0
        self.box[:2, object_index] = np.minimum(self.box[:2, object_index], (block.y0, block.x0))
        self.box[2:, object_index] = np.maximum(self.box[2:, object_index], (block.y1, block.x1))

    def centroid(self, some: slice) -> tuple[Array, Array]:
        """Mean (y, x) of the pixel indices of some objects."""
        return self.sum_y[some] / self.count[some], self.sum_x[some] / self.count[some]


@dataclass(frozen=True, slots=True)
class Ellipse:
    """Ellipses with the second moments of objects.

    Attributes:
        major: Full length of the major axis in pixels (n,).
        minor: Full length of the minor axis in pixels (n,).
        orientation: Angle from the y axis to the major axis in radians (n,), -pi/2 to pi/2, positive towards x.
        eccentricity: 0 for a circle, towards 1 for a line (n,).
    """

    major: Array
    minor: Array
    orientation: Array
    eccentricity: Array

    @classmethod
    def of(cls, shapes: Shapes, some: slice) -> Self:
        """Ellipses of some objects of a slide, as ``skimage.measure.regionprops`` defines them."""
        yy, xx, xy = shapes.moment[:, some] / shapes.count[some]
        half, spread = (yy + xx) / 2, np.hypot((yy - xx) / 2, xy)
        large, small = half + spread, np.maximum(half - spread, 0.0)
        ratio = np.divide(small, large, out=np.ones_like(large), where=large > 0)
        diagonal = np.where(xy > 0, np.pi / 4, -np.pi / 4)
        orientation = np.where(yy == xx, diagonal, 0.5 * np.arctan2(2 * xy, yy - xx))
        return cls(4 * np.sqrt(large), 4 * np.sqrt(small), orientation, np.sqrt(1 - ratio))
