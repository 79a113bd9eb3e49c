"""Objects of an image in memory from the outputs of a network.

The definition of an object in a few lines of scikit-image. Segmentation computes the same objects block by block.
Training uses this one to choose the settings that a model stores.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label
from skimage.morphology import local_maxima, reconstruction
from skimage.segmentation import relabel_sequential, watershed

from unet_core.class_map import THRESHOLD, class_map
from unet_core.spec import MapName, ObjectSettings, UNetSpec

Array = NDArray[Any]

LARGEST_PX, LARGEST_UM = 1024, 200.0
"""Objects with a longer box are not split: in pixels whatever a user sets, because a box takes some 100 MB, and in
micrometres by default."""
ROUNDING = 1e-9
"""A limit that is an integer of pixels up to this is that integer."""


def label_objects(outputs_CYX: Array, spec: UNetSpec) -> tuple[Array, Array]:
    """Return the objects of an image and their classes, by the settings of a network.

    Objects are 8-connected components of one class, split by the network's map where it has such settings, without
    those below the smallest and above the largest area.

    Args:
        outputs_CYX: Foreground probabilities, then maps, (k + m, y, x) as bytes.
        spec: The network.

    Returns:
        Labels (y, x), 0 is background, and the class of each pixel (y, x).
    """
    classes_YX = class_map(outputs_CYX[: spec.foreground], spec.threshold or THRESHOLD)
    labels_YX = label(classes_YX, connectivity=2)
    settings = spec.objects or ObjectSettings()
    if (name := settings.map_name) is not None:
        heights_YX = split_heights(name, outputs_CYX[spec.foreground + spec.maps.index(name)])
        labels_YX = _split_classes(labels_YX, classes_YX, heights_YX, spec)
    labels_YX = without_sizes(labels_YX, *area_range_px(spec))
    return labels_YX, np.where(labels_YX > 0, classes_YX, 0)


def _split_classes(labels_YX: Array, classes_YX: Array, heights_YX: Array, spec: UNetSpec) -> Array:
    """Split the objects of each class by itself: a maximum in an object of another class does not count."""
    assert spec.objects is not None, "only methods with a map split"
    depth, longest_px = depth_units(spec.objects.depth), largest_box_px(LARGEST_UM, spec.mpp or 1.0)
    parts_YX = np.zeros_like(labels_YX)
    for number in range(1, spec.classes):
        own_YX = np.where(classes_YX == number, labels_YX, 0)
        split_YX = split_by_map(own_YX, heights_YX, depth, longest_px)
        parts_YX = np.where(split_YX > 0, split_YX + parts_YX.max(), parts_YX)
    return parts_YX


def largest_box_px(split_max_um: float, mpp: float) -> int:
    """Return the longest side of the box of an object that is split, in pixels of `mpp` um."""
    return min(math.floor(split_max_um / mpp * (1 + ROUNDING)), LARGEST_PX)


def area_range_px(spec: UNetSpec) -> tuple[int, float]:
    """Return the smallest and the largest area in pixels; without a resolution a pixel is 1 um2."""
    pixel_um2 = (spec.mpp or 1.0) ** 2
    largest_um2 = spec.objects.max_area_um2 if spec.objects else None
    most_px = math.inf if largest_um2 is None else largest_um2 / pixel_um2 * (1 + ROUNDING)
    return max(1, math.ceil(spec.min_area_um2 / pixel_um2 * (1 - ROUNDING))), most_px


def without_sizes(labels_YX: Array, least_px: int, most_px: float = math.inf) -> Array:
    """Return labels (y, x) without objects below or above an area."""
    areas_px = np.bincount(labels_YX.ravel())
    return np.where(((areas_px >= least_px) & (areas_px <= most_px))[labels_YX], labels_YX, 0)


def split_heights(name: MapName | None, map_: Array) -> Array:
    """Return the heights by which objects are split: bytes of a map, for boundaries inverted."""
    return 255 - map_ if name == "boundary" else map_


def depth_units(depth: float) -> int:
    """Return a depth (0..1) in units of a byte, at least 1."""
    return max(1, round(255 * depth))


def split_by_map(labels_YX: Array, map_YX: Array, depth: int, longest_px: int = LARGEST_PX) -> Array:
    """Split each object at the dents between the extended maxima of a map.

    A dent must lie more than `depth` below both maxima. Pixels are flooded from the maxima downwards (scikit-image's
    `watershed`), each object in its own box: the order of equal pixels would else depend on other objects. Objects must
    not touch one another.

    Args:
        labels_YX: 8-connected objects (y, x), 0 is background.
        map_YX: Heights (y, x) as bytes.
        depth: In units of the bytes.
        longest_px: Objects with a longer box are not split.

    Returns:
        New labels (y, x).
    """
    inside_YX = np.pad(labels_YX > 0, 1)
    height_YX = np.where(inside_YX, np.pad(map_YX, 1).astype(np.int32) + 1, 0)  # all maps lie above the background
    rounded_YX = reconstruction(height_YX - depth, np.where(inside_YX, height_YX, -depth), footprint=np.ones((3, 3)))
    maxima_YX = label((local_maxima(rounded_YX) & inside_YX)[1:-1, 1:-1], connectivity=2)
    parts_YX, count = labels_YX.copy(), int(labels_YX.max())
    for number, box in enumerate(ndimage.find_objects(labels_YX), start=1):
        if box is None or max(side.stop - side.start for side in box) > longest_px:
            continue
        own_YX = labels_YX[box] == number
        seeds_YX = np.where(own_YX, maxima_YX[box], 0)
        if np.any((seeds_YX > 0) & (seeds_YX != seeds_YX.max())):
            basins_YX = watershed(-map_YX[box].astype(np.int32), seeds_YX, connectivity=2, mask=own_YX)
            parts_YX[box][own_YX] = basins_YX[own_YX] + count
    numbered_YX: Array = relabel_sequential(parts_YX)[0]
    return numbered_YX
