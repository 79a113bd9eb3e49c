"""Measure: write the object table, one row for each object, from integer sums over blocks.

A block returns sums, never rows, so an object that is cut by any number of seams gets the same row as in one piece. The
sums are stored in one small file for each block and merged in raster order of the blocks.

Memory of the merge: 122 bytes an object and 8 for each image channel, 1 kB for an object on a seam, plus the rows of
one row group.
"""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DamagedError, StoreError
from pipeline.execution.blocks import Counts, MapBlocks, StageContext, StageReport, run_blocks
from pipeline.geometry import Box
from pipeline.objects.components import RunLengths, rasterize
from pipeline.objects.convex_hull import ConvexChains
from pipeline.objects.moments import BlockSums, total
from pipeline.objects.perimeter import LENGTHS, count_outline
from pipeline.objects.run_length import EDGE_PX, lines_around, object_runs
from pipeline.objects.table_writer import MeasureInputs, Merged, ObjectTable, sums_of
from pipeline.storage.atomic_files import fsync_dir, write_atomic
from pipeline.storage.layout import IMAGE, OBJECTS, PROBABILITY, TABLE
from pipeline.storage.slide_store import Index

Array = NDArray[Any]

STAGE = "measure"


def measure_block(context: StageContext, inputs: MeasureInputs, index: Index) -> Counts:
    """Write the sums of each object in a block: shape, probability of its class, intensity of each channel.

    Probability and image are read only where there are objects.
    """
    store, core = context.store, context.core(index)
    plan = store.plan_of(OBJECTS)
    found = object_runs(store, plan, index, core)
    runs, (ids, object_index) = found.runs, _compact(found.runs.label)
    group = np.zeros(len(ids), np.uint8)
    group[object_index] = found.group
    shapes = BlockSums.of_runs(runs, object_index, (core.y0, core.x0))
    hull, cut = _hulls(context, core, shapes, runs, object_index)
    sums = np.zeros((len(Merged.empty(0, len(inputs.image.channels)).sums), 0), np.int64)
    if len(ids):
        probability = _probability_sums(store.read(PROBABILITY).read(core), runs, object_index, group)
        image = _checked(store.read(IMAGE).read(core), inputs)
        intensity = np.stack([total(object_index, run_sums(channel, runs)) for channel in image])
        sums = sums_of(probability, hull, _outline(context, plan, index, runs), intensity)
    result = {"id": ids, "group": group, "shapes": _stacked(shapes), "sums": sums, "chains": _stacked(cut)}
    store.save_result(STAGE, context.plan_hash, index, result)
    return {"objects_in_blocks": len(ids)}


def _stacked(columns: BlockSums | ConvexChains) -> Array:
    return np.stack([getattr(columns, field.name) for field in fields(columns)])


def _outline(context: StageContext, plan: str, index: Index, runs: RunLengths) -> Array:
    """Pixels of each length in the outline of each object of a block (lengths, objects), ascending by id."""
    tile = context.grid.tile(*index)
    around = list(lines_around(context.store, plan, tile, context.grid))
    ids, object_index = _compact(runs.label)
    near = np.union1d(ids, np.concatenate([ids[:0], *(lines[lines > 0] for _, lines in around)]))
    height, width = tile.core.shape
    # Renumbered in the smallest type, because comparing neighbours takes most of the time.
    numbers = np.zeros((height + 2 * EDGE_PX, width + 2 * EDGE_PX), np.min_scalar_type(len(near)))
    for where, lines in around:
        numbers[where] = np.where(lines > 0, np.searchsorted(near, lines) + 1, 0)
    mine = np.searchsorted(near, ids)
    numbers[EDGE_PX:-EDGE_PX, EDGE_PX:-EDGE_PX] = rasterize(
        runs, (mine + 1).astype(numbers.dtype)[object_index], tile.core.shape
    )
    number, length = count_outline(numbers)
    counts = np.bincount(length.astype(np.int64) * (len(near) + 1) + number, minlength=len(LENGTHS) * (len(near) + 1))
    return counts.reshape(len(LENGTHS), -1)[:, mine + 1]


