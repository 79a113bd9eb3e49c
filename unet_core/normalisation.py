"""Stain normalisation, histogram equalisation and rescaling: a colour map fitted once per slide.

Every fit results in one map from a pixel's value to another of the same type, so tiles do not matter. It is fitted on a
thumbnail that skips pixels instead of averaging them: the average of a nucleus and its surroundings is a colour that
does not occur in the slide. Only pixels that absorb count, so the amount of glass does not matter. Colours that cannot
be fitted stay unchanged, and the reason is recorded.

    value -> density = -ln((value + 1) / (largest + 1)) -> matrix, offset -> value -> rank x largest, by channel
             (Beer and Lambert)                            (stain)                    (equalised)

Reinhard, Ashikhmin, Gooch and Shirley 2001: mean and deviation along three axes of a logarithmic space become those of
the target (equations 10 and 11); the axes are their l, alpha and beta (equation 6). They take logarithms of cone
responses; here it is those of red, green and blue, which are densities, so the change is a matrix in density.

Macenko et al. 2009: the densities' two largest singular directions span a plane; in it the 1st and 99th percentile of
the angle are the two stains. A stain's strength is the 99th percentile of its concentration. Source and target are both
the density of each stain where it is strongest (rows S and T), so densities become T' pinv(S') times themselves.

Histogram equalisation: a value becomes its rank among the slide's (mid-rank of equals), by 64 quantiles and linear
interpolation.

Rescaling, for fluorescence: Otsu's threshold divides the values of a channel in background and signal. A linear map
brings their medians to 0.05 and 0.4 of the largest value, so bit depth, offset and exposure do not matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from skimage.filters import threshold_otsu

from unet_core.mirror import ArrayLike
from unet_core.optical_density import LEAST_DENSITY, optical_density

FIT_VERSION = 1
"""Incremented when a change here changes a fit or its effect on a pixel."""
LARGEST_SAMPLE = 2**18
LARGEST_STEP = 512
LEAST_PIXELS = 200
"""Least number of absorbing pixels for a fit."""
BRIGHT_FIELD = 0.3
"""Least median brightness of a bright-field image."""
LEAST_ANGLE = 0.1
"""Least angle between two stains, in radians; haematoxylin and eosin differ by 0.4."""
LEAST_DEVIATION = 0.005
EXTREMES = 0.01, 0.99
RESCALED = 0.05, 0.4
"""Median of the background and of the signal after rescaling, as shares of the largest value."""
LEAST_CONTRAST = 4.0
"""Least difference of these medians, in deviations of the background (1.4826 times its median absolute deviation)."""
QUANTILES = 64
_AXES = np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]]) / np.sqrt([[3], [6], [2]])
_READ_PX = 2048

Numbers = NDArray[np.float64]
Row = tuple[float, float, float]
Rows = tuple[Row, Row]
StainMethod = Literal["none", "reinhard", "macenko"]


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Normalisation that a network requires.

    Attributes:
        stain: Method.
        target: Two rows of three numbers. Reinhard: mean and deviation along the axes l, alpha and beta of density;
            Macenko: density of haematoxylin and of eosin where each is strongest.
        equalise: Whether histograms are equalised.
        rescale: Whether intensities are rescaled, instead of the others.
    """

    stain: StainMethod
    target: Rows | None
    equalise: bool
    rescale: bool = False


