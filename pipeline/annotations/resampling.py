"""Annotated images at the resolution of the network.

Images are resampled on access, with the same bytes as in ``segment``, so training and evaluation use the pixels that
inference uses. Each pixel of a mask is the source pixel at its centre. Images that state no resolution are assumed to
have that of the network.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.lazy_arrays import WINDOW_PX, ReadBox
from pipeline.annotations.pairing import Pair
from pipeline.errors import SlideError
from pipeline.geometry import Box, TileGrid
from pipeline.slides.opening import open_slide
from pipeline.slides.resample import TOLERANCE, Resolution, resample, resolution, source_box


@dataclass(frozen=True, slots=True)
class ScaledPixels:
    """Reads a slide at another resolution."""

    path: Path
    scale: Resolution

    def __call__(self, box: Box) -> NDArray[Any]:
        """Pixels (c, y, x) of a box."""
        source = source_box(self.scale.resampling, box)
        pixels_CYX = open_slide(self.path).read(self.scale.level, source)
        return np.asarray(resample(pixels_CYX, self.scale.resampling, source, box))


@dataclass(frozen=True, slots=True)
class NearestPixels:
    """Reads level-0 numbers at another resolution: the pixel at the centre of each output pixel."""

    read: ReadBox
    scale: Resolution
    shape_yx: tuple[int, int]

    def __call__(self, box: Box) -> NDArray[Any]:
        """Numbers (y, x) of a box; at most one window of level 0 is in memory."""
        side = max(1, int(WINDOW_PX / max(self.scale.level0_from_image_yx)))
        parts = [(tile.core.shift(-box.y0, -box.x0), self._part(tile.core)) for tile in TileGrid(box, side)]
        found_YX = np.empty(box.shape, parts[0][1].dtype)
        for target, part_YX in parts:
            found_YX[target.slices] = part_YX
        return found_YX

    def _part(self, box: Box) -> NDArray[Any]:
        y, x = (self._centres(axis, span) for axis, span in enumerate(((box.y0, box.y1), (box.x0, box.x1))))
        pixels_YX = self.read(Box(int(y[0]), int(x[0]), int(y[-1]) + 1, int(x[-1]) + 1))
        return pixels_YX[np.ix_(y - y[0], x - x[0])]

    def _centres(self, axis: int, span: tuple[int, int]) -> NDArray[np.intp]:
        """Level-0 indices of the pixels that contain the centres of an output span."""
        at = np.floor((np.arange(*span) + 0.5) * self.scale.level0_from_image_yx[axis]).astype(np.intp)
        return np.asarray(np.minimum(at, self.shape_yx[axis] - 1))


def scale_of(pair: Pair, mpp: float | None) -> Resolution | None:
    """Resampling of an image to a resolution; None when it is used unchanged.

    Raises:
        SlideError: The image cannot be resampled to ``mpp``.
    """
    if mpp is None or pair.mpp is None:
        return None
    reader = open_slide(pair.image)
    try:
        scale = resolution(reader, pair.override, mpp)
    except SlideError as error:
        own = reader.mpp_yx if pair.override is None else (pair.override,)
        stated = " x ".join(f"{one:g}" for one in reversed(own or ()))
        raise SlideError(
            f"{pair.image}: pixels of {stated} um cannot be resampled to the network's {mpp:g} um: expected square "
            "ones, enlarged 2.2 times at most. Give the right one in a column mpp of the table of cases, or train "
            "another network on this image"
        ) from error
    return None if scale.level == 0 and scale.resampling.method == "none" else scale


def scaled(box: Box, scale: Resolution) -> Box:
    """Whole output pixels inside a box of level 0.

    Raises:
        SlideError: There is none.
    """
    y, x = scale.level0_from_image_yx
    bottom, right = (min(end, length) for end, length in zip((box.y1 // y, box.x1 // x), scale.out_yx, strict=True))
    found = Box(math.ceil(box.y0 / y), math.ceil(box.x0 / x), int(bottom), int(right))
    if found.y1 <= found.y0 or found.x1 <= found.x0:
        raise SlideError(f"the annotated area {box} is smaller than a pixel of the network. Draw a larger Region*")
    return found


def common_resolution(stated: Iterable[float | None]) -> float | None:
    """Common resolution in um per pixel of all images, within the tolerance of ``segment``; None without one."""
    values = list(stated)
    known = [one for one in values if one is not None]
    if not known or len(known) < len(values) or max(known) > (1 + TOLERANCE) * min(known):
        return None
    return round(median(known), 6)
