"""Looking at a slide before it is segmented: where its tissue is, and what a window of it really takes.

The one decision made here: a window is segmented by the very stages of a run, in a temporary folder that is gone
afterwards. So nothing is modelled that could be measured, and a new stage is in the price from its first day.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from flows.batch.cost_estimate import Extent, Seen
from pipeline.config import CELL_PX
from pipeline.errors import DamagedError
from pipeline.execution.blocks import StageContext, StageReport, serial
from pipeline.geometry import Box, TileGrid
from pipeline.runs.plan import SlidePlan
from pipeline.runs.stage_runner import ingest_section, run_stage, tissue_params
from pipeline.slides.channels import choose_channels
from pipeline.slides.opening import open_slide
from pipeline.stage_table import OVERLAY as PICTURE
from pipeline.stages.ingest import read_image
from pipeline.stages.tissue import area_mean
from pipeline.storage.layout import IMAGE, OVERVIEW, PROBABILITY, TISSUE_UM
from pipeline.storage.manifest import write_manifest
from pipeline.storage.slide_store import Array, ArraySpec, SlideStore
from pipeline.tissue_detection.threshold import find_tissue
from unet_core.networks.model_summary import operations_per_px

LARGEST_THUMB_PX = 64_000_000
"""A level larger than this is not read just to look: such a slide is priced as tissue throughout."""
LARGEST_WINDOW = 1e12
"""Operations of the network on a window, beyond which a window is one tile instead of one block."""

Cells = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Look:
    """A slide's cells (rows, cols) for which the network will be asked; ``guessed`` says why none was looked at."""

    cells: Cells
    guessed: str = ""


# ---- where there is tissue -------------------------------------------------------------------------------------------


