"""Tissue: detect tissue and measure image quality on a thumbnail of the slide.

The thumbnail is the image averaged over squares of a fixed number of pixels, so it depends neither on the pyramid that
the scanner wrote nor on the blocks. The same pass measures sharpness for the same squares, and samples pixels for the
slide's colour map, which is fitted here once where a network needs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from pipeline.config import CELL_PX
from pipeline.execution.blocks import Counts, MapBlocks, StageContext, StageReport, run_blocks
from pipeline.geometry import Box, TileGrid
from pipeline.image_info import ImageInfo
from pipeline.inputs.regions import Regions
from pipeline.inputs.tissue_mask_file import MaskFile, tissue_from_mask
from pipeline.storage.layout import IMAGE, QUALITY, TISSUE
from pipeline.storage.slide_store import Array, ArraySpec, Index
from pipeline.tissue_detection.quality_control import ImageStrip, Quality, detail, pen_mask
from pipeline.tissue_detection.threshold import Mask, TissueParams, TissueResult, find_tissue, polarity_of
from unet_core.normalisation import ColourMap, Normalisation, fits, sample_step
from unet_core.optical_density import StainStatistics

NOT_NORMALISED = "colours_not_normalised"
_ROWS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class TissueInputs:
    """How tissue is found.

    Attributes:
        how: Parameters of the threshold, or a mask file; None: everything is tissue.
        factor: Image pixels along one tissue pixel.
        image: Scale of the image.
        regions: Regions in which tissue is counted, in pixels of the slide's level 0.
        stain: Colours that the network was trained on.
        exclude_qc: Whether blurred and inked cells count as no tissue.
        normalisations: For each network, the normalisation of colours it needs; empty when none needs any.
    """

    how: TissueParams | MaskFile | None
    factor: int
    image: ImageInfo
    regions: Regions | None
    stain: StainStatistics | None
    exclude_qc: bool
    normalisations: tuple[Normalisation | None, ...]


def tissue_block(context: StageContext, inputs: TissueInputs, index: Index) -> Counts:
    """Write the area mean and the fine detail of one block of the image as the block's small result."""
    image_CYX = context.store.read(IMAGE).read(context.core(index))
    small = {"thumb": area_mean(image_CYX, inputs.factor), "detail": detail(image_CYX, inputs.factor)}
    if inputs.normalisations:
        step = sample_step(context.shape_yx)
        small["sample"] = image_CYX[:, ::step, ::step]
    context.store.save_result("tissue", context.plan_hash, index, small)
    return {}


def tissue_slide(context: StageContext, inputs: TissueInputs, map_blocks: MapBlocks) -> StageReport:
    """Write ``tissue`` (y, x) bool, at about 8 um per pixel, and ``quality``, whose measures are per cell."""
    store = context.store
    store.sweep_results("tissue", context.plan_hash)
    done = store.results("tissue", context.plan_hash)
    report = run_blocks("tissue", context, done, partial(tissue_block, context, inputs), map_blocks)
    thumb_CYX = _assemble(context, "thumb")
    found = _found(thumb_CYX, context, inputs)
    quality = _quality(thumb_CYX, found.mask, context, inputs)
    tissue_px = _image_px(found.mask, context, inputs)
    flags = [*found.flags, *quality.flags(tissue_px * inputs.image.mpp**2 / 1e6)]
    fitted = _fitted(context, inputs)
    flags += [NOT_NORMALISED] * any(one is not None and one.kept for one in fitted)
    if inputs.exclude_qc:
        found = replace(found, mask=found.mask & ~_squares(quality.blurred | quality.inked, found.mask, inputs))
    for path, pixels in ((TISSUE, found.mask), (QUALITY, quality.measures)):
        _write(context, path, pixels)
    report.facts = {
        "method": found.method,
        "polarity": polarity_of(thumb_CYX),
        "threshold": found.threshold,
        "flags": flags,
        "quality": quality.facts(),
        "factor": inputs.factor,
        "tissue_px": _image_px(found.mask, context, inputs),
        **_per_region(found.mask, context, inputs),
    }
    if fitted:
        report.facts |= {"normalisation": [one and one.model_dump(mode="json") for one in fitted]}
    store.stamp("tissue", context.plan_hash, report.facts)
    return report


