"""The paper's loss: pixel-wise cross-entropy, heavier on the thin background between touching objects.

Decision: the weight of a pixel is w_c + w0 * exp(-(d1 + d2)^2 / (2 sigma^2)) (equation 2) with w_c = 1, on background
only; d1 and d2 are the distances to the two nearest objects. Touching objects are first parted by one pixel each, since
labels that share an edge have no background between them to learn.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from unet_core.spec import UNetSpec

REACH_SIGMAS = 6  # beyond, the exponential is below 1.6e-8 of w0


def part_touching(labels_YX: NDArray[np.integer]) -> NDArray[np.integer]:
    """Return the labels with every pixel that has another object among its eight neighbours set to background."""
    nothing = np.iinfo(labels_YX.dtype).max
    smallest = ndimage.minimum_filter(np.where(labels_YX == 0, nothing, labels_YX), 3, mode="nearest")
    largest = ndimage.maximum_filter(labels_YX, 3, mode="nearest")
    return np.where(smallest == largest, labels_YX, 0).astype(labels_YX.dtype)


def separation_weights(labels_YX: NDArray[np.integer], w0: float = 10.0, sigma_px: float = 5.0) -> NDArray[np.float32]:
    """Return the weight map of the paper's equation 2, (y, x) float32, 1 or more everywhere.

    Distances are Euclidean, in pixels, to the nearest pixel of an object. Each object is measured in a window of
    6 sigma around it: what lies further away would add less than 1.6e-8 * w0.
    """
    nearest = np.full(labels_YX.shape, np.inf, np.float32)
    second = nearest.copy()
    reach = int(np.ceil(REACH_SIGMAS * sigma_px))
    for label, window in enumerate(ndimage.find_objects(labels_YX), start=1):
        if window is None:
            continue
        around = tuple(slice(max(0, axis.start - reach), axis.stop + reach) for axis in window)
        distance = ndimage.distance_transform_edt(labels_YX[around] != label).astype(np.float32)
        second[around] = np.minimum(second[around], np.maximum(nearest[around], distance))
        nearest[around] = np.minimum(nearest[around], distance)
    extra = w0 * np.exp(-((nearest + second) ** 2) / (2 * sigma_px**2))
    return (1 + np.where(labels_YX == 0, extra, 0)).astype(np.float32)


def weighted_cross_entropy(spec: UNetSpec, logits_NCHW: Tensor, target_NHW: Tensor, weight_NHW: Tensor) -> Tensor:
    """Return the weighted mean cross-entropy of class indices `target`, in fp32.

    A sigmoid head is asked one yes-or-no question for each foreground class; their cross-entropies are summed.
    """
    logits = logits_NCHW.float()
    if spec.head == "softmax":
        loss_NHW = functional.cross_entropy(logits, target_NHW, reduction="none")
    else:
        wanted = functional.one_hot(target_NHW, spec.classes)[..., 1:].movedim(-1, 1).float()
        loss_NHW = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum(dim=1)
    return (loss_NHW * weight_NHW).sum() / weight_NHW.sum()
