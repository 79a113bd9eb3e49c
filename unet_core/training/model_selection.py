"""Score a network on annotated images, in the way it will be used: what training chooses threshold and area by.

Decision: an image is judged by what a user would get from it: mirrored at its edges, one whole pass in single
precision, probabilities rounded to bytes, the model's own threshold, 8-connected components, those below the model's
own smallest area dropped. Nothing else is cleaned up.
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
    """Label the 8-connected components of a mask; those of fewer than `least_px` pixels become background."""
    labels_YX: NDArray[np.integer] = label(mask_YX, connectivity=2)
    return np.where((np.bincount(labels_YX.ravel()) >= least_px)[labels_YX], labels_YX, 0)


def least_px(spec: UNetSpec) -> int:
    """Return the pixels of the smallest object that counts; without a resolution a pixel is taken for 1 um2."""
    return max(1, math.ceil(spec.min_area_um2 / (spec.mpp or 1.0) ** 2))


def score(
    probabilities: Iterable[NDArray[np.uint8]], cases: Iterable[AnnotatedImage], rules: Sequence[tuple[float, int]]
) -> list[tuple[Counts, Counts]]:
    """Return the pixels' and the objects' counts, summed over images, at each threshold and smallest area.

    Each image's labels are read once.
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
    """Return the threshold, in steps of 0.05, with the best F1 of objects and Dice of pixels together."""
    tried = [round(0.05 * step, 2) for step in range(4, 17)]
    return _best(tried, score(probabilities, cases, [(threshold, 1) for threshold in tried]))


def best_min_area(probabilities: Sequence[NDArray[np.uint8]], cases: Sequence[AnnotatedImage], spec: UNetSpec) -> float:
    """Return the smallest area in um2, at the spec's threshold, with the best F1 and Dice together.

    Tried are 0 and 1 to 20 hundredths of the median annotated area, 0 alone where nothing is annotated; of equals the
    smallest wins.
    """
    areas_px = np.concatenate([_areas_px(np.asarray(case.labels_YX[:, :])) for case in cases])
    unit_um2 = float(np.median(areas_px)) / 100 * (spec.mpp or 1.0) ** 2 if len(areas_px) else 0.0
    tried = [round(unit_um2 * hundredths, 2) for hundredths in range(21)]
    least = [least_px(spec.model_copy(update={"min_area_um2": area_um2})) for area_um2 in tried]
    return _best(tried, score(probabilities, cases, [(spec.threshold or 0.5, one) for one in least]))


def _areas_px(labels_YX: NDArray[np.integer]) -> NDArray[np.integer]:
    """Return the pixels of each object, however large its number."""
    areas_px: NDArray[np.integer] = np.unique(labels_YX[labels_YX != 0], return_counts=True)[1]
    return areas_px


def _best(tried: Sequence[float], counted: Sequence[tuple[Counts, Counts]]) -> float:
    """Return the first of those with the highest sum of Dice and F1."""
    return max(zip(tried, counted, strict=True), key=lambda one: sum(counts.f1 for counts in one[1]))[0]
