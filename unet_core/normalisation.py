"""The colours of one slide brought to those a network was trained on: fitted once, then a map of a pixel's own value.

Decision: whatever is fitted ends as one map from a pixel's value to another of the same type, so tiles cannot matter.
It is fitted on a picture of the slide at low resolution that skips pixels instead of averaging them: the average of a
nucleus and its surroundings is a colour that nothing in the slide has. Only pixels that absorb count, so the amount of
glass around the tissue does not matter either. What cannot be fitted is left as it is, and that is said by name.

    value -> density = -ln((value + 1) / (largest + 1)) -> matrix, offset -> value -> rank x largest, by channel
             (Beer and Lambert)                            (stain)                    (equalised)

Reinhard, Ashikhmin, Gooch and Shirley 2001: mean and deviation along three axes of a logarithmic space become those of
the target (equations 10 and 11), the axes being their l, alpha and beta (equation 6). They take logarithms of cone
responses; here it is those of red, green and blue, which are densities, so that the change is a matrix in density.

Macenko et al. 2009: the densities' two largest singular directions span a plane; in it the 1st and 99th percentile of
the angle are the two stains. A stain's strength is the 99th percentile of its concentration. Source and target are both
the density of each stain where it is strongest (rows S and T), so densities become T' pinv(S') times themselves.

Histogram equalisation: a value becomes its rank among the slide's (mid-rank of equals), by 64 quantiles and straight
lines between them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from unet_core.mirror import ArrayLike
from unet_core.optical_density import LEAST_DENSITY, optical_density

FIT_VERSION = 1
"""Raised by one when a change here changes what is fitted or what a fit does to a pixel."""
LARGEST_SAMPLE = 2**18
LARGEST_STEP = 512
LEAST_PIXELS = 200
"""Pixels of the picture that must absorb before anything is said about stains."""
BRIGHT_FIELD = 0.3
"""Median brightness from which a picture is taken for bright-field."""
LEAST_ANGLE = 0.1
"""Between two stains, in radians; haematoxylin and eosin lie 0.4 apart. Below it, there is one."""
LEAST_DEVIATION = 0.005
EXTREMES = 0.01, 0.99
QUANTILES = 64
_AXES = np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]]) / np.sqrt([[3], [6], [2]])
_READ_PX = 2048

Numbers = NDArray[np.float64]
Row = tuple[float, float, float]
Rows = tuple[Row, Row]
StainMethod = Literal["none", "reinhard", "macenko"]


@dataclass(frozen=True, slots=True)
class Normalisation:
    """What a network asks for. ``target`` (2, 3): for Reinhard mean and deviation along the axes l, alpha and beta of

    density; for Macenko density of haematoxylin and of eosin where each is strongest.
    """

    stain: StainMethod
    target: Rows | None
    equalise: bool


class ColourMap(BaseModel):
    """What a fit does to a slide's pixels; plain data for the manifest.

    ``found``: what the target's rows are in this slide. ``matrix`` and ``offset`` act on densities (None: they stay).
    ``ranks``: for each channel (value, rank from 0 to 1), rising. ``kept``: why pixels stay as they are after all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    found: Rows | None = None
    matrix: tuple[Row, Row, Row] | None = None
    offset: Row = (0.0, 0.0, 0.0)
    ranks: tuple[tuple[tuple[int, float], ...], ...] | None = None
    kept: tuple[str, ...] = ()

    def density(self, density_CN: Numbers) -> Numbers:
        """Densities (3, n) after the stain's normalisation."""
        if self.matrix is None:
            return density_CN
        return np.asarray(np.array(self.matrix) @ density_CN + np.array(self.offset)[:, None])


# ---- the picture it is fitted on -----------------------------------------------------------------------------------


