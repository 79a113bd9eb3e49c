"""Optical density of stains, and its distance from that of a network's training images.

Colour is measured on squares of about 8 um, averaged first, and only where something absorbs. So it depends neither on
the amount of glass around the tissue nor on the number of nuclei in view, and one value per cell is enough.

Optical density: -ln of the transmitted fraction (Beer and Lambert), as in Ruifrok and Johnston 2001. Distance:
Mahalanobis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SQUARE_UM = 8.0
LEAST_DENSITY = 0.15
"""Least mean over the channels of a stained square (Macenko et al. 2009). Glass is near 0.05."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class StainStatistics:
    """Mean and covariance over cells of the mean optical density (c,) of a cell."""

    mean: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, densities_NC: Numbers) -> StainStatistics:
        """Compute from densities of cells (n, c), rounded to four decimals."""
        covariance = np.cov(densities_NC.T).round(4).tolist()
        return cls(tuple(densities_NC.mean(axis=0).round(4).tolist()), tuple(tuple(row) for row in covariance))

    def distance(self, densities_NC: Numbers) -> Numbers:
        """Return the Mahalanobis distances (n,) of cells (n, c)."""
        apart = densities_NC - np.asarray(self.mean)
        return np.asarray(np.sqrt(np.einsum("nc,cd,nd->n", apart, np.linalg.inv(np.asarray(self.covariance)), apart)))


def optical_density(pixels: NDArray[Any]) -> Numbers:
    """Return -ln((value + 1) / (largest + 1)) of unsigned integers: 0 for full brightness, finite for black."""
    largest = float(np.iinfo(pixels.dtype).max)
    return np.asarray(-np.log((pixels + 1.0) / (largest + 1.0)))


def mean_density(squares_CYX: NDArray[Any]) -> Numbers | None:
    """Return the mean optical density (c,) of the stained squares; None if there is none."""
    density_CN = optical_density(squares_CYX).reshape(squares_CYX.shape[0], -1)
    stained = density_CN.mean(axis=0) >= LEAST_DENSITY
    return density_CN[:, stained].mean(axis=1) if stained.any() else None
