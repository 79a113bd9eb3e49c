"""Tissue mask of a slide, from a picture of a few micrometres per pixel.

Doubtful pixels count as tissue. Glass is not processed any further, so tissue taken for glass loses cells without a
trace, while glass taken for tissue costs network calls only. Otsu's threshold alone divides any picture in two and
calls half of a crop without glass empty. It is therefore limited to a range that glass does not exceed, dark pixels
are tissue whatever their colour, and a picture with hardly any glass is tissue throughout.

Source: Otsu, IEEE Transactions on Systems, Man, and Cybernetics 9 (1979), 62-66.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu

SATURATION_LIMITS = 0.02, 0.05
DARK = 0.7
LEAST_GLASS = 0.05
BRIGHT_FIELD = 0.3
_SMOOTHING_PX = 1.0
_SMOOTHING_REACH_PX = 4
"""scipy truncates a Gaussian at four standard deviations."""
_ROWS_AT_ONCE = 256
_BINS = 256
_NEAR_UM = 16.0

Mask = NDArray[np.bool_]
Polarity = Literal["bright-field", "dark-field"]


@dataclass(frozen=True, slots=True)
class TissueParams:
    """Parameters of tissue detection.

    Attributes:
        mpp_um: Size of a pixel of the picture in um.
        min_area_um2: Smaller islands of tissue are removed.
        fill_holes_um2: Holes up to this area are filled.
        dilate_px: Pixels by which the mask is dilated.
    """

    mpp_um: float
    min_area_um2: float
    fill_holes_um2: float
    dilate_px: int = 0


@dataclass(frozen=True, slots=True)
class TissueResult:
    """A tissue mask and how it was determined.

    Attributes:
        mask: True for tissue (y, x).
        method: Description for the manifest.
        threshold: Saturation threshold, 0 to 1; None without one.
        flags: Remarks for the manifest.
    """

    mask: Mask
    method: str
    threshold: float | None = None
    flags: tuple[str, ...] = ()


def polarity_of(thumb_CYX: NDArray[Any]) -> Polarity:
    """Whether a picture is bright-field or dark-field, by its median."""
    counts = np.bincount(thumb_CYX.sum(axis=0, dtype=np.intp).ravel()).cumsum()  # by sum of the channels
    middle = np.searchsorted(counts, [(counts[-1] + 1) // 2, counts[-1] // 2 + 1]).mean() / len(thumb_CYX)
    return "dark-field" if middle < BRIGHT_FIELD * np.iinfo(thumb_CYX.dtype).max else "bright-field"


def find_tissue(thumb_CYX: NDArray[Any], params: TissueParams) -> TissueResult:
    """Determine the tissue mask of a picture.

    All pixels are tissue when the picture is not RGB on a bright field, or has hardly any glass.

    Args:
        thumb_CYX: Picture (c, y, x), uint8 or uint16.
        params: Parameters.
    """
    everything = np.ones(thumb_CYX.shape[1:], bool)
    if polarity_of(thumb_CYX) == "dark-field":
        return TissueResult(everything, "off: not bright-field")
    if thumb_CYX.shape[0] != 3:
        return TissueResult(everything, "off: not RGB")
    saturation, dark = _saturation_and_dark(thumb_CYX)
    threshold = float(np.clip(_otsu(saturation), *SATURATION_LIMITS))
    stained = (saturation > threshold) | dark
    del saturation, dark
    if np.mean(~stained) < LEAST_GLASS:
        return TissueResult(everything, "otsu: no glass, all tissue", threshold)
    mask = _grown(_cleaned(stained, params), params.dilate_px)
    flags = () if mask.any() else ("no tissue found",)
    return TissueResult(mask, "otsu", threshold, flags)


def _saturation_and_dark(thumb_CYX: NDArray[Any]) -> tuple[NDArray[np.float64], Mask]:
    """Saturation (max - min) / max of the channels, and where their mean is low; both after a blur against noise.

    Processed in strips of rows that overlap by the reach of the blur, so the result does not depend on strips.
    """
    height, width = thumb_CYX.shape[1:]
    saturation, dark = np.empty((height, width)), np.empty((height, width), bool)
    for top in range(0, height, _ROWS_AT_ONCE):
        first, last = max(0, top - _SMOOTHING_REACH_PX), min(height, top + _ROWS_AT_ONCE + _SMOOTHING_REACH_PX)
        value_CYX = thumb_CYX[:, first:last] / float(np.iinfo(thumb_CYX.dtype).max)
        smooth = np.stack([ndimage.gaussian_filter(channel, _SMOOTHING_PX, mode="nearest") for channel in value_CYX])
        smooth = smooth[:, top - first :][:, :_ROWS_AT_ONCE]
        highest, lowest = smooth.max(axis=0), smooth.min(axis=0)
        here = slice(top, top + _ROWS_AT_ONCE)
        saturation[here] = np.divide(highest - lowest, highest, out=np.zeros_like(highest), where=highest > 0)
        dark[here] = smooth.mean(axis=0) < DARK
    return saturation, dark


def _otsu(saturation: NDArray[np.float64]) -> float:
    """Otsu's threshold on 256 bins of 0 to 1; 0 for a picture of one saturation."""
    counts, edges = np.histogram(saturation, bins=_BINS, range=(0.0, 1.0))
    if np.count_nonzero(counts) < 2:
        return 0.0
    return float(threshold_otsu(hist=(counts, (edges[:-1] + edges[1:]) / 2)))


def _cleaned(mask: Mask, params: TissueParams) -> Mask:
    """Remove islands smaller than ``min_area_um2``, then fill holes of at most ``fill_holes_um2``.

    Islands closer than 32 um to each other count as one, because pale tissue consists of many stained specks.
    """
    pixel_um2 = params.mpp_um**2
    near = _grown(mask, round(_NEAR_UM / params.mpp_um))
    kept = mask & _regions(near, mask, lambda sizes: sizes * pixel_um2 >= params.min_area_um2)
    if not kept.any():
        return kept  # without tissue, background is no hole, however small the slide
    return kept | _regions(~kept, ~kept, lambda sizes: sizes * pixel_um2 <= params.fill_holes_um2)


def _regions(areas: Mask, counted: Mask, select: Callable[[NDArray[np.intp]], Mask]) -> Mask:
    """4-connected components of ``areas`` that ``select`` selects by their number of ``counted`` pixels."""
    labels, n = ndimage.label(areas)
    chosen = select(np.bincount(labels[counted], minlength=n + 1))
    chosen[0] = False
    return np.asarray(chosen[labels], bool)


def _grown(mask: Mask, radius_px: int) -> Mask:
    """Dilate a mask by a square of ``radius_px``: all pixels that can enter the halo of a read."""
    if radius_px < 1:
        return mask
    grown: Mask = ndimage.maximum_filter(mask.astype(np.uint8), 2 * radius_px + 1, mode="constant") > 0
    return grown
