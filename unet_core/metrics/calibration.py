"""Calibration of stored probabilities.

Probabilities are evaluated as stored bytes, in ten bins of equal width, each class against the rest. Sums are integers,
so they add over images without rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.metrics.overlap import Array, Scores, ratio

BINS = 10
STARTS = np.array([-(-256 * number // BINS) for number in range(BINS)])
"""The first byte of each bin: 256 * bin / 10, rounded up."""


def calibration_sums(probability_YX: NDArray[np.uint8], true_YX: NDArray[np.bool_]) -> Array:
    """Return for each bin its pixels, the sum of their bytes and the pixels of the class: (30,)."""
    by_byte = np.bincount(probability_YX.ravel(), minlength=256)
    true_by_byte = np.bincount(probability_YX[true_YX], minlength=256)
    sums = (by_byte, by_byte * np.arange(256), true_by_byte)
    return np.concatenate([np.add.reduceat(one, STARTS) for one in sums]).astype(np.float64)


def calibration_scores(sums: Array) -> Scores:
    """Return the expected calibration error of sums (..., 30).

    Sum over bins of (pixels in bin / pixels) * |mean probability - share of the class| (Guo et al. 2017,
    arXiv:1706.04599, equation 3, for the class's probability instead of the largest).
    """
    pixels, stored, true = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, BINS), -2, 0)
    total = pixels.sum(axis=-1)
    return {"ece": ratio(np.abs(stored / 255 - true).sum(axis=-1), total, np.zeros(total.shape, bool))}


def reliability(sums: Array) -> dict[str, list[Any]]:
    """Return the bins of a reliability plot from sums (30,): pixels, mean probability, share; None where empty."""
    pixels, stored, true = sums.reshape(3, BINS)
    nothing = np.zeros(BINS, bool)
    shares = {"probability": ratio(stored / 255, pixels, nothing), "share": ratio(true, pixels, nothing)}
    plain = {name: [None if np.isnan(x) else float(x) for x in values] for name, values in shares.items()}
    return {"from": [float(start) / 255 for start in STARTS], "pixels": pixels.astype(int).tolist(), **plain}
