"""Scale of a slide's overview, and selection of the fields that are displayed at full resolution.

Fields are the densest cells of a fixed grid, at a minimum distance from each other, with ties in raster order. The same
slide therefore always has the same fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import Box

OVERVIEW_PX = 1600
"""Longest side of an overview."""

FIELD_PX = 512
"""Side of a field on the page."""

_LEAST_PX, _LARGEST_ENLARGEMENT = 480, 16
_SMALL_OBJECT_PX = 14
_FIELDS = 3


@dataclass(frozen=True, slots=True)
class View:
    """Overview of an image.

    Images up to ``OVERVIEW_PX`` are displayed pixel for pixel, very small ones enlarged by an integer.

    Attributes:
        image_yx: Shape of the image.
        shape_yx: Shape of the overview.
        scale: Overview pixels for each image pixel.
        level: The coarsest pyramid level that is not coarser than the overview.
    """

    image_yx: tuple[int, int]
    shape_yx: tuple[int, int]
    scale: float
    level: int

    @classmethod
    def of(cls, image_yx: tuple[int, int]) -> View:
        """The overview of an image."""
        longest = max(image_yx)
        enlarged = min(_LARGEST_ENLARGEMENT, max(1, _LEAST_PX // longest))
        scale = float(enlarged) if longest <= OVERVIEW_PX else OVERVIEW_PX / longest
        height, width = (max(1, round(side * scale)) for side in image_yx)
        level = 0
        while -(-longest // 2 ** (level + 1)) >= max(height, width):
            level += 1
        return cls(image_yx, (height, width), scale, level)

    def overview_from_image(self, box: Box) -> tuple[float, float, float, float]:
        """Convert a box of image pixels to (x0, y0, x1, y1) on the overview."""
        y, x = (overview / image for overview, image in zip(self.shape_yx, self.image_yx, strict=True))
        return box.x0 * x, box.y0 * y, box.x1 * x, box.y1 * y

    def nearest(self, length_yx: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and columns of an array of ``length_yx`` over the same area that lie under the overview's pixels."""
        rows, cols = (
            ((2 * np.arange(overview) + 1) * length // (2 * overview)).clip(0, length - 1)
            for overview, length in zip(self.shape_yx, length_yx, strict=True)
        )
        return rows, cols


def field_side(diameter_px: float) -> int:
    """Image pixels along a field: half as many where objects are small, which displays them twice as large."""
    return FIELD_PX // 2 if 0 < diameter_px < _SMALL_OBJECT_PX else FIELD_PX


def choose_fields(centroids_yx: NDArray[Any], view: View, side_px: int) -> list[Box]:
    """Select up to three boxes with the most objects, the densest first.

    Boxes are at least a fifth of the image's longer side apart.

    Args:
        centroids_yx: Centroids of the objects in image pixels (2, n).
        view: Overview of the image.
        side_px: Largest side of a box in image pixels.

    Returns:
        Boxes in image pixels: the middle of the image without objects; none when the overview displays every pixel.
    """
    if view.scale >= 1:
        return []
    rows, cols = (-(-length // side_px) for length in view.image_yx)
    if not centroids_yx.shape[1]:
        return [_field((rows - 1) // 2, (cols - 1) // 2, view, side_px)]
    y, x = (centroids_yx // side_px).astype(np.int64)
    count = np.bincount(y.clip(0, rows - 1) * cols + x.clip(0, cols - 1), minlength=rows * cols)
    chosen: list[tuple[int, int]] = []
    apart = max(2.0, max(rows, cols) / 5)
    for cell in np.argsort(-count, kind="stable").tolist():
        row, col = divmod(cell, cols)
        if not count[cell] or len(chosen) == _FIELDS:
            break
        if all(max(abs(row - other), abs(col - another)) >= apart for other, another in chosen):
            chosen.append((row, col))
    return [_field(row, col, view, side_px) for row, col in chosen]


def _field(row: int, col: int, view: View, side_px: int) -> Box:
    """The cell at (row, col), moved inside the image where it extends beyond it."""
    height, width = view.image_yx
    y0, x0 = max(0, min(row * side_px, height - side_px)), max(0, min(col * side_px, width - side_px))
    return Box(y0, x0, min(height, y0 + side_px), min(width, x0 + side_px))
