"""Tissue: where there is anything to compute, decided on one low-resolution picture of the whole slide.

The one decision made here: the picture is the image itself, averaged over squares of a fixed number of pixels, so it
depends on no pyramid a scanner happened to write and on no block.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from pipeline.geometry import Box, TileGrid
from pipeline.store import Array, ArraySpec, Index
from pipeline.tissue_mask import TissueParams, TissueResult, find_tissue
from pipeline.work import Counts, MapBlocks, StageReport, Work, run_blocks

ARRAY = "tissue"
TARGET_UM = 8.0
LARGEST_FACTOR = 64


@dataclass(frozen=True, slots=True)
class TissueSection:
    """How to look for tissue: None for ``params`` means everything is tissue. ``factor`` image px make a tissue px."""

    params: TissueParams | None
    factor: int


def tissue_factor(mpp: float) -> int:
    """Image pixels along one tissue pixel: the largest power of two that stays at or below 8 um, dividing a cell."""
    factor = 1
    while factor < LARGEST_FACTOR and 2 * factor * mpp <= TARGET_UM:
        factor *= 2
    return factor


def tissue_block(work: Work, section: TissueSection, index: Index) -> Counts:
    """Keep the area mean of one block of the image as the block's small result."""
    image_CYX = work.store.read("0").read(work.core(index))
    work.store.save_result("tissue", work.plan, index, {"thumb": area_mean(image_CYX, section.factor)})
    return {}


def tissue_slide(work: Work, section: TissueSection, map_blocks: MapBlocks) -> StageReport:
    """Write ``tissue`` (y, x) bool: where the slide shows tissue, at about 8 um per pixel."""
    store = work.store
    store.sweep_results("tissue", work.plan)
    done = store.results("tissue", work.plan)
    report = run_blocks("tissue", work, done, partial(tissue_block, work, section), map_blocks)
    thumb_CYX = _assemble(work, section.factor)
    found = _everything(thumb_CYX) if section.params is None else find_tissue(thumb_CYX, section.params)
    shape = (found.mask.shape[0], found.mask.shape[1])
    store.create(ArraySpec(ARRAY, shape, "bool", work.block_px, work.plan))
    for tile in TileGrid(Box.of_shape(shape), work.block_px):
        store.write_block(ARRAY, work.plan, tile.core, found.mask[tile.core.slices])
    store.commit(ARRAY, work.plan)
    facts = {"method": found.method, "bright_field": found.bright_field, "threshold": found.threshold}
    report.facts = {
        **facts,
        "flags": list(found.flags),
        "factor": section.factor,
        "tissue_px": _image_px(found.mask, work, section),
    }
    store.stamp("tissue", work.plan, report.facts)
    return report


def area_mean(image_CYX: Array, factor: int) -> Array:
    """Mean of every ``factor`` x ``factor`` square (edges: of what exists), rounded half up, same dtype."""
    rows, cols = (np.arange(0, length, factor) for length in image_CYX.shape[1:])
    sums = np.add.reduceat(np.add.reduceat(image_CYX.astype(np.uint64), rows, axis=1), cols, axis=2)
    sizes = [
        np.diff(np.append(starts, length)) for starts, length in zip((rows, cols), image_CYX.shape[1:], strict=True)
    ]
    counts = np.outer(*sizes).astype(np.uint64)
    return ((2 * sums + counts) // (2 * counts)).astype(image_CYX.dtype)


def _assemble(work: Work, factor: int) -> Array:
    thumbs = [
        [work.store.load_result("tissue", work.plan, (row, col))["thumb"] for col in range(work.grid.cols)]
        for row in range(work.grid.rows)
    ]
    return np.concatenate([np.concatenate(row, axis=2) for row in thumbs], axis=1)


def _image_px(mask_YX: Array, work: Work, section: TissueSection) -> int:
    """Pixels of the image under the mask; the last row and column of the mask cover what exists."""
    starts = (np.arange(0, length, section.factor) for length in work.shape_yx)
    sizes = [np.diff(np.append(start, length)) for start, length in zip(starts, work.shape_yx, strict=True)]
    return int(sizes[0] @ mask_YX.astype(np.int64) @ sizes[1])


def _everything(thumb_CYX: Array) -> TissueResult:
    mask = np.ones(thumb_CYX.shape[1:], dtype=bool)
    return TissueResult(mask=mask, method="off", bright_field=False, threshold=None, flags=())
