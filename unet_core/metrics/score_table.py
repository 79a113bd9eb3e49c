"""Table of sums with one row per image, and the scores of any selection of rows.

Rows are added with weights before scores are computed. Weights of 1 give the pooled score, a row of the identity the
image's own, a patient's images the patient's, and the number of draws of each patient a resampled one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from unet_core.metrics.calibration import calibration_scores
from unet_core.metrics.overlap import Array, Scores, object_scores, pixel_scores
from unet_core.metrics.rand_info import region_scores
from unet_core.metrics.surface_distance import Distances

PIXELS, CALIBRATION, OBJECTS, ROOMS = "pixels", "calibration", "objects", "rooms"
_SCORES: dict[str, Callable[[Array], Scores]] = {
    PIXELS: pixel_scores,
    CALIBRATION: calibration_scores,
    OBJECTS: object_scores,
    ROOMS: region_scores,
}
LENGTHS = ("hd95",)
"""Scores that are lengths in px; smaller is better, as for errors."""
ERRORS = (*LENGTHS, "ece")


@dataclass(frozen=True, slots=True)
class ImageSums:
    """Sums of one image for one class, by kind (absent if a kind does not apply), and outline distances."""

    sums: dict[str, Array]
    distances: Distances


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of sums of one class: (n, ...) for n images or selections of them."""

    sums: dict[str, Array]
    distances: Distances

    @classmethod
    def of(cls, images: Sequence[ImageSums]) -> Self:
        """Stack images, one row each."""
        kinds = images[0].sums
        stacked = {kind: np.stack([image.sums[kind] for image in images]) for kind in kinds}
        return cls(stacked, Distances.stacked([image.distances for image in images]))

    def weighted(self, weights_RN: Array) -> Table:
        """Return weighted sums of rows; weights (rows, n)."""
        sums = {kind: weights_RN @ one for kind, one in self.sums.items()}
        counts = np.tensordot(weights_RN, self.distances.counts, 1)
        return Table(sums, Distances(self.distances.squared_px, counts, weights_RN @ self.distances.alone))

    def scores(self) -> Scores:
        """Return each score of every row (n,), NaN where undefined; lengths in px."""
        found: Scores = {}
        for kind, sums in self.sums.items():
            found |= _SCORES[kind](sums)
        return found | self.distances.scores()

    def empty(self) -> int:
        """Return the number of rows without true and predicted pixels, which the rule for empty masks scores."""
        return int((self.sums[PIXELS][:, :3].sum(axis=1) == 0).sum())


def class_mean(by_class: Sequence[Scores]) -> Scores:
    """Return the mean of each score over the classes for which it is defined."""
    names = list(dict.fromkeys(name for scores in by_class for name in scores))
    return {name: _mean([scores[name] for scores in by_class if name in scores]) for name in names}


def _mean(values: Sequence[Array]) -> Array:
    stacked = np.stack(values)
    defined = ~np.isnan(stacked)
    count = defined.sum(axis=0)
    total = np.where(defined, stacked, 0).sum(axis=0)
    return np.asarray(np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0))
