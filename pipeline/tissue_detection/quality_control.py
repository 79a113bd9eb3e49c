"""Quality control of a slide, cell by cell: sharpness, marker ink, and stain compared with the training data.

Every measure is a mean over squares of the tissue picture (4 to 8 um), grouped by the cells of the network (512 px). A
cell uses no pixels outside itself, so measures do not depend on blocks. They are remarks: no cell is dropped.

Sharpness is the energy of the finest detail relative to coarser detail of the same area: the ratio of the mean squared
Laplacians of grey values averaged over 2 x 2 and over 8 x 8 pixels. The ratio is independent of stain intensity. At a
scale of 2 pixels neither enlargement (up to 2.2) nor camera noise matters; the ratio of a picture of edges is 1.

      |<- cell, 512 px ->|      2 x 2 and 8 x 8 pixels are averaged from the cell's corner on; the outermost of them,
      | .  .  .  .  .  . |      whose neighbours lie in another cell, are not used
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.config import CELL_PX
from unet_core.optical_density import LEAST_DENSITY, StainStatistics, optical_density

MEASURES = ("tissue", "sharpness", "saturation", "dark", "pen", "stain_distance")
"""Parts (tissue, dark, pen), means (saturation), a ratio and a distance; the measures of each cell of a ``Quality``."""

BLURRED = 0.03
"""Sharpness below which a cell is blurred. The real test slides have 0.06 to 0.38, below 0.04 when blurred by 3 px."""
DARK = 0.25
"""Brightness below which a pixel is dark: folds, pigment, ink."""
PEN_CELL = 0.1
"""Part of a cell under ink from which the cell is marked."""
LEAST_TISSUE = 0.25
"""Part of a cell that must be tissue for its sharpness and colour to count."""
BLURRED_CELLS = 0.25
"""Part of the evaluated cells above which a slide is ``blurred``."""
PEN_MM2 = 0.02
"""Area of ink in marked cells from which a slide has the flag ``pen``: a stroke of 0.1 x 0.2 mm."""
LITTLE_TISSUE_MM2 = 0.1
"""Six cells at 0.25 um: too little for a density."""
FAR = 5.0
"""Mahalanobis distance: 99 % of the built-in network's training colours lie nearer; fluorescence lies beyond 13."""
FAR_CELLS = 0.5
"""Part of the evaluated cells above which a slide is ``colour_far_from_training``."""
_SCALES_PX = 2, 8
_PEN_UM = 32.0
_INK_SATURATION = 0.5
_INK_BLACK = 0.25

Mask = NDArray[np.bool_]
Measures = NDArray[np.float32]


