"""Where on a slide there is tissue, decided on a picture of a few micrometres per pixel.

Pure. The one decision made here: when in doubt it is tissue. A cell called glass is never looked at again, so a
mistake in that direction loses cells in silence, while one in the other costs a network call. Otsu's threshold alone
splits any picture in two, and calls half of a crop without glass empty; here it may move only within limits that
glass keeps, what is dark is tissue whatever its colour, and a picture with hardly any glass is tissue throughout.

Otsu: IEEE Transactions on Systems, Man, and Cybernetics 9 (1979), 62-66.
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
"""scipy cuts a Gaussian off at four times its width."""
_ROWS_AT_ONCE = 256
_BINS = 256
_NEAR_UM = 16.0

Mask = NDArray[np.bool_]
Polarity = Literal["bright-field", "dark-field"]


@dataclass(frozen=True, slots=True)
class TissueParams:
    """``mpp_um`` of the picture; islands and holes below these areas go; the mask grows by ``dilate_px`` pixels."""

    mpp_um: float
    min_area_um2: float
    fill_holes_um2: float
    dilate_px: int = 0


@dataclass(frozen=True, slots=True)
class TissueResult:
    """The (y, x) mask, how it was found, and remarks for the manifest. ``threshold`` is a saturation, 0 to 1."""

    mask: Mask
    method: str
    threshold: float | None = None
    flags: tuple[str, ...] = ()


def polarity_of(thumb_CYX: NDArray[Any]) -> Polarity:
    """Whether a picture is bright with something dark on it, or dark with something bright: by its median."""
    counts = np.bincount(thumb_CYX.sum(axis=0, dtype=np.intp).ravel()).cumsum()  # of every sum of the channels
    middle = np.searchsorted(counts, [(counts[-1] + 1) // 2, counts[-1] // 2 + 1]).mean() / len(thumb_CYX)
    return "dark-field" if middle < BRIGHT_FIELD * np.iinfo(thumb_CYX.dtype).max else "bright-field"


def find_tissue(thumb_CYX: NDArray[Any], params: TissueParams) -> TissueResult:
    """Mask of the tissue in a uint8 or uint16 (c, y, x) picture.

    Everything is tissue when the picture is not RGB on a bright field, or shows hardly any glass.
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

    Some rows at a time, with those above and below that the blur reaches: a strip is as good as the whole.
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
    """Without islands smaller than ``min_area_um2``, then without holes of at most ``fill_holes_um2``.

    Islands closer than 32 um to one another count as one: pale tissue is a crowd of stained specks.
    """
    pixel_um2 = params.mpp_um**2
    near = _grown(mask, round(_NEAR_UM / params.mpp_um))
    kept = mask & _regions(near, mask, lambda sizes: sizes * pixel_um2 >= params.min_area_um2)
    if not kept.any():
        return kept  # what is not tissue is no hole then, however small the slide
    return kept | _regions(~kept, ~kept, lambda sizes: sizes * pixel_um2 <= params.fill_holes_um2)


def _regions(areas: Mask, counted: Mask, wanted: Callable[[NDArray[np.intp]], Mask]) -> Mask:
    """The 4-connected components of ``areas`` that are wanted, given the number of ``counted`` pixels in each."""
    labels, n = ndimage.label(areas)
    chosen = wanted(np.bincount(labels[counted], minlength=n + 1))
    chosen[0] = False
    return np.asarray(chosen[labels], bool)


def _grown(mask: Mask, radius_px: int) -> Mask:
    """Every pixel at most ``radius_px`` rows and columns away from the mask: whatever can enter a read's halo."""
    if radius_px < 1:
        return mask
    grown: Mask = ndimage.maximum_filter(mask.astype(np.uint8), 2 * radius_px + 1, mode="constant") > 0
    return grown
