"""How good a network is on images it does not learn from, while it learns.

Decision: it is judged as its user will meet it (mirrored edges, one whole pass in single precision, bytes, connected
components, nothing drawn at random), so validating leaves no trace in what is learnt. Of an image too large for one
pass, windows stand for the whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from unet_core.classify import class_map
from unet_core.evaluate import components, whole_pass
from unet_core.metrics import Counts, object_counts, pixel_counts
from unet_core.model import SegmentationNetwork
from unet_core.samples import Annotated

WINDOW_PX = 1024
LARGEST_PX = 2**22  # pixels of an image that is judged whole
THRESHOLD = 0.5  # until one is chosen

Thing = TypeVar("Thing")


def validate(model: SegmentationNetwork, seen: Sequence[Annotated]) -> dict[str, float]:
    """Return Dice, IoU and F1 of objects at IoU 0.5, pooled over images and foreground classes, at threshold 0.5."""
    pixels, objects = Counts(), Counts()
    for case in seen:
        found_YX, true_YX = class_map(whole_pass(model, case.image_CYX), THRESHOLD), case.class_map[:, :]
        for index in range(1, model.spec.classes):
            wanted_YX = true_YX == index
            pixels += pixel_counts(found_YX == index, wanted_YX)
            labels_YX = np.where(wanted_YX, np.asarray(case.labels_YX[:, :]), 0)
            objects += object_counts(components(found_YX == index), labels_YX)
    union = pixels.both + pixels.found_only + pixels.true_only
    return {"dice": pixels.f1, "iou": pixels.both / union if union else 1.0, "f1_50": objects.f1}


def views(cases: Sequence[Annotated], most: int) -> list[Annotated]:
    """Return at most so many images, or windows of large ones, chosen evenly; in memory."""
    chosen = evenly(cases, most)
    return [view for case in chosen for view in windows(case, most // len(chosen))]


def evenly(things: Sequence[Thing], most: int) -> list[Thing]:
    """Return at most so many of the things, from the first on, as far apart as can be."""
    count = min(len(things), most)
    return [things[i * len(things) // count] for i in range(count)]


def windows(case: Annotated, most: int) -> Iterator[Annotated]:
    """Yield the image itself, or at most so many windows of a large one, in memory."""
    height, width = case.labels_YX.shape
    if height * width <= LARGEST_PX:
        yield case
        return
    corners = [(y, x) for y in range(0, height, WINDOW_PX) for x in range(0, width, WINDOW_PX)]
    for y, x in evenly(corners, most):
        yield _cut(case, (slice(y, y + WINDOW_PX), slice(x, x + WINDOW_PX)))


def _cut(case: Annotated, box: tuple[slice, slice]) -> Annotated:
    return replace(
        case,
        image_CYX=np.asarray(case.image_CYX[(slice(None), *box)]),
        labels_YX=np.asarray(case.labels_YX[box]),
        classes_YX=None if case.classes_YX is None else np.asarray(case.classes_YX[box]),
    )