def look(plan: SlidePlan) -> Look:
    """Find the slide's tissue on its smallest level, by the tissue stage's own rule."""
    rows, cols = (-(-length // CELL_PX) for length in plan.shape_yx)
    cells, guessed = np.ones((rows, cols), bool), ""
    if plan.config.tissue is not None:
        thumb_CYX = _thumb(plan)
        if thumb_CYX is None:
            guessed = "no small level to look at: priced as if all of it were tissue"
        elif params := tissue_params(plan, plan.shape_yx[0] / thumb_CYX.shape[1]):
            cells = _cells(find_tissue(thumb_CYX, params).mask, plan.shape_yx)
    if plan.regions is not None:
        cells &= plan.regions.cells(plan.shape_yx, CELL_PX, plan.resolution.level0_from_image_yx)
    return Look(cells, guessed)


def _thumb(plan: SlidePlan) -> Array | None:
    """The slide (c, y, x) at about 8 um per pixel, from a level that is not coarser; None when that is a large one."""
    reader = choose_channels(open_slide(plan.slide), plan.channel_numbers)
    image_um = plan.resolution.mpp / plan.resolution.level0_from_image_yx[0]  # of a pixel of level 0
    fine = [number for number, level in enumerate(reader.levels) if level.downsample_yx[0] * image_um <= TISSUE_UM]
    number = fine[-1] if fine else 0
    shape = reader.levels[number].shape_yx
    if shape[0] * shape[1] > LARGEST_THUMB_PX:
        return None
    factor = max(1, int(TISSUE_UM / (reader.levels[number].downsample_yx[0] * image_um)))
    return area_mean(reader.read(number, Box.of_shape(shape)), factor)


def _cells(mask_YX: Cells, shape_yx: tuple[int, int]) -> Cells:
    """Cells in which some pixel of the mask lies."""
    places = [
        (np.arange(length) * whole / length).astype(np.int64) // CELL_PX
        for length, whole in zip(mask_YX.shape, shape_yx, strict=True)
    ]
    rows, cols = (int(place[-1]) + 1 for place in places)
    found = np.zeros((rows, cols), bool)
    y, x = np.nonzero(mask_YX)
    found[places[0][y], places[1][x]] = True
    whole = np.zeros(tuple(-(-length // CELL_PX) for length in shape_yx), bool)
    whole[:rows, :cols] = found
    return whole


def extent(plan: SlidePlan, cells: Cells, store: SlideStore) -> Extent:
    """Pixels and calls of a slide whose tissue lies in these cells, less what is done in ``store`` already."""
    sides = [np.diff(np.append(np.arange(0, length, CELL_PX), length)) for length in plan.shape_yx]
    tissue_px = int(sides[0] @ cells.astype(np.int64) @ sides[1])
    height, width = plan.shape_yx
    calls = 0
    for block in TileGrid(Box.of_shape(plan.shape_yx), plan.block_px):
        tiles = TileGrid(block.core, plan.compute.tile_px)
        calls += sum(bool(cells[tile.core.cover(CELL_PX).slices].any()) for tile in tiles)
    return Extent(tissue_px, height * width - tissue_px, calls, dict(_left(plan, store)))


def _left(plan: SlidePlan, store: SlideStore) -> Iterator[tuple[str, float]]:
    """Stages that are complete, and the share of blocks that the costly ones still lack."""
    for stage, made in plan.hashes.items():
        try:
            if store.stamped(stage) == made:
                yield stage, 0.0
            elif (path := {"ingest": IMAGE, "predict": PROBABILITY}.get(stage)) and store.holds(path, made):
                yield stage, 1 - len(store.done(path, made)) / plan.blocks
        except DamagedError:  # the run will make it again
            continue


# ---- what a window takes ---------------------------------------------------------------------------------------------


def window(plan: SlidePlan, cells: Cells, *, tissue: bool) -> Box | None:
    """A window that is all tissue, or all glass, as large as the slide has one; None when it has none.

    At most a block, and with a network that takes long for one at most a tile.
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
    """The largest of the windows of this side whose cells are all wanted."""
    boxes = [tile.core for tile in TileGrid(Box.of_shape(plan.shape_yx), side)]
    pure = [box for box in boxes if wanted[box.cover(CELL_PX).slices].all()]
    return max(pure, key=lambda box: box.area_px, default=None)


def sample(plan: SlidePlan, box: Box) -> Seen:
    """Segment the window, stage by stage, in a temporary folder. Raises what a run would."""
    resampling = replace(plan.resolution.resampling, out_yx=box.shape)
    small = replace(plan, resolution=replace(plan.resolution, resampling=resampling), regions=None)
    seconds: dict[str, float] = {}
    calls = 0
    with TemporaryDirectory(prefix="overtile-") as folder:
        store = SlideStore(Path(folder) / "window")
        began = time.perf_counter()
        _read(plan, box, store)
        for stage in plan.hashes:
            if stage != "ingest":
                report: StageReport = run_stage(stage, small, store.root, serial)
                calls += report.counts.get("network_calls", 0)
            seconds[stage] = time.perf_counter() - began
            began = time.perf_counter()
        write_manifest(store, small.summary(), {})
        seconds["manifest"] = time.perf_counter() - began
        return Seen(box.area_px, calls, seconds, _sizes(store))


def _read(plan: SlidePlan, box: Box, store: SlideStore) -> None:
    """What ingest does for a block, for any box of the image."""
    work = StageContext(store.root, box.shape, plan.block_px, plan.hashes["ingest"])
    image_CYX = read_image(ingest_section(plan), box)
    store.create(ArraySpec(IMAGE, image_CYX.shape, str(image_CYX.dtype), work.block_px, work.plan_hash, codec="lz4"))
    store.write_block(IMAGE, work.plan_hash, Box.of_shape(box.shape), image_CYX)
    store.commit(IMAGE, work.plan_hash)
    store.stamp("ingest", work.plan_hash, {})


def _sizes(store: SlideStore) -> dict[str, int]:
    """Bytes by output."""
    sizes: dict[str, int] = {}
    for path in store.root.rglob("*"):
        if path.is_file():
            output = _output(path.relative_to(store.root).as_posix())
            sizes[output] = sizes.get(output, 0) + path.stat().st_size
    return sizes


def _output(name: str) -> str:
    """What a person would call the file at this path below the slide's folder."""
    if name in (OVERVIEW, "manifest.json") or name.endswith("zarr.json"):
        return PICTURE
    if name.startswith(("objects.", ".work/")):
        return "tables" if name.startswith("objects.") else "records of blocks"
    inside = name.removeprefix("slide.ome.zarr/")
    group = next((group for group in ("labels", "probability", "tissue") if inside.startswith(group)), "image")
    full = inside.startswith(("0/", "probability/0/"))
    return group if full or group in ("labels", "tissue") else f"{group}, coarser"