class ColourMap(BaseModel):
    """Result of a fit to one slide, as stored in the manifest.

    Attributes:
        found: The slide's own rows, as in ``Normalisation.target``.
        matrix: Matrix on densities; None: densities stay unchanged.
        offset: Offset on densities.
        ranks: For each channel (value, rank 0..1), ascending; linear between, and constant beyond the ends.
        kept: Reasons why colours stay unchanged.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    found: Rows | None = None
    matrix: tuple[Row, Row, Row] | None = None
    offset: Row = (0.0, 0.0, 0.0)
    ranks: tuple[tuple[tuple[int | float, float], ...], ...] | None = None
    kept: tuple[str, ...] = ()

    def density(self, density_CN: Numbers) -> Numbers:
        """Return densities (3, n) after stain normalisation."""
        if self.matrix is None:
            return density_CN
        return np.asarray(np.array(self.matrix) @ density_CN + np.array(self.offset)[:, None])


# ---- the thumbnail that is fitted ----------------------------------------------------------------------------------


def sample_step(shape_yx: tuple[int, ...]) -> int:
    """Return the step of the thumbnail's pixels: a power of two such that there are at most 2^18 of them."""
    step = 1
    while step < LARGEST_STEP and -(-shape_yx[0] // step) * -(-shape_yx[1] // step) > LARGEST_SAMPLE:
        step *= 2
    return step


def sample(image_CYX: ArrayLike) -> NDArray[Any]:
    """Return the thumbnail (c, y, x) of an image, which is read piece by piece."""
    height, width = image_CYX.shape[1:]
    step = sample_step((height, width))
    rows = (
        [_piece(image_CYX, y, x)[:, ::step, ::step] for x in range(0, width, _READ_PX)]
        for y in range(0, height, _READ_PX)
    )
    return np.concatenate([np.concatenate(row, axis=2) for row in rows], axis=1)


def _piece(image_CYX: ArrayLike, y: int, x: int) -> NDArray[Any]:
    height, width = image_CYX.shape[1:]
    here = (slice(None), slice(y, min(y + _READ_PX, height)), slice(x, min(x + _READ_PX, width)))
    return np.asarray(image_CYX[here])


# ---- the fit -------------------------------------------------------------------------------------------------------


def fit(picture_CYX: NDArray[Any], wanted: Normalisation) -> ColourMap:
    """Fit the map that brings the colours of a thumbnail (c, y, x) of unsigned integers to a network's."""
    pixels_CN = picture_CYX.reshape(len(picture_CYX), -1)
    if wanted.rescale:
        return _rescaled(pixels_CN)
    density_CN = optical_density(pixels_CN)
    density_CN = density_CN[:, density_CN.mean(axis=0) >= LEAST_DENSITY]
    colours = _towards(wanted, source(pixels_CN, wanted.stain)) if wanted.stain != "none" else ColourMap()
    return _equalised(colours, density_CN, picture_CYX.dtype) if wanted.equalise else colours


def fits(picture_CYX: NDArray[Any], wanted: Sequence[Normalisation | None]) -> tuple[ColourMap | None, ...]:
    """Fit one map per network; None for a network without normalisation."""
    return tuple(None if one is None else fit(picture_CYX, one) for one in wanted)


def _towards(wanted: Normalisation, found: Numbers | str) -> ColourMap:
    """Return the map from the rows (2, 3) of a slide, or from the reason why there are none."""
    if isinstance(found, str):
        return ColourMap(kept=(f"{wanted.stain}: {found}",))
    target, offset = np.array(wanted.target), np.zeros(3)
    if wanted.stain == "macenko":
        matrix = target.T @ np.linalg.pinv(found.T)
    else:
        scale = target[1] / found[1]
        matrix = _AXES.T @ np.diag(scale) @ _AXES
        offset = _AXES.T @ (target[0] - scale * found[0])
    fields = {"found": found, "matrix": matrix, "offset": offset}
    return ColourMap.model_validate({name: numbers.round(6).tolist() for name, numbers in fields.items()})


def source(pixels_CN: NDArray[Any], stain: StainMethod) -> Numbers | str:
    """Return the rows (2, 3) that describe the stains of pixels (c, n), or the reason why there are none."""
    if len(pixels_CN) != 3:
        return "not RGB"
    if np.median(pixels_CN.sum(axis=0, dtype=np.int64)) < 3 * BRIGHT_FIELD * np.iinfo(pixels_CN.dtype).max:
        return "not bright-field"
    density_CN = optical_density(pixels_CN)
    density_CN = density_CN[:, density_CN.mean(axis=0) >= LEAST_DENSITY]
    if density_CN.shape[1] < LEAST_PIXELS:
        return "no stained tissue"
    return _moments(density_CN) if stain == "reinhard" else _stains(density_CN)


def _moments(density_CN: Numbers) -> Numbers | str:
    """Return mean and deviation along Reinhard's axes."""
    along_CN = _AXES @ density_CN
    found = np.stack([along_CN.mean(axis=1), along_CN.std(axis=1)])
    return found if found[1].min() >= LEAST_DEVIATION else "one colour"


def _stains(density_CN: Numbers) -> Numbers | str:
    """Return the density of Macenko's two stains where each is strongest, the one that absorbs more red first."""
    _, directions = np.linalg.eigh(np.einsum("cn,dn->cd", density_CN, density_CN))
    plane = directions[:, :0:-1]  # of the two largest singular values
    plane = plane * np.where(plane.sum(axis=0) < 0, -1, 1)
    first, second = plane.T @ density_CN
    angles = np.quantile(np.arctan2(second, first), EXTREMES)
    if angles[1] - angles[0] < LEAST_ANGLE:
        return "one stain"
    stains = np.stack([np.cos(angles), np.sin(angles)], axis=1) @ plane.T
    stains = stains[np.argsort(-stains[:, 0])]
    strengths = np.quantile(np.linalg.pinv(stains.T) @ density_CN, EXTREMES[1], axis=1)
    return stains * strengths[:, None] if strengths.min() >= LEAST_DENSITY else "one stain"


def _equalised(colours: ColourMap, density_CN: Numbers, dtype: np.dtype[Any]) -> ColourMap:
    """Return the map with values replaced by their ranks among the absorbing pixels."""
    most = float(np.iinfo(dtype).max)
    values_CN = np.rint((most + 1) * np.exp(-colours.density(density_CN)) - 1).clip(0, most).astype(np.int64)
    ranks = [_ranks(values_N) for values_N in values_CN] if density_CN.shape[1] >= LEAST_PIXELS else [[]]
    if min(len(one) for one in ranks) < 2:
        return colours.model_copy(update={"kept": (*colours.kept, "equalise: one value")})
    return ColourMap.model_validate(colours.model_dump() | {"ranks": ranks})


def _rescaled(pixels_CN: NDArray[Any]) -> ColourMap:
    """Return the map that brings background and signal of each channel to their places."""
    ranks = []
    for number, values_N in enumerate(pixels_CN):
        bright_N = values_N > threshold_otsu(values_N)
        if not bright_N.any():
            return ColourMap(kept=(f"rescale: channel {number} has one value",))
        dark = float(np.median(values_N[~bright_N]))
        difference = float(np.median(values_N[bright_N])) - dark
        deviation = 1.4826 * float(np.median(np.abs(values_N[~bright_N] - dark)))
        if difference < LEAST_CONTRAST * deviation:
            return ColourMap(kept=(f"rescale: channel {number} has no signal above its background",))
        low, high = RESCALED
        step = difference / (high - low)
        ranks.append(((round(dark - low * step, 6), 0.0), (round(dark + (1 - low) * step, 6), 1.0)))
    return ColourMap(ranks=tuple(ranks))


def _ranks(values_N: NDArray[np.int64]) -> list[tuple[int, float]]:
    """Return the distinct ones of 65 quantiles, each with its mid-rank: share of values below and half of equals."""
    ordered = np.sort(values_N)
    knots = np.unique(ordered[np.linspace(0, len(ordered) - 1, QUANTILES + 1).round().astype(np.int64)])
    middle = np.searchsorted(ordered, knots) + np.searchsorted(ordered, knots, side="right")
    return list(zip(knots.tolist(), (middle / (2 * len(ordered))).round(6).tolist(), strict=True))


def target_of(images: Iterable[ArrayLike], stain: StainMethod) -> Rows | str:
    """Return the median of the training images' rows, or the reason why none has any."""
    found = [source(picture.reshape(len(picture), -1), stain) for picture in map(sample, images)]
    rows = [one for one in found if not isinstance(one, str)]
    if not rows:
        return ", ".join(sorted({one for one in found if isinstance(one, str)}))
    mean, deviation = np.median(rows, axis=0).round(4).tolist()
    return tuple(mean), tuple(deviation)
