"""Class of each pixel from stored probabilities.

Segmentation, scoring and training use this one rule. It acts on stored bytes, so the classes follow from the file.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

MAX_CLASSES = 255
THRESHOLD = 0.5
"""Threshold of a model that states none."""
IGNORED = 255
"""Class of a pixel without a known class: it is neither trained on nor scored."""


def threshold_byte(threshold: float) -> int:
    """Return the smallest byte that is not below a threshold (0..1)."""
    return math.ceil(255 * threshold)


def class_map(probability_KYX: Array, threshold: float) -> Array:
    """Return the class of each pixel (y, x), uint8, 0 = background.

    One class: foreground where the byte reaches the threshold. Several: the class with the largest byte, background
    having 255 minus the sum of the others; ties go to the lower class, background first.

    Args:
        probability_KYX: Stored bytes (k, y, x) of the foreground classes.
        threshold: Probability 0..1; used for one class only.
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
