"""Opening and closing of each class's mask by a disc, before objects are labelled: arithmetic on one array.

Equal to ``skimage.morphology.binary_opening`` and ``binary_closing`` with ``disk(radius)``, whose default at the
image's border ("ignore") is kept: the disc counts as far as it lies in the image, so nothing is eaten from beyond it.
The one decision made here: whoever reads an array ``halo_px`` larger than needed on every side that is not the slide's
border, and crops, has the pixels of the whole slide.

A disc is a stack of rows. So a mask is eroded along the rows by each half width of the disc in turn, one pixel more
than the last, and the rows that the disc has of this half width are met: about 3 r passes over bytes, not r².
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Morphology:
    """For each class from 1 the radii in pixels of the discs that open, then close its mask; 0 leaves it as it is."""

    discs_px: tuple[tuple[int, int], ...] = ()

    @property
    def halo_px(self) -> int:
        """How far away a pixel can matter: opening and closing look twice as far as their disc reaches."""
        return sum(2 * max(radii) for radii in zip(*self.discs_px, strict=True))

    def of_classes(self, classes_YX: Array) -> Array:
        """A class map (uint8, 0 = background) with the mask of each class opened, then closed.

        What opening removes becomes background. Closing fills background only, judged on the map as it was opened; what
        several classes would fill is the lowest one's.
        """
        if not self.halo_px or not classes_YX.any():
            return classes_YX
        opened = np.zeros_like(classes_YX)
        for number, (radius, _) in enumerate(self.discs_px, start=1):
            opened += opening(classes_YX == number, radius) * np.uint8(number)
        closed = opened.copy()
        for number, (_, radius) in reversed(list(enumerate(self.discs_px, start=1))):
            if radius:
                np.copyto(closed, np.uint8(number), where=closing(opened == number, radius) & (opened == 0))
        return closed


def opening(mask_YX: Array, radius_px: int) -> Array:
    """The pixels of a mask that a disc inside the mask covers, wherever it fits."""
    return ~eroded(~eroded(mask_YX, radius_px), radius_px)


def closing(mask_YX: Array, radius_px: int) -> Array:
    """The mask and the gaps into which a disc outside the mask does not fit."""
    return eroded(~eroded(~mask_YX, radius_px), radius_px)


def eroded(mask_YX: Array, radius_px: int) -> Array:
    """The pixels around which a disc, as far as it lies in the image, is all mask (bool)."""
    answer, row = mask_YX.copy(), mask_YX
    reach = 0
    for dy in range(radius_px, -1, -1):
        half_width = isqrt(radius_px**2 - dy**2)
        for _ in range(half_width - reach):
            row = _one_pixel_less(row)
        reach = half_width
        if dy < len(row):
            answer[dy:] &= row[: len(row) - dy]
            answer[: len(row) - dy] &= row[dy:]
    return answer


def _one_pixel_less(mask_YX: Array) -> Array:
    """Eroded by one pixel to the left and right."""
    answer = mask_YX.copy()
    answer[:, 1:] &= mask_YX[:, :-1]
    answer[:, :-1] &= mask_YX[:, 1:]
    return answer
