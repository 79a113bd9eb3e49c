"""Perimeters: the lengths around objects that scikit-image estimates, as counts that add up over blocks.

``skimage.measure.perimeter`` (Benkrid and Crookes) gives each pixel of an object's outline, one that has no neighbour
of its own object on some side, a length of 1, sqrt 2 or their mean by which of the eight pixels around it are outline
of the same object too. The one decision made here: a block counts its own pixels of each length, seeing ``HALO_PX``
more around itself, so counts of all blocks are those of the whole image, to the pixel, and an object of any size has
its perimeter.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

HALO_PX = 2
LENGTHS = (1.0, sqrt(2), (1 + sqrt(2)) / 2)


def _kinds() -> Array:
    """By 1 + 2 * (outline pixels at the four sides) + 10 * (at the corners): 0 for nothing, else 1 + which length."""
    kinds = np.zeros(50, np.uint8)
    kinds[[5, 7, 15, 17, 25, 27]], kinds[[21, 33]], kinds[[13, 23]] = 1, 2, 3
    return kinds


def count_outline(ids_YX: Array) -> tuple[Array, Array]:
    """Ids of the outline's pixels that have a length, and which of ``LENGTHS``, from a block with its halo.

    ``ids_YX`` holds 0 for nothing and beyond the slide.
    """
    same_x, same_y = ids_YX[1:-1, 1:] == ids_YX[1:-1, :-1], ids_YX[1:, 1:-1] == ids_YX[:-1, 1:-1]
    ids = ids_YX[1:-1, 1:-1]
    edge = ~(same_x[:, 1:] & same_x[:, :-1] & same_y[1:] & same_y[:-1])
    edge &= ids > 0
    flat, row = (ids * edge).ravel(), ids.shape[1]
    edge[[0, -1]] = edge[:, [0, -1]] = False
    pixel_index = np.flatnonzero(edge)
    own = flat[pixel_index]
    code = np.ones(len(pixel_index), np.uint8)
    for weight, steps in ((2, (-row, -1, 1, row)), (10, (-row - 1, -row + 1, row - 1, row + 1))):
        for step in steps:
            code += (flat[pixel_index + step] == own) * np.uint8(weight)
    kind = _kinds()[code]
    counted = np.flatnonzero(kind)
    return own[counted], kind[counted] - 1
