"""Open and close the mask of each class by a disc, before objects are labelled.

Equal to ``skimage.morphology.binary_opening`` and ``binary_closing`` with ``disk(radius)`` and their default mode at
the image's border ("ignore"): the disc counts as far as it lies in the image, so nothing is eroded from outside it. An
array that is read ``halo_px`` larger on every side that is not the slide's border, and then cropped, has the pixels of
the whole slide.
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
    """Radii of the discs for each class.

    Attributes:
        discs_px: For each class from 1 the radii (opening, closing) in pixels; 0 leaves the mask unchanged.
    """

    discs_px: tuple[tuple[int, int], ...] = ()

    @property
    def halo_px(self) -> int:
        """Largest distance at which a pixel matters: opening and closing each reach twice the radius of their disc."""
        return sum(2 * max(radii) for radii in zip(*self.discs_px, strict=True))

    def of_classes(self, classes_YX: Array) -> Array:
        """Open, then close, the mask of each class.

        Opened pixels become background. Closing fills background only and uses the map after opening; a pixel that
        several classes would fill gets the lowest of them.

        Args:
            classes_YX: Class of each pixel (uint8), 0 = background.

        Returns:
            The new class map (uint8).
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
    """Pixels of a mask that are covered by a disc inside the mask (bool)."""
    return ~eroded(~eroded(mask_YX, radius_px), radius_px)


def closing(mask_YX: Array, radius_px: int) -> Array:
    """A mask and the gaps into which no disc outside the mask fits (bool)."""
    return eroded(~eroded(~mask_YX, radius_px), radius_px)


def eroded(mask_YX: Array, radius_px: int) -> Array:
    """Pixels around which a disc, as far as it lies in the image, is all mask (bool).

    The disc is a stack of rows. The mask is eroded along x by each half width of the disc in turn, one pixel more each
    time, and combined with the rows at the distance of that half width: about 3 radius_px passes over bytes.
    ``skimage.morphology.isotropic_erosion`` gives the same pixels from a distance transform, but takes 0.5 s for 2048 x
    2048 pixels where this function takes 0.007 s (radius 1) to 0.07 s (radius 20).
    """
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
    """The mask eroded by one pixel to the left and right."""
    answer = mask_YX.copy()
    answer[:, 1:] &= mask_YX[:, :-1]
    answer[:, :-1] &= mask_YX[:, 1:]
    return answer
