"""Validation of a network during training.

Scores are computed as for a user (mirrored edges, one whole pass in single precision, bytes, connected components,
nothing random), so validation does not influence training. Windows represent an image that is too large for one pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from unet_core.data.sampler import AnnotatedImage
from unet_core.mirror import ArrayLike, Square
from unet_core.networks.unet import SegmentationNetwork
from unet_core.networks.whole_pass import whole_outputs
from unet_core.training.model_selection import score, unselected

WINDOW_PX = 1024
LARGEST_PX = 2**22  # pixels of an image that is validated whole
MOST_WINDOWS = 16  # per image; each is as large as sixteen small images

Element = TypeVar("Element")


def validate(model: SegmentationNetwork, seen: Sequence[AnnotatedImage]) -> dict[str, float]:
    """Return Dice, IoU and F1 of objects, pooled over images and foreground classes, with unselected settings.

    An object counts as found at an IoU of 0.5 with its outline, or within 4 um of its dot where images have dots.
    """
    outputs = (whole_outputs(model, case.image_CYX) for case in seen)
    ((pixels, objects),) = score(outputs, seen, [unselected(model.spec)])
    union = pixels.both + pixels.found_only + pixels.true_only
    return {"dice": pixels.f1, "iou": pixels.both / union if union else 1.0, "f1_50": objects.f1}


def views(cases: Sequence[AnnotatedImage], most: int) -> list[AnnotatedImage]:
    """Return at most `most` images, or windows of large ones, evenly chosen."""
    chosen = evenly_spaced(cases, most)
    return [view for case in chosen for view in windows(case, min(MOST_WINDOWS, most // len(chosen)))]


def evenly_spaced(elements: Sequence[Element], most: int) -> list[Element]:
    """Return at most `most` elements, evenly spaced from the first."""
    count = min(len(elements), most)
    return [elements[i * len(elements) // count] for i in range(count)]


def windows(case: AnnotatedImage, most: int) -> Iterator[AnnotatedImage]:
    """Yield the image, or at most `most` windows of a large one, half of them with objects or dots if there are any."""
    height, width = case.labels_YX.shape
    if height * width <= LARGEST_PX:
        yield case
        return
    corners = list(itertools.product(range(0, height, WINDOW_PX), range(0, width, WINDOW_PX)))
    boxes = [Square(y, x, min(y + WINDOW_PX, height), min(x + WINDOW_PX, width)) for y, x in corners]
    chosen = evenly_spaced([box for box in boxes if _is_marked(case, box)], -(-most // 2))
    bare = [box for box in boxes if box not in chosen]
    for box in sorted([*chosen, *evenly_spaced(bare, most - len(chosen))], key=lambda one: (one.y0, one.x0)):
        yield _cut(case, box)


def _is_marked(case: AnnotatedImage, box: Square) -> bool:
    """Return whether a window has an object or a dot."""
    dots_N3 = case.points_in(box)
    return case.census().holds_object(box.y0, box.x0, WINDOW_PX) or (dots_N3 is not None and len(dots_N3) > 0)


def _cut(case: AnnotatedImage, box: Square) -> AnnotatedImage:
    classes = None if case.classes_YX is None else _part(case.classes_YX, box)
    image, labels = _part(case.image_CYX, box), _part(case.labels_YX, box)
    return replace(case, image_CYX=image, labels_YX=labels, classes_YX=classes, points_N3=case.points_in(box))


def _part(array: ArrayLike, box: Square) -> ArrayLike:
    """Return a box of an array, lazily if the array is not in memory."""
    part = ImageCrop(array, box)
    return part[(slice(None),) * len(array.shape)] if isinstance(array, np.ndarray) else part


@dataclass(frozen=True, slots=True)
class ImageCrop:
    """A box of an array-like (..., y, x) that is read when it is sliced."""

    whole: ArrayLike
    box: Square

    @property
    def shape(self) -> tuple[int, ...]:
        """Pixels along each axis."""
        return (*self.whole.shape[:-2], self.box.y1 - self.box.y0, self.box.x1 - self.box.x0)

    def __getitem__(self, key: tuple[slice, ...], /) -> NDArray[Any]:
        spans = [one.indices(length) for one, length in zip(key[-2:], self.shape[-2:], strict=True)]
        starts = zip((self.box.y0, self.box.x0), spans, strict=True)
        inside = (slice(start + first, start + max(first, last)) for start, (first, last, _) in starts)
        return np.asarray(self.whole[(*key[:-2], *inside)])
