"""Predict: run the network tile by tile, with the result of one forward pass over the whole slide.

A tile is read with the network's halo (mirrored beyond the slide), starts on a multiple of the network's step, and is
cropped to its core. So blocks meet without a seam, and cells without tissue cost no call.

Maps of a network are arrays of their own. A block writes its maps first and the probability last, and it is done when
all of them have it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import CELL_PX
from pipeline.execution.blocks import Counts, MapBlocks, StageContext, StageReport, run_blocks
from pipeline.geometry import Box
from pipeline.inference.predictor import Colours, MirroredRegion, Predictor, load_networks
from pipeline.inference.seam_check import Cut, seam_check
from pipeline.storage.layout import IMAGE, MAPS, PROBABILITY, TISSUE
from pipeline.storage.slide_store import Array, ArraySpec, Index, StoredArray
from unet_core.model_file.header import Weights
from unet_core.normalisation import ColourMap
from unet_core.spec import MapName


@dataclass(frozen=True, slots=True)
class PredictInputs:
    """Which networks compute what.

    Attributes:
        weights: Files of the networks.
        tta: Test-time augmentation, ``none`` or ``d4``.
        foreground: Number of foreground classes.
        step_px: Step of the networks together, for the seam check.
        device: Device kind, ``cpu`` or ``cuda``.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        tile_px: Side of the core of one network call.
        tissue_factor: Image pixels along one tissue pixel.
        cells: Cells (rows, cols) of the image to compute where there is tissue; None for all.
        colours: For each network the colour map fitted to this slide; empty when none needs one.
        maps: Names of the networks' maps, in the order of their planes.
    """

    weights: tuple[Weights, ...]
    tta: str
    foreground: int
    step_px: int
    device: str
    precision: str
    tile_px: int
    tissue_factor: int
    cells: NDArray[np.bool_] | None
    colours: Colours
    maps: tuple[MapName, ...] = ()


def load_network(inputs: PredictInputs) -> Predictor:
    """The networks of the inputs, loaded once per process.

    Raises:
        ModelError: The weights are not those of the plan.
    """
    return load_networks(inputs.weights, inputs.device, inputs.precision, inputs.tta)


def colours_of(tissue: Mapping[str, Any]) -> Colours:
    """The colour maps in the facts of the tissue stage."""
    fitted = tissue.get("normalisation", ())
    return tuple(None if one is None else ColourMap.model_validate(one) for one in fitted)


def predict_block(context: StageContext, inputs: PredictInputs, index: Index) -> Counts:
    """Compute and write one block of maps (y, x) and probability (k, y, x) uint8; cells not computed are 0."""
    core, store = context.core(index), context.store
    network = load_network(inputs)
    computed = pixels_to_compute(store.read(TISSUE), inputs, core)
    before = network.calls.made
    pixels = np.zeros((inputs.foreground + len(inputs.maps), *core.shape), np.uint8)
    if computed.any():
        grid = network.grid(core, inputs.tile_px)
        region = MirroredRegion.read_around(store.read(IMAGE), grid, inputs.colours)
        for tile in grid:
            window = tile.core.shift(-core.y0, -core.x0).slices
            if computed[window].any():
                pixels[(slice(None), *window)] = network.outputs(region, tile.core, inputs.tile_px)
        pixels[:, ~computed] = 0
    for name, map_YX in zip(inputs.maps, pixels[inputs.foreground :], strict=True):
        store.write_block(MAPS[name], context.plan_hash, core, map_YX)
    store.write_block(PROBABILITY, context.plan_hash, core, pixels[: inputs.foreground])
    return {"network_calls": network.calls.made - before, "halved": int(network.largest_px is not None)}


def pixels_to_compute(tissue: StoredArray, inputs: PredictInputs, box: Box) -> Array:
    """Pixels of the box (h, w) in cells that hold tissue and, with regions, touch a region."""
    return cell_pixels(cells_to_compute(tissue, inputs, box), box)


def cells_to_compute(tissue: StoredArray, inputs: PredictInputs, box: Box) -> Array:
    """Cells (rows, cols), of those that cover the box, that hold tissue and, with regions, touch a region."""
    found = tissue_cells(tissue, box, inputs.tissue_factor)
    return found if inputs.cells is None else found & inputs.cells[box.cover(CELL_PX).slices]


def tissue_cells(tissue: StoredArray, box: Box, factor: int) -> Array:
    """Cells that hold any tissue.

    Args:
        tissue: The tissue mask.
        box: Pixels of the image.
        factor: Image pixels along one tissue pixel.

    Returns:
        (rows, cols) of the cells that cover the box.
    """
    cells = box.cover(CELL_PX)
    low = cells.scale(CELL_PX // factor).intersect(Box.of_shape((tissue.shape[0], tissue.shape[1])))
    assert low is not None, "the box lies in the image"
    mask = tissue.read(low)
    starts = [np.arange(0, length, CELL_PX // factor) for length in mask.shape]
    return np.asarray(np.logical_or.reduceat(np.logical_or.reduceat(mask, starts[0], axis=0), starts[1], axis=1))


def cell_pixels(cells: Array, box: Box) -> Array:
    """Expand a mask of the cells (rows, cols) that cover a box to the pixels (h, w) of the box."""
    covered = box.cover(CELL_PX)
    whole = np.repeat(np.repeat(cells, CELL_PX, axis=0), CELL_PX, axis=1)
    return np.asarray(whole[box.shift(-covered.y0 * CELL_PX, -covered.x0 * CELL_PX).slices])


def predict_slide(context: StageContext, inputs: PredictInputs, map_blocks: MapBlocks) -> StageReport:
    """Write the whole probability and maps, block by block, and check both for seams."""
    store = context.store
    shapes: dict[str, tuple[int, ...]] = {MAPS[name]: context.shape_yx for name in inputs.maps}
    shapes[PROBABILITY] = (inputs.foreground, *context.shape_yx)
    for path, shape in shapes.items():
        store.create(ArraySpec(path, shape, "uint8", context.block_px, context.plan_hash))
    done = set.intersection(*(store.done(path, context.plan_hash) for path in shapes))
    report = run_blocks("predict", context, done, partial(predict_block, context, inputs), map_blocks)
    for path in shapes:
        store.commit(path, context.plan_hash)
    report.facts = _facts(context, inputs)
    store.stamp("predict", context.plan_hash, report.facts)
    return report


def read_planes(arrays: Sequence[StoredArray], box: Box) -> Array:
    """Read one box (k, h, w) of arrays (k, y, x) and (y, x), one plane after another."""
    return np.concatenate([array.read(box).reshape(-1, *box.shape) for array in arrays])


def _facts(context: StageContext, inputs: PredictInputs) -> dict[str, Any]:
    """Number of computed and skipped pixels, and the seam check."""
    whole = Box.of_shape(context.shape_yx)
    tissue = context.store.read(TISSUE)
    alive = sum(int(pixels_to_compute(tissue, inputs, core).sum()) for core in (tile.core for tile in context.grid))
    cut = Cut(context.shape_yx, context.block_px, inputs.tile_px, inputs.step_px)
    arrays = [context.store.read(path) for path in (PROBABILITY, *(MAPS[name] for name in inputs.maps))]
    seam = seam_check(partial(read_planes, arrays), cells_to_compute(tissue, inputs, whole), cut)
    return {"pixels": whole.area_px, "skipped_pixels": whole.area_px - alive, "seam": seam}
