"""Separation weights of the U-Net paper (equation 2): high on the thin background between objects.

On background w = 1 + w0 * exp(-(d1 + d2)^2 / (2 sigma^2)), with d1 and d2 the distances to the two nearest objects;
w = 1 where their sum exceeds 6 sigma (there less than 1.6e-8 of w0 is lost). So the weights of a window depend on the
window and that margin only, and an image larger than memory has the weights of its whole map. Touching objects of one
class are first separated by one pixel each, since they have no background between them; objects of different classes
are not.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unet_core.mirror import ArrayLike

REACH_SIGMAS = 6
PIECE_PX = 1024

_NEIGHBOURS = (
    (np.s_[:, :-1], np.s_[:, 1:]),
    (np.s_[:-1], np.s_[1:]),
    (np.s_[:-1, :-1], np.s_[1:, 1:]),
    (np.s_[:-1, 1:], np.s_[1:, :-1]),
)
"""Slices of pixels and of their neighbours: right, below, below right and below left."""


def part_touching(labels_YX: NDArray[np.integer], classes_YX: NDArray[np.integer] | None = None) -> NDArray[np.integer]:
    """Return the labels with every pixel that touches another object (8-connected) set to background.

    Args:
        labels_YX: Object ids (y, x), 0 is background.
        classes_YX: If given, only objects of the same class are separated.
    """
    touching = np.zeros(labels_YX.shape, bool)
    for here, there in _NEIGHBOURS:
        one, other = labels_YX[here], labels_YX[there]
        meet = (one != other) & (one != 0) & (other != 0)
        if classes_YX is not None:
            meet &= classes_YX[here] == classes_YX[there]
        touching[here] |= meet
        touching[there] |= meet
    return np.where(touching, 0, labels_YX).astype(labels_YX.dtype)


def separation_weights(labels_YX: NDArray[np.integer], w0: float = 10.0, sigma_px: float = 5.0) -> NDArray[np.float32]:
    """Return the weight map of equation 2 with w_c = 1, (y, x) float32, at least 1 everywhere.

    Distances are Euclidean, in pixels, to the nearest pixel of an object.
    """
    reach_px = REACH_SIGMAS * sigma_px
    together = _two_nearest(labels_YX, math.ceil(reach_px))
    extra = w0 * np.exp(-(together**2) / (2 * sigma_px**2))
    return np.where((labels_YX == 0) & (together <= reach_px), 1 + extra, 1).astype(np.float32)


def _two_nearest(labels_YX: NDArray[np.integer], reach_px: int) -> NDArray[np.float32]:
    """Return the sum of distances to the two nearest objects: correct up to `reach_px`, too large beyond.

    The distance to an object is computed in its bounding box enlarged by `reach_px`.
    """
    ids, dense = np.unique(labels_YX, return_inverse=True)
    dense_YX = dense.reshape(labels_YX.shape) + int(ids[0] != 0)
    nearest = np.full(labels_YX.shape, np.inf, np.float32)
    second = nearest.copy()
    for label, window in enumerate(ndimage.find_objects(dense_YX), start=1):
        around = tuple(slice(max(0, axis.start - reach_px), axis.stop + reach_px) for axis in window)
        distance = ndimage.distance_transform_edt(dense_YX[around] != label).astype(np.float32)
        second[around] = np.minimum(second[around], np.maximum(nearest[around], distance))
        nearest[around] = np.minimum(nearest[around], distance)
    return nearest + second


@dataclass(frozen=True, slots=True)
class SeparationWeights:
    """Weight map of an image with touching objects separated: an array-like (y, x), computed when it is read."""

    labels_YX: ArrayLike
    classes_YX: ArrayLike | None
    w0: float
    sigma_px: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Pixels along each axis."""
        return self.labels_YX.shape

    def __getitem__(self, key: tuple[slice, ...], /) -> NDArray[np.float32]:
        wanted = [range(*axis.indices(length)) for axis, length in zip(key, self.shape, strict=True)]
        if not self.w0:
            return np.ones([len(axis) for axis in wanted], np.float32)
        margin = math.ceil(
            REACH_SIGMAS * self.sigma_px
        )  # d1 is at least 1, which leaves the pixel that separates objects
        around = tuple(
            slice(max(0, axis.start - margin), min(length, axis.stop + margin))
            for axis, length in zip(wanted, self.shape, strict=True)
        )
        labels_YX = np.asarray(self.labels_YX[around])
        classes_YX = None if self.classes_YX is None else np.asarray(self.classes_YX[around])
        weights = separation_weights(part_touching(labels_YX, classes_YX), self.w0, self.sigma_px)
        return weights[tuple(slice(w.start - a.start, w.stop - a.start) for w, a in zip(wanted, around, strict=True))]

    def whole(self) -> NDArray[np.float32]:
        """Return the map of the whole image, computed piece by piece in bounded memory."""
        weights = np.empty(self.shape, np.float32)
        for y, x in itertools.product(*(range(0, length, PIECE_PX) for length in self.shape)):
            piece = (slice(y, y + PIECE_PX), slice(x, x + PIECE_PX))
            weights[piece] = self[piece]
        return weights