def sample_step(shape_yx: tuple[int, ...]) -> int:
    """Every how many-th pixel of an image is looked at: a power of two, so that there are at most 2^18 of them."""
    step = 1
    while step < LARGEST_STEP and -(-shape_yx[0] // step) * -(-shape_yx[1] // step) > LARGEST_SAMPLE:
        step *= 2
    return step


def sample(image_CYX: ArrayLike) -> NDArray[Any]:
    """The picture (c, y, x) of an image, which is read piece by piece."""
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


# ---- the fit ---------------------------------------------------------------------------------------------------------


def fit(picture_CYX: NDArray[Any], wanted: Normalisation) -> ColourMap:
    """The map that brings the colours of a picture of unsigned integers (c, y, x) to what a network asks for."""
    pixels_CN = picture_CYX.reshape(len(picture_CYX), -1)
    density_CN = optical_density(pixels_CN)
    density_CN = density_CN[:, density_CN.mean(axis=0) >= LEAST_DENSITY]
    colours = _towards(wanted, source(pixels_CN, wanted.stain)) if wanted.stain != "none" else ColourMap()
    return _equalised(colours, density_CN, picture_CYX.dtype) if wanted.equalise else colours


def fits(picture_CYX: NDArray[Any], wanted: Sequence[Normalisation | None]) -> tuple[ColourMap | None, ...]:
    """The maps of several networks, each its own; None for one that takes colours as they are."""
    return tuple(None if one is None else fit(picture_CYX, one) for one in wanted)


def _towards(wanted: Normalisation, found: Numbers | str) -> ColourMap:
    """From what was found in a slide (2, 3), or why nothing was."""
    if isinstance(found, str):
        return ColourMap(kept=(f"{wanted.stain}: {found}",))
    target, offset = np.array(wanted.target), np.zeros(3)
    if wanted.stain == "macenko":
        matrix = target.T @ np.linalg.pinv(found.T)
    else:
        scale = target[1] / found[1]
        matrix = _AXES.T @ np.diag(scale) @ _AXES
        offset = _AXES.T @ (target[0] - scale * found[0])
    told = {"found": found, "matrix": matrix, "offset": offset}
    return ColourMap.model_validate({name: numbers.round(6).tolist() for name, numbers in told.items()})


def source(pixels_CN: NDArray[Any], stain: StainMethod) -> Numbers | str:
    """The rows (2, 3) that describe the stains of a picture's pixels, or why there are none."""
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
    """Mean and deviation along Reinhard's axes."""
    along_CN = _AXES @ density_CN
    found = np.stack([along_CN.mean(axis=1), along_CN.std(axis=1)])
    return found if found[1].min() >= LEAST_DEVIATION else "one colour"


def _stains(density_CN: Numbers) -> Numbers | str:
    """Density of Macenko's two stains where each is strongest, the one that absorbs more red first."""
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
    """The same map, its values replaced by their ranks among the pixels that absorb."""
    most = float(np.iinfo(dtype).max)
    values_CN = np.rint((most + 1) * np.exp(-colours.density(density_CN)) - 1).clip(0, most).astype(np.int64)
    ranks = [_ranks(values_N) for values_N in values_CN] if density_CN.shape[1] >= LEAST_PIXELS else [[]]
    if min(len(one) for one in ranks) < 2:
        return colours.model_copy(update={"kept": (*colours.kept, "equalise: one value")})
    return ColourMap.model_validate(colours.model_dump() | {"ranks": ranks})


def _ranks(values_N: NDArray[np.int64]) -> list[tuple[int, float]]:
    """The distinct ones of 65 quantiles, each with the part of the values below it and half of those equal to it."""
    ordered = np.sort(values_N)
    knots = np.unique(ordered[np.linspace(0, len(ordered) - 1, QUANTILES + 1).round().astype(np.int64)])
    middle = np.searchsorted(ordered, knots) + np.searchsorted(ordered, knots, side="right")
    return list(zip(knots.tolist(), (middle / (2 * len(ordered))).round(6).tolist(), strict=True))


def target_of(images: Iterable[ArrayLike], stain: StainMethod) -> Rows | str:
    """What most training images look like: the median of their rows, or why none of them has any."""
    found = [source(picture.reshape(len(picture), -1), stain) for picture in map(sample, images)]
    rows = [one for one in found if not isinstance(one, str)]
    if not rows:
        return ", ".join(sorted({one for one in found if isinstance(one, str)}))
    mean, deviation = np.median(rows, axis=0).round(4).tolist()
    return tuple(mean), tuple(deviation)
