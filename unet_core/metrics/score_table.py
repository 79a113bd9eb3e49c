"""Table of sums with one row per image, and the scores of any selection of rows.

Rows are added with weights before scores are computed. Weights of 1 give the pooled score, a row of the identity the
image's own, a patient's images the patient's, and the number of draws of each patient a resampled one.

Some images lack some kinds of sums: those annotated with dots have no outlines. A score is undefined for a selection in
which no image has its sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from unet_core.metrics.calibration import calibration_scores
from unet_core.metrics.centres import centre_scores
from unet_core.metrics.overlap import Array, Scores, object_scores, pixel_scores
from unet_core.metrics.rand_info import region_scores
from unet_core.metrics.surface_distance import Distances

PIXELS, CALIBRATION, OBJECTS, ROOMS, CENTRES = "pixels", "calibration", "objects", "rooms", "centres"
DISTANCES = "distances"
_SCORES: dict[str, Callable[[Array], Scores]] = {
    PIXELS: pixel_scores,
    CALIBRATION: calibration_scores,
    OBJECTS: object_scores,
    ROOMS: region_scores,
    CENTRES: centre_scores,
}
LENGTHS = ("hd95",)
"""Scores that are lengths in px; smaller is better, as for errors."""
ERRORS = (*LENGTHS, "ece")


@dataclass(frozen=True, slots=True)
class ImageSums:
    """Sums of one image for one class, by kind (absent if a kind does not apply), and distances of outlines, if any."""

    sums: dict[str, Array]
    distances: Distances | None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of sums of one class: (n, ...) for n images or selections of them.

    Attributes:
        sums: Sums by kind; 0 for images without them.
        distances: Distances of outlines.
        images: Number of images that have the sums, by kind (n,).
    """

    sums: dict[str, Array]
    distances: Distances
    images: dict[str, Array]

    @classmethod
    def of(cls, images: Sequence[ImageSums]) -> Self:
        """Stack images, one row each."""
        shapes = {kind: one.shape for image in images for kind, one in image.sums.items()}
        stacked = {
            kind: np.stack([image.sums.get(kind, np.zeros(shape)) for image in images])
            for kind, shape in shapes.items()
        }
        held = {kind: np.array([float(kind in image.sums) for image in images]) for kind in shapes}
        held[DISTANCES] = np.array([float(image.distances is not None) for image in images])
        distances = [Distances.none() if image.distances is None else image.distances for image in images]
        return cls(stacked, Distances.stacked(distances), held)

    def weighted(self, weights_RN: Array) -> Table:
        """Return weighted sums of rows; weights (rows, n)."""
        sums = {kind: weights_RN @ one for kind, one in self.sums.items()}
        counts = np.tensordot(weights_RN, self.distances.counts, 1)
        distances = Distances(self.distances.squared_px, counts, weights_RN @ self.distances.alone)
        return Table(sums, distances, {kind: weights_RN @ one for kind, one in self.images.items()})

    def scores(self) -> Scores:
        """Return each score of every row (n,), NaN where undefined; lengths in px."""
        return {
            name: np.where(self.images[kind] > 0, values, np.nan)
            for kind, scores in self._by_kind()
            for name, values in scores.items()
        }

    def applies(self) -> dict[str, NDArray[np.bool_]]:
        """Return for each score the rows (n,) whose images have its sums, also where the score is undefined."""
        return {name: self.images[kind] > 0 for kind, scores in self._by_kind() for name in scores}

    def _by_kind(self) -> Iterator[tuple[str, Scores]]:
        for kind, sums in self.sums.items():
            yield kind, _SCORES[kind](sums)
        if self.images[DISTANCES].any():
            yield DISTANCES, self.distances.scores()

    def empty(self) -> int:
        """Return the number of rows without true and predicted objects, which the rule for empty masks scores."""
        nothing = np.zeros(len(self.images[DISTANCES]), np.bool_)
        for kind, counts in ((CENTRES, slice(None)), (PIXELS, slice(3))):  # pixels decide where there are outlines
            if kind in self.sums:
                nothing = np.where(self.images[kind] > 0, self.sums[kind][:, counts].sum(axis=1) == 0, nothing)
        return int(nothing.sum())


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
