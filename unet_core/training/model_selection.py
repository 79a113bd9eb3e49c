"""Selection of the settings with which outputs become objects, by scores on annotated images.

Images are scored on what a user would get: mirrored edges, one whole pass in single precision, outputs rounded to
bytes, and the objects that the settings give.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from unet_core.class_map import IGNORED
from unet_core.data.sampler import AnnotatedImage
from unet_core.metrics.centres import PixelSums, match_centres, within_px
from unet_core.metrics.overlap import Counts, object_counts, pixel_counts
from unet_core.object_labels import area_range_px, label_objects, without_sizes
from unet_core.spec import SEED_MAPS, ObjectSettings, UNetSpec

DEPTHS = (0.02, 0.05, 0.08, 0.12, 0.16, 0.22, 0.3)
LARGEST = 4.0
"""Largest object over the 99.5th percentile of annotated areas."""

Scores = tuple[Counts, Counts]
"""Pixels of outlined images; objects of outlined images and, of images with dots, centres."""


def least_px(spec: UNetSpec) -> int:
    """Return the smallest object area in pixels; without a resolution a pixel is 1 um2."""
    return area_range_px(spec)[0]


def unselected(spec: UNetSpec) -> UNetSpec:
    """Return the spec with the settings that apply before the selection: threshold 0.5, its first map."""
    settings = next(iter(_methods(spec)), None)
    return spec.model_copy(update={"threshold": None, "min_area_um2": 0.0, "objects": settings})


def score(
    outputs: Iterable[NDArray[np.uint8]], cases: Iterable[AnnotatedImage], tried: Sequence[UNetSpec]
) -> list[Scores]:
    """Count pixels and objects for each of several settings, summed over images and classes.

    Args:
        outputs: Bytes (k + m, y, x) of each image.
        cases: The annotated images.
        tried: Specs that differ in threshold, areas and object settings.

    Returns:
        Counts of pixels and of objects for each spec.
    """
    totals: list[Scores] = [(Counts(), Counts())] * len(tried)
    for output_CYX, case in zip(outputs, cases, strict=True):
        labelled: dict[UNetSpec, tuple[NDArray[np.integer], NDArray[np.uint8]]] = {}
        for i, spec in enumerate(tried):
            every = _of_any_size(spec)
            if every not in labelled:
                labelled[every] = label_objects(output_CYX, every)
            labels_YX, classes_YX = labelled[every]
            found = _score(without_sizes(labels_YX, *area_range_px(spec)), classes_YX, case, spec)
            totals[i] = totals[i][0] + found[0], totals[i][1] + found[1]
    return totals


def _of_any_size(spec: UNetSpec) -> UNetSpec:
    objects = spec.objects and spec.objects.model_copy(update={"max_area_um2": None})
    return spec.model_copy(update={"min_area_um2": 0.0, "objects": objects})


def _score(
    found_YX: NDArray[np.integer], classes_YX: NDArray[np.uint8], case: AnnotatedImage, spec: UNetSpec
) -> Scores:
    true_YX, labels_YX = case.class_map[:, :], np.asarray(case.labels_YX[:, :])
    found_YX = np.where(true_YX == IGNORED, 0, found_YX)
    pixels, objects = Counts(), Counts()
    for number in range(1, spec.classes):
        mine_YX = np.where(classes_YX == number, found_YX, 0)
        class_YX = true_YX == number
        true_mine_YX = np.where(class_YX, labels_YX, 0)
        if case.points_N3 is not None:
            dots = case.points_N3[case.points_N3[:, 2] == number, :2]
            annotated_N2 = np.concatenate((PixelSums.of(true_mine_YX).centres, dots))
            match = match_centres(PixelSums.of(mine_YX).centres, annotated_N2, within_px(spec.mpp))
            both, found, true = match.sums.astype(int).tolist()
            objects += Counts(both, found - both, true - both)
        else:
            pixels += pixel_counts(mine_YX > 0, class_YX)
            objects += object_counts(mine_YX, true_mine_YX)
    return pixels, objects


def select_objects(outputs: Sequence[NDArray[np.uint8]], cases: Sequence[AnnotatedImage], spec: UNetSpec) -> UNetSpec:
    """Return the spec with the object settings, threshold and areas of the highest sum of object F1 and pixel Dice.

    Each is chosen with those before it, at first with a threshold of 0.5: a threshold that is chosen first, with seeds
    that split too much, becomes too high. A network for several classes has no threshold and no smallest area; the
    largest probability decides. The smallest area is 0 or 1 to 20 hundredths of the median annotated area; of equals
    the first is chosen. A network with maps also gets a largest area.
    """
    spec = unselected(spec)
    spec = _best(outputs, cases, [spec.model_copy(update={"objects": one}) for one in _settings(spec)])
    if spec.foreground == 1:
        tried = [round(0.05 * step, 2) for step in range(4, 17)]
        spec = _best(outputs, cases, [spec.model_copy(update={"threshold": one}) for one in tried])
    areas_px = np.concatenate([_areas_px(np.asarray(case.labels_YX[:, :])) for case in cases])
    pixel_um2 = (spec.mpp or 1.0) ** 2
    if spec.foreground == 1:
        unit_um2 = float(np.median(areas_px)) / 100 * pixel_um2 if len(areas_px) else 0.0
        tried = [round(unit_um2 * hundredths, 2) for hundredths in range(21)]
        spec = _best(outputs, cases, [spec.model_copy(update={"min_area_um2": one}) for one in tried])
    if spec.maps and len(areas_px):
        largest_um2 = math.ceil(LARGEST * float(np.quantile(areas_px, 0.995)) * pixel_um2)
        settings = (spec.objects or ObjectSettings()).model_copy(update={"max_area_um2": float(largest_um2)})
        spec = spec.model_copy(update={"objects": settings})
    return spec


def _settings(spec: UNetSpec) -> list[ObjectSettings | None]:
    """The settings that are tried."""
    return [None, *(one.model_copy(update={"depth": depth}) for one in _methods(spec) for depth in DEPTHS)]


def _methods(spec: UNetSpec) -> list[ObjectSettings]:
    """The methods that split objects by a map of the network."""
    seeds = [ObjectSettings(method="seeds", source=name) for name in SEED_MAPS if name in spec.maps]
    return [*seeds, *([ObjectSettings(method="boundary")] if "boundary" in spec.maps else [])]


def _best(outputs: Sequence[NDArray[np.uint8]], cases: Sequence[AnnotatedImage], tried: Sequence[UNetSpec]) -> UNetSpec:
    """Return the first spec with the highest sum of Dice and F1.

    Without an outlined object there is no Dice: a single false pixel in an empty image would decide.
    """
    if len(tried) == 1:
        return tried[0]

    def merit(counted: Scores) -> float:
        pixels, objects = counted
        return objects.f1 + (pixels.f1 if pixels.both + pixels.true_only else 0)

    counted = score(outputs, cases, tried)
    return max(zip(tried, counted, strict=True), key=lambda one: merit(one[1]))[0]


def _areas_px(labels_YX: NDArray[np.integer]) -> NDArray[np.integer]:
    """Return the pixels of each object."""
    areas_px: NDArray[np.integer] = np.unique(labels_YX[labels_YX != 0], return_counts=True)[1]
    return areas_px
