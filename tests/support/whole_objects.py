"""Reference objects of a whole image in memory, by scikit-image.

Imports nothing from ``pipeline``. Class maps are uint8, 0 = background.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label, regionprops
from skimage.morphology import closing, disk, local_maxima, opening, reconstruction
from skimage.segmentation import watershed

Array = NDArray[Any]

HOPS = {4: 1, 8: 2}


def smoothed(classes: Array, discs_px: Sequence[tuple[int, int]]) -> Array:
    """Mask of each class opened, then closed on background, the lowest class first."""
    opened = np.zeros_like(classes)
    for number, (radius, _) in enumerate(discs_px, start=1):
        opened[opening(classes == number, disk(radius), mode="ignore")] = number
    closed = opened.copy()
    for number, (_, radius) in enumerate(discs_px, start=1):
        closed[closing(opened == number, disk(radius), mode="ignore") & (closed == 0) & (opened == 0)] = number
    return closed


def filled(classes: Array, connectivity: int, max_px: int) -> Array:
    """Fill holes of at most ``max_px`` that one class surrounds; background has the complementary connectivity."""
    structure = ndimage.generate_binary_structure(2, HOPS[12 - connectivity])
    holes = label(classes == 0, connectivity=HOPS[12 - connectivity])
    answer = classes.copy()
    for one in regionprops(holes):
        y0, x0, y1, x1 = one.bbox
        if one.area > max_px or 0 in (y0, x0) or y1 == classes.shape[0] or x1 == classes.shape[1]:
            continue
        around = np.s_[y0 - 1 : y1 + 1, x0 - 1 : x1 + 1]
        mine = holes[around] == one.label
        found = np.unique(classes[around][ndimage.binary_dilation(mine, structure) & ~mine])
        if len(found) == 1:
            answer[around][mine] = found[0]
    return answer


def numbered(classes: Array, connectivity: int) -> Array:
    """Objects of equal class in raster order of their first pixel."""
    return np.asarray(label(classes, background=0, connectivity=HOPS[connectivity]))


def renumbered(marks: Array) -> Array:
    """Number areas of equal mark (0 = background) from 1 in raster order of their first pixel."""
    values, first, place = np.unique(marks, return_index=True, return_inverse=True)
    number = np.zeros(len(values), np.int64)
    order = np.argsort(first[values > 0])
    number[np.flatnonzero(values > 0)[order]] = np.arange(1, len(order) + 1)
    return number[place].reshape(marks.shape)


def distances(mask: Array) -> Array:
    """Distance to the edge in 1/256 pixel."""
    return np.asarray(np.rint(256 * ndimage.distance_transform_edt(mask)).astype(np.int64))


def basins(mask: Array, height: Array, connectivity: int, depth: int) -> Array:
    """Watershed of one object in isolation at dents of ``depth`` in its heights."""
    hops = HOPS[connectivity]
    never = -(10**9)
    ground, seed = np.where(mask, height, never), np.where(mask, height - depth, never)
    flat = reconstruction(seed, ground, footprint=ndimage.generate_binary_structure(2, hops))
    tops = label(local_maxima(flat, connectivity=hops) & mask, connectivity=hops)
    return np.asarray(watershed(-height, tops, connectivity=hops, mask=mask))


def split(labels: Array, connectivity: int, depth: int, largest: int, map_YX: Array | None = None) -> Array:
    """Split every object with a box of at most ``largest`` in its own box, and number all objects again.

    Heights are those of a map, else distances in 1/256 pixel.
    """
    marks = labels.astype(np.int64) * 10_000
    for one in regionprops(labels):
        if max(one.image.shape) <= largest:
            mask = np.pad(one.image, 1)
            height = distances(mask) if map_YX is None else np.pad(map_YX[one.slice].astype(np.int64), 1)
            marks[one.slice][one.image] += basins(mask, height, connectivity, depth)[1:-1, 1:-1][one.image]
    return renumbered(marks)


def kept(labels: Array, keep: Callable[[Any], bool]) -> Array:
    """Objects whose region properties satisfy ``keep``, numbered again."""
    numbers = [0, *(one.label if keep(one) else 0 for one in regionprops(labels))]
    return renumbered(np.array(numbers)[labels])
