"""The weight of each pixel in the paper's loss: heavy on the thin background between objects (equation 2).

Decision: w = 1 + w0 * exp(-(d1 + d2)^2 / (2 sigma^2)) on background, d1 and d2 being the distances to the two nearest
objects, and 1 where these add up to more than 6 sigma: less than 1.6e-8 of w0 is lost there. So the weights of a window
follow from the window and that margin, and an image larger than memory has the very weights of its whole map. Touching
objects are first parted by one pixel each, since labels that share an edge have no background between them to learn;
not so objects of different classes, which their classes tell apart.
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
"""Every pixel that has one, and its neighbour: to the right, below, and below on either side."""


def part_touching(labels_YX: NDArray[np.integer], classes_YX: NDArray[np.integer] | None = None) -> NDArray[np.integer]:
    """Return the labels with every pixel that has another object among its eight neighbours set to background.

    `classes_YX`: only objects of one class are parted.
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
    """Return the weight map of the paper's equation 2 with w_c = 1, (y, x) float32, 1 or more everywhere.

    Distances are Euclidean, in pixels, to the nearest pixel of an object.
    """
    reach_px = REACH_SIGMAS * sigma_px
    together = _two_nearest(labels_YX, math.ceil(reach_px))
    extra = w0 * np.exp(-(together**2) / (2 * sigma_px**2))
    return np.where((labels_YX == 0) & (together <= reach_px), 1 + extra, 1).astype(np.float32)


def _two_nearest(labels_YX: NDArray[np.integer], reach_px: int) -> NDArray[np.float32]:
    """Return the distances to the two nearest objects, added: right up to `reach_px`, too large or infinite beyond.

    Each object is measured in the window that it can reach.
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
    """The weight map of an image, touching objects parted, computed where it is read: an array-like (y, x)."""

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
        margin = math.ceil(REACH_SIGMAS * self.sigma_px)  # d1 is at least 1: there is room for what parts an object
        around = tuple(
            slice(max(0, axis.start - margin), min(length, axis.stop + margin))
            for axis, length in zip(wanted, self.shape, strict=True)
        )
        labels_YX = np.asarray(self.labels_YX[around])
        classes_YX = None if self.classes_YX is None else np.asarray(self.classes_YX[around])
        weights = separation_weights(part_touching(labels_YX, classes_YX), self.w0, self.sigma_px)
        return weights[tuple(slice(w.start - a.start, w.stop - a.start) for w, a in zip(wanted, around, strict=True))]

    def whole(self) -> NDArray[np.float32]:
        """Return the map of the whole image, computed piece by piece: what that takes does not grow with the image."""
        weights = np.empty(self.shape, np.float32)
        for y, x in itertools.product(*(range(0, length, PIECE_PX) for length in self.shape)):
            piece = (slice(y, y + PIECE_PX), slice(x, x + PIECE_PX))
            weights[piece] = self[piece]
        return weights
