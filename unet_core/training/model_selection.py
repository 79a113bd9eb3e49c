"""Selection of threshold and smallest object area by scores on annotated images.

Images are scored on what a user would get: mirrored edges, one whole pass in single precision, probabilities rounded to
bytes, the model's threshold, 8-connected components without those below the model's smallest area.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from skimage.measure import label

from unet_core.class_map import IGNORED, class_map
from unet_core.data.dataset_statistics import ClassMap
from unet_core.data.sampler import AnnotatedImage
from unet_core.metrics.overlap import Counts, object_counts, pixel_counts
from unet_core.spec import UNetSpec


def components(mask_YX: NDArray[np.bool_], least_px: int = 1) -> NDArray[np.integer]:
    """Label the 8-connected components of a mask (y, x); those below `least_px` pixels become background."""
    labels_YX: NDArray[np.integer] = label(mask_YX, connectivity=2)
    return np.where((np.bincount(labels_YX.ravel()) >= least_px)[labels_YX], labels_YX, 0)


def least_px(spec: UNetSpec) -> int:
    """Return the smallest object area in pixels; without a resolution a pixel is 1 um2."""
    return max(1, math.ceil(spec.min_area_um2 / (spec.mpp or 1.0) ** 2))


def score(
    probabilities: Iterable[NDArray[np.uint8]], cases: Iterable[AnnotatedImage], rules: Sequence[tuple[float, int]]
) -> list[tuple[Counts, Counts]]:
    """Count pixels and objects of one class for each rule, summed over images; labels are read once per image.

    Args:
        probabilities: Bytes (1, y, x) of each image.
        cases: The annotated images.
        rules: Pairs of threshold and smallest object in pixels.

    Returns:
        Counts of pixels and of objects for each rule.
    """
    totals = [(Counts(), Counts())] * len(rules)
    for probability_KYX, case in zip(probabilities, cases, strict=True):
        true_YX = np.asarray(case.labels_YX[:, :])
        unknown_YX = ClassMap(true_YX, case.classes_YX)[:, :] == IGNORED
        for i, (threshold, least) in enumerate(rules):
            found_YX = components(class_map(probability_KYX[:1], threshold) > 0, least)
            found_YX = np.where(unknown_YX, 0, found_YX)
            pixels, objects = totals[i]
            counted = pixel_counts(found_YX > 0, true_YX > 0), object_counts(found_YX, true_YX)
            totals[i] = pixels + counted[0], objects + counted[1]
    return totals


def best_threshold(probabilities: Sequence[NDArray[np.uint8]], cases: Sequence[AnnotatedImage]) -> float:
    """Return the threshold, in steps of 0.05, with the highest sum of object F1 and pixel Dice."""
    tried = [round(0.05 * step, 2) for step in range(4, 17)]
    return _best(tried, score(probabilities, cases, [(threshold, 1) for threshold in tried]))


def best_min_area(probabilities: Sequence[NDArray[np.uint8]], cases: Sequence[AnnotatedImage], spec: UNetSpec) -> float:
    """Return the smallest object area in um2 with the highest sum of F1 and Dice, at the spec's threshold.

    Candidates are 0 and 1 to 20 hundredths of the median annotated area (only 0 without annotations); of equals the
    smallest is returned.
    """
    areas_px = np.concatenate([_areas_px(np.asarray(case.labels_YX[:, :])) for case in cases])
    unit_um2 = float(np.median(areas_px)) / 100 * (spec.mpp or 1.0) ** 2 if len(areas_px) else 0.0
    tried = [round(unit_um2 * hundredths, 2) for hundredths in range(21)]
    least = [least_px(spec.model_copy(update={"min_area_um2": area_um2})) for area_um2 in tried]
    return _best(tried, score(probabilities, cases, [(spec.threshold or 0.5, one) for one in least]))


def _areas_px(labels_YX: NDArray[np.integer]) -> NDArray[np.integer]:
    """Return the pixels of each object."""
    areas_px: NDArray[np.integer] = np.unique(labels_YX[labels_YX != 0], return_counts=True)[1]
    return areas_px


def _best(tried: Sequence[float], counted: Sequence[tuple[Counts, Counts]]) -> float:
    """Return the first candidate with the highest sum of Dice and F1."""
    return max(zip(tried, counted, strict=True), key=lambda one: sum(counts.f1 for counts in one[1]))[0]
