"""The colour of a stain as a number: optical density, and how far one lies from those a network was trained on.

Decision: colour is judged on squares of about 8 um, averaged first, and only where something absorbs. So it depends
neither on how much glass surrounds the tissue nor on how many nuclei lie in view, and one number a cell is enough.

Optical density: -ln of the transmitted part (Beer and Lambert), as in Ruifrok and Johnston 2001. Distance: Mahalanobis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SQUARE_UM = 8.0
LEAST_DENSITY = 0.15
"""Mean over the channels from which a square holds stain: Macenko et al. 2009. Glass lies near 0.05."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class StainStatistics:
    """Mean and covariance, between cells, of the cells' mean optical density (c,)."""

    mean: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, densities_NC: Numbers) -> StainStatistics:
        """Of so many cells, to four decimals."""
        covariance = np.cov(densities_NC.T).round(4).tolist()
        return cls(tuple(densities_NC.mean(axis=0).round(4).tolist()), tuple(tuple(row) for row in covariance))

    def distance(self, densities_NC: Numbers) -> Numbers:
        """Mahalanobis distances (n,) of other cells."""
        apart = densities_NC - np.asarray(self.mean)
        return np.asarray(np.sqrt(np.einsum("nc,cd,nd->n", apart, np.linalg.inv(np.asarray(self.covariance)), apart)))


def optical_density(pixels: NDArray[Any]) -> Numbers:
    """-ln((value + 1) / (largest + 1)) of unsigned integers: 0 for full brightness, finite for black."""
    largest = float(np.iinfo(pixels.dtype).max)
    return np.asarray(-np.log((pixels + 1.0) / (largest + 1.0)))


def mean_density(squares_CYX: NDArray[Any]) -> Numbers | None:
    """The mean optical density (c,) of the squares that hold stain; None where none does."""
    density_CN = optical_density(squares_CYX).reshape(squares_CYX.shape[0], -1)
    stained = density_CN.mean(axis=0) >= LEAST_DENSITY
    return density_CN[:, stained].mean(axis=1) if stained.any() else None
