"""Objects of a whole image in memory, by scikit-image: what the blocks must equal, step by step.

Imports nothing from ``pipeline``. Class maps are uint8, 0 = background.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.measure import label
from skimage.morphology import closing, disk, opening

Array = NDArray[Any]

HOPS = {4: 1, 8: 2}


def smoothed(classes: Array, discs_px: Sequence[tuple[int, int]]) -> Array:
    """Each class's mask opened, then closed on background, the lowest class first."""
    opened = np.zeros_like(classes)
    for number, (radius, _) in enumerate(discs_px, start=1):
        opened[opening(classes == number, disk(radius), mode="ignore")] = number
    closed = opened.copy()
    for number, (_, radius) in enumerate(discs_px, start=1):
        closed[closing(opened == number, disk(radius), mode="ignore") & (closed == 0) & (opened == 0)] = number
    return closed


def numbered(classes: Array, connectivity: int) -> Array:
    """Objects of equal class in raster order of their first pixel."""
    return np.asarray(label(classes, background=0, connectivity=HOPS[connectivity]))
