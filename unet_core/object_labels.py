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
from skimage.segmentation import watershed

from unet_core.class_map import THRESHOLD, class_map
from unet_core.spec import ObjectSettings, UNetSpec

Array = NDArray[Any]

LARGEST_PX = 1024
"""Objects with a longer box are not split."""


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
    if settings.method == "seeds":
        map_YX = outputs_CYX[spec.foreground + spec.maps.index(settings.source)]
        labels_YX = split_by_map(labels_YX, map_YX, depth_units(settings.depth))
    labels_YX = without_sizes(labels_YX, *area_range_px(spec))
    return labels_YX, np.where(labels_YX > 0, classes_YX, 0)


def area_range_px(spec: UNetSpec) -> tuple[int, float]:
    """Return the smallest and the largest area in pixels; without a resolution a pixel is 1 um2."""
    pixel_um2 = (spec.mpp or 1.0) ** 2
    largest_um2 = spec.objects.max_area_um2 if spec.objects else None
    most_px = math.inf if largest_um2 is None else largest_um2 / pixel_um2
    return max(1, math.ceil(spec.min_area_um2 / pixel_um2)), most_px


def without_sizes(labels_YX: Array, least_px: int, most_px: float = math.inf) -> Array:
    """Return labels (y, x) without objects below or above an area."""
    areas_px = np.bincount(labels_YX.ravel())
    return np.where(((areas_px >= least_px) & (areas_px <= most_px))[labels_YX], labels_YX, 0)


def depth_units(depth: float) -> int:
    """Return a depth (0..1) in units of a byte, at least 1."""
    return max(1, round(255 * depth))


def split_by_map(labels_YX: Array, map_YX: Array, depth: int) -> Array:
    """Split each object at the dents between the extended maxima of a map.

    Each object is processed in its own box, without its surroundings. A dent must lie more than `depth` below both
    maxima. Pixels are flooded from the maxima downwards (scikit-image's `watershed`).

    Args:
        labels_YX: Objects (y, x), 0 is background.
        map_YX: Bytes (y, x).
        depth: In units of the bytes.

    Returns:
        New labels (y, x).
    """
    parts_YX = np.zeros(labels_YX.shape, np.int32)
    count = 0
    for number, box in enumerate(ndimage.find_objects(labels_YX), start=1):
        if box is None:
            continue
        inside = np.pad(labels_YX[box] == number, 1)
        basins = _basins(np.pad(map_YX[box], 1).astype(np.int32), inside, depth)[1:-1, 1:-1]
        parts_YX[box] += np.where(basins > 0, basins + count, 0)
        count += int(basins.max())
    return parts_YX


def _basins(height_YX: Array, inside: Array, depth: int) -> Array:
    """Parts of one object, numbered from 1."""
    whole = inside.astype(np.int32)
    if max(inside.shape) - 2 > LARGEST_PX:
        return whole
    height_YX = np.where(inside, height_YX + 1, 0)  # pixels outside lie below the lowest pixel inside
    if label(local_maxima(height_YX) & inside, connectivity=2).max() <= 1:
        return whole
    rounded = reconstruction(height_YX - depth, np.where(inside, height_YX, -depth), footprint=np.ones((3, 3)))
    maxima = label(local_maxima(rounded) & inside, connectivity=2)
    if maxima.max() <= 1:
        return whole
    return np.asarray(watershed(-height_YX, maxima, connectivity=2, mask=inside))