def detail(image_CYX: NDArray[Any], factor: int) -> Measures:
    """Mean squared Laplacians of an image in squares.

    Args:
        image_CYX: RGB image that starts at a cell's corner, uint8 or uint16.
        factor: Side of a square in pixels.

    Returns:
        Fine and coarse detail (2, y, x), float32. NaN where no pixel counts, and throughout when a square holds no
        coarse pixel or the image is not RGB.
    """
    squares = tuple(-(-length // factor) for length in image_CYX.shape[1:])
    found = np.full((2, *squares), np.nan, np.float32)
    if image_CYX.shape[0] == 3 and factor >= _SCALES_PX[-1]:
        eight_bit = image_CYX if image_CYX.dtype == np.uint8 else (image_CYX >> 8).astype(np.uint8)
        grey_YX = eight_bit[0].astype(np.int16)
        grey_YX += eight_bit[1]
        grey_YX += eight_bit[2]
        fine_YX = _halved(grey_YX)
        coarse_YX = _halved(_halved(fine_YX.astype(np.int32)))
        for layer, pixels_YX, side in zip(found, (fine_YX, coarse_YX), _SCALES_PX, strict=True):
            _mean_squares(layer, pixels_YX, factor // side, CELL_PX // side)
        found /= np.array([[[3.0 * side**2]] for side in _SCALES_PX], np.float32) ** 2
    return found


def _halved(pixels_YX: NDArray[Any]) -> NDArray[Any]:
    """Sums of 2 x 2 pixels; an odd last row or column is left out."""
    height, width = (length // 2 * 2 for length in pixels_YX.shape)
    rows = pixels_YX[:height:2] + pixels_YX[1:height:2]
    return np.asarray(rows[:, :width:2] + rows[:, 1:width:2])


def _mean_squares(found_YX: Measures, pixels_YX: NDArray[Any], square: int, cell: int) -> None:
    """Write the mean squared Laplacian of each ``square`` x ``square`` pixels that lie inside their cell."""
    height, width = pixels_YX.shape
    if min(height, width) < 3:
        return
    lap_YX = np.zeros((-(-height // square) * square, -(-width // square) * square), np.float32)
    inner_YX = pixels_YX[1:-1, 1:-1] * 4
    for neighbours in (pixels_YX[:-2, 1:-1], pixels_YX[2:, 1:-1], pixels_YX[1:-1, :-2], pixels_YX[1:-1, 2:]):
        inner_YX -= neighbours
    lap_YX[1 : height - 1, 1 : width - 1] = inner_YX
    lap_YX *= lap_YX
    inside = [_inside_cell(length, padded, cell) for length, padded in zip(pixels_YX.shape, lap_YX.shape, strict=True)]
    lap_YX[~inside[0]] = 0
    lap_YX[:, ~inside[1]] = 0
    sums = lap_YX.reshape(-1, square, lap_YX.shape[1]).sum(axis=1, dtype=np.float64)
    sums = sums.reshape(sums.shape[0], -1, square).sum(axis=2)
    counts = np.outer(*(one.reshape(-1, square).sum(axis=1) for one in inside))
    seen = counts > 0
    found_YX[: sums.shape[0], : sums.shape[1]][seen] = sums[seen] / counts[seen]


def _inside_cell(length: int, padded: int, cell: int) -> Mask:
    """Which of ``padded`` pixels exist and have both neighbours in their own cell."""
    index = np.arange(padded)
    return np.asarray((index % cell != 0) & (index % cell != cell - 1) & (index < length - 1))


def pen_mask(thumb_CYX: NDArray[Any], pixel_um: float) -> Mask:
    """Mask of marker ink in a bright-field RGB picture: solid strokes, at least some 32 um wide.

    Ink has a saturation above 0.5 with no less green than red (green, blue and turquoise; no tissue stain does at this
    scale), or is nearly black. Red ink cannot be distinguished from eosin. Folds and pigment as large and as black
    count as ink.

    Args:
        thumb_CYX: RGB picture (3, y, x).
        pixel_um: Size of its pixels.
    """
    red, green, _ = thumb_CYX
    highest, lowest = thumb_CYX.max(axis=0), thumb_CYX.min(axis=0)
    full = float(np.iinfo(thumb_CYX.dtype).max)
    coloured = (green >= red) & (highest - lowest > _INK_SATURATION * highest)
    inked = coloured | (highest < _INK_BLACK * full)
    side = max(1, round(_PEN_UM / pixel_um))
    solid: Mask = ndimage.binary_opening(inked, np.ones((side, side), bool))
    return solid


@dataclass(frozen=True, slots=True)
class ImageStrip:
    """Some whole rows of cells of a slide.

    Attributes:
        thumb_CYX: Picture (c, y, x).
        detail_2YX: Fine and coarse detail (2, y, x).
        tissue_YX: Tissue mask (y, x).
        pen_YX: Mask of ink (y, x).
        side: Side of a cell in these pixels.
        bright_field: False: only tissue and colour are measured.
    """

    thumb_CYX: NDArray[Any]
    detail_2YX: Measures
    tissue_YX: Mask
    pen_YX: Mask
    side: int
    bright_field: bool

    def measures(self, stain: StainStatistics | None) -> Measures:
        """Measures (measures, rows, cols) in the order of ``MEASURES``; NaN where a measure is undefined."""
        exists = np.ones_like(self.tissue_YX)
        found = [self._mean(self.tissue_YX, exists)]
        if self.bright_field:
            full = float(np.iinfo(self.thumb_CYX.dtype).max)
            value_CYX = self.thumb_CYX / full
            highest = value_CYX.max(axis=0)
            saturation = (highest - value_CYX.min(axis=0)) / np.maximum(highest, 1 / full)
            dark = value_CYX.mean(axis=0) < DARK
            found += [
                self._sharpness(),
                self._mean(saturation, self.tissue_YX),
                self._mean(dark, self.tissue_YX),
                self._mean(self.pen_YX, exists),
            ]
        else:
            found += [np.full_like(found[0], np.nan)] * 4
        return np.stack([*found, self._distance(stain)]).astype(np.float32)

    def _sharpness(self) -> NDArray[np.float64]:
        seen = self.tissue_YX & np.isfinite(self.detail_2YX).all(axis=0)
        fine, coarse = (self._mean(np.where(seen, layer, 0), seen) for layer in self.detail_2YX)
        return np.divide(fine, coarse, out=np.full_like(fine, np.nan), where=coarse > 0)

    def _distance(self, stain: StainStatistics | None) -> NDArray[np.float64]:
        cells_YX = _cell_sums(self.tissue_YX, self.side)
        found = np.full(cells_YX.shape, np.nan)
        if stain is None or len(self.thumb_CYX) not in (1, len(stain.mean)):
            return found
        density_CYX = optical_density(self.thumb_CYX)
        stained = self.tissue_YX & (density_CYX.mean(axis=0) >= LEAST_DENSITY)
        mean_NC = np.stack([self._mean(layer, stained).ravel() for layer in density_CYX], axis=1)
        mean_NC = np.broadcast_to(
            mean_NC, (len(mean_NC), len(stain.mean))
        )  # a grey image is repeated to the channels of the network
        known = np.isfinite(mean_NC).all(axis=1)
        found.ravel()[known] = stain.distance(mean_NC[known])
        return found

    def _mean(self, values_YX: NDArray[Any], counted_YX: Mask) -> NDArray[np.float64]:
        """Mean over the counted squares of each cell; NaN where there are none."""
        counts = _cell_sums(counted_YX, self.side)
        sums = _cell_sums(values_YX * counted_YX, self.side)
        return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def _cell_sums(values_YX: NDArray[Any], side: int) -> NDArray[np.float64]:
    starts = [np.arange(0, length, side) for length in values_YX.shape]
    return np.add.reduceat(np.add.reduceat(values_YX.astype(np.float64), starts[0], axis=0), starts[1], axis=1)


# ---- summary of the measures ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Quality:
    """Measures of all cells of a slide.

    Attributes:
        measures: Measures (measures, rows, cols) in the order of ``MEASURES``.
        cell_mm2: Area of a whole cell.
    """

    measures: Measures
    cell_mm2: float

    def __getitem__(self, name: str) -> Measures:
        """One measure (rows, cols)."""
        return np.asarray(self.measures[MEASURES.index(name)])

    @property
    def evaluated(self) -> Mask:
        """Cells with enough tissue to be evaluated."""
        return np.asarray(self["tissue"] >= LEAST_TISSUE)

    @property
    def blurred(self) -> Mask:
        """Cells out of focus."""
        return np.asarray(self.evaluated & (self["sharpness"] < BLURRED))

    @property
    def inked(self) -> Mask:
        """Cells under marker ink."""
        return np.asarray(self["pen"] >= PEN_CELL)

    @property
    def pen_mm2(self) -> float:
        """Area of ink in the cells that are marked for it."""
        return float(self["pen"][self.inked].sum()) * self.cell_mm2

    def flags(self, tissue_mm2: float) -> tuple[str, ...]:
        """Flags of the slide, as scripts may search for them."""
        evaluated = max(1, int(self.evaluated.sum()))
        far = self.evaluated & (self["stain_distance"] > FAR)
        flags = {
            "blurred": self.blurred.sum() > BLURRED_CELLS * evaluated,
            "pen": self.pen_mm2 >= PEN_MM2,
            "little_tissue": tissue_mm2 < LITTLE_TISSUE_MM2,
            "colour_far_from_training": far.sum() > FAR_CELLS * evaluated,
        }
        return tuple(name for name, holds in flags.items() if holds)

    def facts(self) -> dict[str, Any]:
        """Facts for the manifest: numbers of evaluated and marked cells; medians of the evaluated ones or None."""
        medians = {name: _median(self[name][self.evaluated]) for name in MEASURES[1:]}
        counts = {"cells": self.evaluated.sum(), "blurred_cells": self.blurred.sum(), "pen_cells": self.inked.sum()}
        return {name: int(count) for name, count in counts.items()} | {"pen_mm2": round(self.pen_mm2, 4)} | medians


def _median(values: Sequence[float] | Measures) -> float | None:
    known = np.asarray(values)[np.isfinite(values)]
    return round(float(np.median(known)), 4) if len(known) else None
