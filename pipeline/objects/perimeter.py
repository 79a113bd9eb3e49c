"""Perimeters of objects as counts of outline pixels that add up over blocks.

``skimage.measure.perimeter`` (after Benkrid and Crookes) assigns to each outline pixel, one with a neighbour on some
side that is not of its object, a length of 1, sqrt 2 or their mean, by which of its eight neighbours are outline
pixels of the same object. A block counts its own pixels of each length from an array that is ``HALO_PX`` larger on
every side, so the counts of all blocks add up to those of the whole image exactly.
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
    """Kind by code 1 + 2 * (outline pixels at the sides) + 10 * (at the corners): 0 = no length, else index + 1."""
    kinds = np.zeros(50, np.uint8)
    kinds[[5, 7, 15, 17, 25, 27]], kinds[[21, 33]], kinds[[13, 23]] = 1, 2, 3
    return kinds


def count_outline(ids_YX: Array) -> tuple[Array, Array]:
    """Find the outline pixels of a block that have a length.

    Args:
        ids_YX: Object ids of a block with ``HALO_PX`` more on every side; 0 for background and beyond the slide.

    Returns:
        Object id of each such pixel (n,), and index of its length in ``LENGTHS`` (n,).
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
