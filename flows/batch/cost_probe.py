"""Measure a slide before it is segmented: its tissue cells, and the time and disk space of a sample window.

A window is segmented by the stages of a run in a temporary folder. So costs are measured, not modelled, and a new stage
is included without further code.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from flows.batch.cost_estimate import Extent, WindowCost
from pipeline.config import CELL_PX
from pipeline.errors import DamagedError
from pipeline.execution.blocks import StageContext, StageReport, serial
from pipeline.geometry import Box, TileGrid
from pipeline.runs.plan import SlidePlan
from pipeline.runs.stage_runner import ingest_section, run_stage, tissue_params
from pipeline.slides.channels import select_channels
from pipeline.slides.opening import open_slide
from pipeline.stage_table import INGEST, OVERLAY, PREDICT
from pipeline.stages.ingest import read_image
from pipeline.stages.tissue import area_mean
from pipeline.storage.layout import IMAGE, MANIFEST, MAPS, OVERVIEW, PROBABILITY, TISSUE_UM
from pipeline.storage.manifest import write_manifest
from pipeline.storage.slide_store import Array, ArraySpec, SlideStore
from pipeline.tissue_detection.threshold import find_tissue
from unet_core.networks.model_summary import operations_per_px

LARGEST_THUMB_PX = 64_000_000
"""Levels larger than this are not read; the slide then counts as tissue throughout."""
LARGEST_WINDOW = 1e12
"""Network operations on a window above which a window is one tile instead of one block."""

Cells = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class TissueCells:
    """Cells (rows, cols) of a slide that the network computes; ``guessed`` states why they were not measured."""

    cells: Cells
    guessed: str = ""


# ---- tissue ----------------------------------------------------------------------------------------------------------


def look(plan: SlidePlan) -> TissueCells:
    """Find the tissue of a slide on a coarse level, by the method of the tissue stage."""
    rows, cols = (-(-length // CELL_PX) for length in plan.shape_yx)
    cells, guessed = np.ones((rows, cols), bool), ""
    if plan.config.tissue is not None:
        thumb_CYX = _thumb(plan)
        if thumb_CYX is None:
            guessed = "no coarse level to measure: estimated as tissue throughout"
        elif params := tissue_params(plan, plan.shape_yx[0] / thumb_CYX.shape[1]):
            cells = _cells(find_tissue(thumb_CYX, params).mask, plan.shape_yx)
    if plan.regions is not None:
        cells &= plan.regions.cells(plan.shape_yx, CELL_PX, plan.resolution.level0_from_image_yx)
    return TissueCells(cells, guessed)


def _thumb(plan: SlidePlan) -> Array | None:
    """The slide (c, y, x) at about 8 um per pixel, from a level that is not coarser; None if it is too large."""
    reader = select_channels(open_slide(plan.slide), plan.channel_numbers)
    image_um = plan.resolution.mpp / plan.resolution.level0_from_image_yx[0]  # of a pixel of level 0
    fine = [number for number, level in enumerate(reader.levels) if level.downsample_yx[0] * image_um <= TISSUE_UM]
    number = fine[-1] if fine else 0
    shape = reader.levels[number].shape_yx
    if shape[0] * shape[1] > LARGEST_THUMB_PX:
        return None
    factor = max(1, int(TISSUE_UM / (reader.levels[number].downsample_yx[0] * image_um)))
    return area_mean(reader.read(number, Box.of_shape(shape)), factor)


def _cells(mask_YX: Cells, shape_yx: tuple[int, int]) -> Cells:
    """Cells (rows, cols) that contain a pixel of the mask (y, x)."""
    cell_of_pixel = [
        (np.arange(length) * full / length).astype(np.int64) // CELL_PX
        for length, full in zip(mask_YX.shape, shape_yx, strict=True)
    ]
    rows, cols = (int(numbers[-1]) + 1 for numbers in cell_of_pixel)
    found = np.zeros((rows, cols), bool)
    y, x = np.nonzero(mask_YX)
    found[cell_of_pixel[0][y], cell_of_pixel[1][x]] = True
    cells = np.zeros(tuple(-(-length // CELL_PX) for length in shape_yx), bool)
    cells[:rows, :cols] = found
    return cells


def extent(plan: SlidePlan, cells: Cells, store: SlideStore) -> Extent:
    """Pixels and network calls of a slide with tissue in ``cells``, less what is complete in ``store``."""
    sides = [np.diff(np.append(np.arange(0, length, CELL_PX), length)) for length in plan.shape_yx]
    tissue_px = int(sides[0] @ cells.astype(np.int64) @ sides[1])
    height, width = plan.shape_yx
    calls = 0
    for block in TileGrid(Box.of_shape(plan.shape_yx), plan.block_px):
        tiles = TileGrid(block.core, plan.compute.tile_px)
        calls += sum(bool(cells[tile.core.cover(CELL_PX).slices].any()) for tile in tiles)
    return Extent(tissue_px, height * width - tissue_px, calls, dict(_left(plan, store)))


def _left(plan: SlidePlan, store: SlideStore) -> Iterator[tuple[str, float]]:
    """Remaining share of blocks, of stages that are complete or partly done."""
    for stage, made in plan.hashes.items():
        try:
            if store.stamped(stage) == made:
                yield stage, 0.0
            elif (path := {INGEST: IMAGE, PREDICT: PROBABILITY}.get(stage)) and store.holds(path, made):
                yield stage, 1 - len(store.done(path, made)) / plan.blocks
        except DamagedError:  # the run recomputes it
            continue


# ---- sample windows --------------------------------------------------------------------------------------------------


def window(plan: SlidePlan, cells: Cells, *, tissue: bool) -> Box | None:
    """The largest window that is all tissue, or all glass; None when there is none.

    A window is at most a block, or at most a tile where the network takes long for a block.
    """
    side = plan.block_px
    operations = plan.model.passes * sum(operations_per_px(spec) for spec in plan.model.specs)
    if plan.compute.device == "cpu" and operations * side**2 > LARGEST_WINDOW:
        side = plan.compute.tile_px
    for length in (side, side // 2 // CELL_PX * CELL_PX, CELL_PX):
        found = _best(plan, cells == tissue, length) if length else None
        if found is not None:
            return found
    return None


def _best(plan: SlidePlan, wanted: Cells, side: int) -> Box | None:
    """The largest of the windows of this side whose cells are all ``wanted``."""
    boxes = [tile.core for tile in TileGrid(Box.of_shape(plan.shape_yx), side)]
    pure = [box for box in boxes if wanted[box.cover(CELL_PX).slices].all()]
    return max(pure, key=lambda box: box.area_px, default=None)


def sample(plan: SlidePlan, box: Box) -> WindowCost:
    """Segment a window stage by stage in a temporary folder.

    Raises:
        OvertileError: A stage fails as it would in a run.
    """
    resampling = replace(plan.resolution.resampling, out_yx=box.shape)
    small = replace(plan, resolution=replace(plan.resolution, resampling=resampling), regions=None)
    seconds: dict[str, float] = {}
    calls = 0
    with TemporaryDirectory(prefix="overtile-") as folder:
        store = SlideStore(Path(folder) / "window")
        began = time.perf_counter()
        _read(plan, box, store)
        for stage in plan.hashes:
            if stage != INGEST:
                report: StageReport = run_stage(stage, small, store.root, serial)
                calls += report.counts.get("network_calls", 0)
            seconds[stage] = time.perf_counter() - began
            began = time.perf_counter()
        write_manifest(store, small.summary(), {})
        seconds["manifest"] = time.perf_counter() - began
        return WindowCost(box.area_px, calls, seconds, _sizes(store))


def _read(plan: SlidePlan, box: Box, store: SlideStore) -> None:
    """Store a box of the image, as the ingest stage stores a block."""
    work = StageContext(store.root, box.shape, plan.block_px, plan.hashes[INGEST])
    image_CYX = read_image(ingest_section(plan), box)
    store.create(ArraySpec(IMAGE, image_CYX.shape, str(image_CYX.dtype), work.block_px, work.plan_hash, codec="lz4"))
    store.write_block(IMAGE, work.plan_hash, Box.of_shape(box.shape), image_CYX)
    store.commit(IMAGE, work.plan_hash)
    store.stamp(INGEST, work.plan_hash, {})


def _sizes(store: SlideStore) -> dict[str, int]:
    """Bytes by output."""
    sizes: dict[str, int] = {}
    for path in store.root.rglob("*"):
        if path.is_file():
            output = _output(path.relative_to(store.root).as_posix())
            sizes[output] = sizes.get(output, 0) + path.stat().st_size
    return sizes


def _output(name: str) -> str:
    """The displayed name of the output to which a file below the slide's folder belongs."""
    if name in (OVERVIEW, MANIFEST) or name.endswith("zarr.json"):
        return OVERLAY
    if name.startswith(("objects.", ".work/")):
        return "tables" if name.startswith("objects.") else "records of blocks"
    inside = name.removeprefix("slide.ome.zarr/")
    groups = ("labels", "probability", "maps", "tissue")
    group = next((group for group in groups if inside.startswith(group)), "image")
    full = inside.startswith(("0/", "probability/0/", *(f"{path}/" for path in MAPS.values())))
    return group if full or group in ("labels", "tissue") else f"{group}, coarser"