def area_mean(image_CYX: Array, factor: int) -> Array:
    """Mean of every ``factor`` x ``factor`` square (at edges: of its existing pixels), rounded half up, same dtype.

    Args:
        image_CYX: Unsigned integers.
        factor: Side of a square in pixels.
    """
    channels, *lengths = image_CYX.shape
    beyond = [-length % factor for length in lengths]
    if any(beyond):
        image_CYX = np.pad(image_CYX, [(0, 0), (0, beyond[0]), (0, beyond[1])])
    rows, cols = (length // factor for length in image_CYX.shape[1:])
    sums = image_CYX.reshape(channels, rows, factor, -1).sum(axis=2, dtype=np.uint32)
    sums = sums.reshape(channels, rows, cols, factor).sum(axis=3, dtype=np.uint64)
    counts = np.outer(*(_sizes(length, factor) for length in lengths)).astype(np.uint64)
    return np.asarray((2 * sums + counts) // (2 * counts), image_CYX.dtype)


def _sizes(length: int, factor: int) -> Array:
    """Image pixels along each square: ``factor``, and the remainder for the last square."""
    return np.diff(np.append(np.arange(0, length, factor), length))


def _fitted(context: StageContext, inputs: TissueInputs) -> tuple[ColourMap | None, ...]:
    """The slide's colour map for each network, where any network needs one."""
    return fits(_assemble(context, "sample"), inputs.normalisations) if inputs.normalisations else ()


def _assemble(context: StageContext, name: str) -> Array:
    return np.concatenate([_row(context, row, name) for row in range(context.grid.rows)], axis=1)


def _row(context: StageContext, row: int, name: str) -> Array:
    """The results ``name`` of a row of blocks, side by side."""
    kept = (context.store.load_result("tissue", context.plan_hash, (row, col)) for col in range(context.grid.cols))
    return np.concatenate([small[name] for small in kept], axis=2)


def _found(thumb_CYX: Array, context: StageContext, inputs: TissueInputs) -> TissueResult:
    match inputs.how:
        case None:
            return TissueResult(np.ones(thumb_CYX.shape[1:], dtype=bool), "off")
        case TissueParams() as params:
            return find_tissue(thumb_CYX, params)
        case MaskFile() as file:
            mask = tissue_from_mask(file.read(context.shape_yx), context.shape_yx, inputs.factor)
            return TissueResult(mask, f"mask {file.path.name}", None, () if mask.any() else ("no tissue found",))


def _quality(thumb_CYX: Array, mask: Mask, context: StageContext, inputs: TissueInputs) -> Quality:
    """Quality of all cells, measured one row of blocks after the other."""
    bright = polarity_of(thumb_CYX) == "bright-field" and len(thumb_CYX) == 3
    pen = pen_mask(thumb_CYX, inputs.factor * inputs.image.mpp) if bright else np.zeros_like(mask)
    height, strips = context.block_px // inputs.factor, []
    for row in range(context.grid.rows):
        here = slice(row * height, (row + 1) * height)
        pixels = thumb_CYX[:, here], _row(context, row, "detail"), mask[here], pen[here]
        strip = ImageStrip(*pixels, side=CELL_PX // inputs.factor, bright_field=bright)
        strips.append(strip.measures(inputs.stain))
    return Quality(np.concatenate(strips, axis=1), (CELL_PX * inputs.image.mpp) ** 2 / 1e6)


def _squares(cells: Mask, mask: Mask, inputs: TissueInputs) -> Mask:
    """Expand a mask of cells to tissue pixels."""
    side = CELL_PX // inputs.factor
    whole = cells.repeat(side, axis=0).repeat(side, axis=1)
    return np.asarray(whole[: mask.shape[0], : mask.shape[1]])


def _write(context: StageContext, path: str, pixels: Array) -> None:
    context.store.create(ArraySpec(path, pixels.shape, str(pixels.dtype), context.block_px, context.plan_hash))
    done = context.store.done(path, context.plan_hash)
    for tile in TileGrid(Box.of_shape((pixels.shape[-2], pixels.shape[-1])), context.block_px):
        if tile.index not in done:
            context.store.write_block(path, context.plan_hash, tile.core, pixels[(..., *tile.core.slices)])
    context.store.commit(path, context.plan_hash)


def _image_px(mask_YX: Array, context: StageContext, inputs: TissueInputs) -> int:
    """Pixels of the image under the mask; the last row and column of the mask cover what exists."""
    sizes = [_sizes(length, inputs.factor) for length in context.shape_yx]
    return int(sizes[0] @ mask_YX.astype(np.int64) @ sizes[1])


# ---- regions --------------------------------------------------------------------------------------------------------


def _per_region(mask_YX: Mask, context: StageContext, inputs: TissueInputs) -> dict[str, Any]:
    """Image pixels of tissue in each region, in the order of the names. A square counts where its centre lies."""
    if inputs.regions is None:
        return {}
    counts = np.zeros(len(inputs.regions.names), np.int64)
    for y, x, sizes in _tissue_squares(mask_YX, context, inputs):
        numbers = inputs.regions.region_of(y, x)
        np.add.at(counts, numbers[numbers >= 0], sizes[numbers >= 0])
    return {"region_tissue_px": counts.tolist()}


def _tissue_squares(mask_YX: Mask, context: StageContext, inputs: TissueInputs) -> Iterator[tuple[Array, Array, Array]]:
    """Centres (y, x; level 0) and image pixels of the tissue squares, some rows at a time."""
    sizes = [_sizes(length, inputs.factor) for length in context.shape_yx]
    ends = [np.cumsum(one) for one in sizes]
    centres = [(ends[axis] - sizes[axis] / 2) * inputs.image.level0_from_image[axis] for axis in (0, 1)]
    for first in range(0, len(mask_YX), _ROWS_AT_ONCE):
        y, x = np.nonzero(mask_YX[first : first + _ROWS_AT_ONCE])
        y += first
        yield centres[0][y], centres[1][x], sizes[0][y] * sizes[1][x]
