"""From stored probabilities to the class of each pixel: the one rule by which a result, a score and a training decide.

Decision: it is taken on bytes, as they lie on disk, so that nobody can come to another class from the same file.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

MAX_CLASSES = 255
IGNORED = 255
"""The class of a pixel of which nobody knows the class: nothing is learnt and nothing is judged there."""


def threshold_byte(threshold: float) -> int:
    """Return the smallest byte, of 255, that is not below a threshold."""
    return math.ceil(255 * threshold)


def class_map(probability_KYX: Array, threshold: float) -> Array:
    """Class of each pixel (uint8, 0 = background) from stored probabilities (uint8, foreground classes only).

    One class: foreground from the threshold on. Several: the largest byte, where background has what the sum leaves of
    255; ties go to the lower class, background first (the threshold is not used).
    """
    if len(probability_KYX) > MAX_CLASSES:
        raise ValueError(f"expected at most {MAX_CLASSES} foreground classes, found {len(probability_KYX)}")
    if len(probability_KYX) == 1:
        return np.asarray(probability_KYX[0] >= threshold_byte(threshold)).view(np.uint8)
    total = probability_KYX.sum(axis=0, dtype=np.uint16)
    largest = (255 - np.minimum(total, 255)).astype(np.uint8)
    classes = np.zeros(largest.shape, np.uint8)
    for number, plane in enumerate(probability_KYX, start=1):
        classes[plane > largest] = number
        np.maximum(largest, plane, out=largest)
    return classes