def _hulls(
    context: StageContext, core: Box, shapes: BlockSums, runs: RunLengths, object_index: Array
) -> tuple[Array, ConvexChains]:
    """Pixels in the convex hull of each object; 0 for objects that reach a seam, whose chains are returned."""
    height, width = context.shape_yx
    seam = ((shapes.y0 == core.y0) & (core.y0 > 0)) | ((shapes.y1 == core.y1) & (core.y1 < height))
    seam |= ((shapes.x0 == core.x0) & (core.x0 > 0)) | ((shapes.x1 == core.x1) & (core.x1 < width))
    chains = ConvexChains.of_runs(runs, object_index, (core.y0, core.x0))
    return chains.of_objects(~seam).areas(len(seam)), chains.of_objects(seam)


def run_sums(pixels_YX: Array, runs: RunLengths) -> Array:
    """Sum of unsigned 8- or 16-bit pixels over each run; uint32 suffices, because a run lies in one row of a block."""
    width = pixels_YX.shape[1]
    start = runs.y * width + runs.x0
    bounds = np.stack((start, start + runs.length), axis=1).ravel()
    inside = bounds[:-1] if bounds[-1] == pixels_YX.size else bounds  # reduceat does not accept the end of the array
    return np.asarray(np.add.reduceat(pixels_YX.ravel(), inside, dtype=np.uint32)[::2])


def _compact(labels: Array) -> tuple[Array, Array]:
    """Distinct labels in ascending order, and the index of each label among them. 9 bytes for each id in range."""
    if not len(labels):
        return np.zeros(0, np.uint32), np.zeros(0, np.int64)
    lowest = int(labels.min())
    seen = np.zeros(int(labels.max()) - lowest + 1, np.bool_)
    seen[labels - lowest] = True
    return np.flatnonzero(seen).astype(np.uint32) + np.uint32(lowest), (np.cumsum(seen) - 1)[labels - lowest]


def _checked(image_CYX: Array, inputs: MeasureInputs) -> Array:
    if len(image_CYX) != len(inputs.image.channels) or image_CYX.dtype not in (np.uint8, np.uint16):
        raise StoreError(
            f"expected an 8- or 16-bit image with channels {', '.join(inputs.image.channels)}, found {len(image_CYX)} "
            f"channels of {image_CYX.dtype}: the image belongs to another model. Run segment with --force"
        )
    return image_CYX


def _probability_sums(probability_KYX: Array, runs: RunLengths, object_index: Array, group: Array) -> Array:
    """Sum, over each object, of the stored bytes of its own class."""
    of_run = np.zeros(len(object_index), np.int64)
    for number, plane in enumerate(probability_KYX, start=1):
        mine = np.flatnonzero(group[object_index] == number)
        if len(mine):
            of_run[mine] = run_sums(plane, RunLengths(runs.label[mine], runs.y[mine], runs.x0[mine], runs.x1[mine]))
    return total(object_index, of_run)


def measure_slide(context: StageContext, inputs: MeasureInputs, map_blocks: MapBlocks) -> StageReport:
    """Write ``objects.parquet``: one row for each id of ``labels/objects/0``, ascending.

    The bytes do not depend on the order of blocks. Blocks that were measured under this plan are not measured again.

    Raises:
        DamagedError: The labels lack objects that the label stage counted.
        StoreError: The image has other channels than the model.
    """
    store, plan = context.store, context.plan_hash
    store.sweep_results(STAGE, plan)
    report = run_blocks(STAGE, context, store.results(STAGE, plan), partial(measure_block, context, inputs), map_blocks)
    merged = Merged.empty(int(store.facts("label")["objects"]), len(inputs.image.channels))
    cut: list[ConvexChains] = []
    for tile in context.grid:
        result = store.load_result(STAGE, plan, tile.index)
        merged.add(result)
        cut.append(ConvexChains(*result["chains"]).relabel(result["id"].astype(np.int64) - 1))
    merged.hull[:] += ConvexChains.merged(cut).areas(len(merged.group))
    if (merged.shapes.count == 0).any():
        raise DamagedError(f"{store.zarr / OBJECTS} lacks objects that labelling counted. Run 'overtile verify'")
    table = ObjectTable(inputs, context.shape_yx, merged)
    write_atomic(store.root / TABLE, table.write)
    fsync_dir(store.root)
    report.facts = table.facts
    store.stamp(STAGE, plan, report.facts)
    return report
