"""Distances between predicted and true outlines: HD95 and surface Dice.

An outline consists of the mask pixels with an edge neighbour outside the mask (beyond the image is outside). A distance
is from a pixel centre to the nearest pixel of the other outline. Outlines are points in a k-d tree, so memory grows
with the outlines and not with the image. Squared distances are integers; their counts add over images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from unet_core.metrics.overlap import Array, Scores, ratio

TOLERANCE_PX = 2.0
"""Surface Dice: largest distance of an outline pixel that counts as correct."""
PERCENT = 95


def outline(padded_YX: NDArray[np.bool_]) -> Array:
    """Return the pixels of a mask's outline, (n, 2) as (y, x).

    Args:
        padded_YX: The mask with one more pixel on each side, False beyond the image; (0, 0) is its first inner pixel.
    """
    inner = padded_YX[1:-1, 1:-1]
    enclosed = padded_YX[:-2, 1:-1] & padded_YX[2:, 1:-1] & padded_YX[1:-1, :-2] & padded_YX[1:-1, 2:]
    points: Array = np.argwhere(inner & ~enclosed)
    return points


@dataclass(frozen=True, slots=True)
class Distances:
    """Counts of each squared distance (px), from predicted outlines to true ones (0) and back (1).

    Attributes:
        squared_px: Distinct squared distances (u,).
        counts: Outline pixels at each distance (..., 2, u).
        alone: Outline pixels (..., 2) of images in which the other outline is empty.
    """

    squared_px: Array
    counts: Array
    alone: Array

    @classmethod
    def none(cls) -> Self:
        """No outlines."""
        return cls(np.zeros(0), np.zeros((2, 0)), np.zeros(2))

    @classmethod
    def between(cls, found: Array, true: Array) -> Self:
        """Measure the outlines of one image."""
        if not len(found) or not len(true):
            return cls(np.zeros(0), np.zeros((2, 0)), np.array([len(found), len(true)], np.float64))
        there, back = (_squared(a, b) for a, b in ((found, true), (true, found)))
        squared = np.unique(np.concatenate((there, back)))
        counts = [np.bincount(np.searchsorted(squared, one), minlength=len(squared)) for one in (there, back)]
        return cls(squared.astype(np.float64), np.stack(counts).astype(np.float64), np.zeros(2))

    @classmethod
    def stacked(cls, cases: Sequence[Self]) -> Self:
        """Stack images, one row each, over all distances that occur in any of them."""
        squared = np.unique(np.concatenate([case.squared_px for case in cases]))
        counts = np.zeros((len(cases), 2, len(squared)))
        for row, case in zip(counts, cases, strict=True):
            row[:, np.searchsorted(squared, case.squared_px)] = case.counts
        return cls(squared, counts, np.stack([case.alone for case in cases]))

    def scores(self) -> Scores:
        """Return HD95 in px, the larger of the two directions, and surface Dice within `TOLERANCE_PX`.

        HD95 omits images in which only one of the two has an outline; surface Dice is 0 there.
        """
        points = self.counts.sum(axis=-1)
        nothing = (points + self.alone).sum(axis=-1) == 0
        within = self.counts[..., self.squared_px <= TOLERANCE_PX**2].sum(axis=(-2, -1))
        surface = ratio(within, (points + self.alone).sum(axis=-1), nothing)
        return {"hd95": self._percentile(points, nothing), "surface_dice": surface}

    def _percentile(self, points: Array, nothing: Array) -> Array:
        """Return the 95th percentile, the larger of both directions, interpolated as np.percentile."""
        if not len(self.squared_px):
            return np.where(nothing, 0.0, np.nan)
        upto, px = self.counts.cumsum(axis=-1), np.sqrt(self.squared_px)
        position = np.maximum(points - 1, 0) * PERCENT / 100
        low, high = (px[(upto > at[..., None]).argmax(axis=-1)] for at in (np.floor(position), np.ceil(position)))
        value = (low + (high - low) * (position % 1)).max(axis=-1)
        return ratio(value, np.where(points.min(axis=-1) > 0, 1.0, 0.0), nothing, perfect=0.0)


def _squared(sources: Array, targets: Array) -> Array:
    distance, _ = KDTree(targets).query(sources)
    return np.asarray(np.rint(distance**2), np.int64)
