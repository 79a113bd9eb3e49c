"""The stages of one slide in order, each handed just what it needs of the plan.

The one decision made here: a stage runs when its stamp is not of this plan, and never otherwise; what inside it is
already done is the stage's own business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.config import CELL_PX
from pipeline.execution.blocks import MapBlocks, StageContext, StageReport
from pipeline.geometry import Box
from pipeline.inputs.regions import Mask
from pipeline.objects.table_writer import MeasureSection
from pipeline.rendering.contrast import Rgb, class_colours
from pipeline.runs.plan import SlidePlan
from pipeline.slides.bad_tiles import BadTile, untouched_cells
from pipeline.stage_table import STAGE, WRITER
from pipeline.stages import export, ingest, label, measure, overlay, predict, pyramid, tissue
from pipeline.storage.layout import ARRAYS, tissue_factor
from pipeline.tissue_detection.threshold import TissueParams


def run_stage(stage: str, plan: SlidePlan, root: Path, map_blocks: MapBlocks) -> StageReport:
    """Run one stage of one slide, or report that it was complete already.

    Raises what the stage raises: SlideError, ModelError, StoreError, DiskError, WorkerError.
    """
    work = StageContext(root, plan.shape_yx, plan.block_px, plan.hashes[stage])
    if work.store.stamped(stage) == work.plan:
        return StageReport(stage, facts=work.store.facts(stage))
    work.store.unstamp([stage])
    return RUNNERS[stage](work, plan, map_blocks)


def _ingest(work: StageContext, plan: SlidePlan, map_blocks: MapBlocks) -> StageReport:
    return ingest.ingest_slide(work, ingest_section(plan), map_blocks)


def ingest_section(plan: SlidePlan) -> ingest.IngestSection:
    """How the image of a plan is read from its slide."""
    return ingest.IngestSection(
        plan.slide,
        plan.resolution,
        plan.channels,
        plan.dtype,
        plan.channel_numbers,
        masking=plan.config.input.on_bad_tile == "mask",
        patience_s=plan.config.input.patience_s,
    )


def _tissue(work: StageContext, plan: SlidePlan, map_blocks: MapBlocks) -> StageReport:
    factor = tissue_factor(plan.resolution.mpp)
    section = tissue.TissueInputs(
        plan.mask or tissue_params(plan, factor),
        factor,
        plan.resolution.mpp,
        level0_from_image=plan.resolution.level0_from_image_yx,
        regions=plan.regions,
        stain=plan.model.spec.stain,
        exclude_qc=plan.config.tissue is not None and plan.config.tissue.exclude_qc,
        normalisations=plan.model.normalisations,
    )
    return tissue.tissue_slide(work, section, map_blocks)


def tissue_params(plan: SlidePlan, factor: float) -> TissueParams | None:
    """How tissue is found on a picture of which one pixel spans ``factor`` of the image's; None: everywhere."""
    wanted = plan.config.tissue
    if wanted is None:
        return None
    return TissueParams(
        mpp_um=plan.resolution.mpp * factor,
        min_area_um2=wanted.min_area_um2,
        fill_holes_um2=wanted.fill_holes_um2,
        dilate_px=math.ceil(plan.model.shape.halo / factor),
    )


def _predict(work: StageContext, plan: SlidePlan, map_blocks: MapBlocks) -> StageReport:
    section = predict.PredictSection(
        weights=plan.model.weights,
        foreground=plan.model.spec.foreground,
        device=plan.compute.device,
        precision=plan.compute.precision,
        tile_px=plan.compute.tile_px,
        tta=plan.model.tta,
        tissue_factor=tissue_factor(plan.resolution.mpp),
        cells=_cells(plan, BadTile.listed(work.store.facts("ingest"))),
        colours=predict.colours_of(work.store.facts("tissue")),
        step_px=plan.model.shape.step,
    )
    return predict.predict_slide(work, section, map_blocks)


def _cells(plan: SlidePlan, bad: Sequence[BadTile]) -> Mask | None:
    """The cells to compute: those in regions, if there are any, of which no bad tile is seen. None: all."""
    sound = untouched_cells(bad, plan.shape_yx, plan.model.shape.halo) if bad else None
    if plan.regions is None:
        return sound
    drawn = plan.regions.cells(plan.shape_yx, CELL_PX, plan.resolution.level0_from_image_yx)
    return drawn if sound is None else drawn & sound


def _label(work: StageContext, plan: SlidePlan, map_blocks: MapBlocks) -> StageReport:
    asked = plan.config.objects
    assert asked is not None, "a plan without objects has no such stage"
    section = label.LabelSection(
        threshold=plan.threshold,
        mpp=plan.resolution.mpp,
        connectivity=asked.connectivity,
        min_area_um2=plan.min_area_um2,
        max_area_um2=asked.max_area_um2,
        fill_holes_um2=asked.fill_holes_um2,
        discs_um=plan.discs_um,
        split=asked.split,
        split_depth_um=asked.split_depth_um,
        split_max_um=asked.split_max_um,
        regions=plan.regions,
        level0_from_image=plan.resolution.level0_from_image_yx,
    )
    return label.label_slide(work, section, map_blocks)


def _measure(work: StageContext, plan: SlidePlan, map_blocks: MapBlocks) -> StageReport:
    section = MeasureSection(
        mpp=plan.resolution.mpp,
        level0_from_image=plan.resolution.level0_from_image_yx,
        class_names=plan.model.spec.class_names,
        channels=plan.channel_names,
        regions=plan.regions,
    )
    return measure.measure_slide(work, section, map_blocks)


def _pyramid(work: StageContext, plan: SlidePlan, map_blocks: MapBlocks) -> StageReport:
    writers = {ARRAYS[artifact]: WRITER[artifact] for artifact in STAGE["pyramid"].reads}
    section = pyramid.PyramidSection(
        mpp_um=plan.resolution.mpp,
        channel_names=plan.channel_names,
        class_names=plan.model.spec.class_names,
        class_colours=_colours(plan),
        arrays={path: plan.hashes[stage] for path, stage in writers.items() if stage in plan.hashes},
    )
    return pyramid.pyramid_slide(work, section, map_blocks)


def _export(work: StageContext, plan: SlidePlan, map_blocks: MapBlocks) -> StageReport:
    section = export.ExportSection(
        objects_plan=plan.hashes["label"],
        level0_from_image=plan.resolution.level0_from_image_yx,
        class_names=plan.model.spec.class_names,
        class_colours=_colours(plan),
    )
    return export.export_slide(work, section, map_blocks)


def _overlay(work: StageContext, plan: SlidePlan, map_blocks: MapBlocks) -> StageReport:
    facts, read = work.store.facts("tissue"), work.store.facts("ingest")
    searched_px = facts["tissue_px"] if plan.regions is None else sum(facts["region_tissue_px"])
    section = overlay.OverlaySection(
        name=plan.key,
        model=plan.model.name,
        mpp_um=plan.resolution.mpp,
        channel_names=plan.channel_names,
        class_names=plan.model.spec.class_names,
        class_colours=_colours(plan),
        tissue_mm2=searched_px * plan.resolution.mpp**2 / 1e6 if plan.config.tissue or plan.regions else None,
        objects="label" in plan.hashes,
        flags=(*read.get("flags", ()), *facts["flags"]),
        masked=tuple(Box(*tile.box) for tile in BadTile.listed(read)),
        regions=plan.regions,
        level0_from_image=plan.resolution.level0_from_image_yx,
    )
    return overlay.overlay_slide(work, section, map_blocks)


def _colours(plan: SlidePlan) -> tuple[Rgb, ...]:
    return plan.model.spec.colours or class_colours(plan.model.spec.foreground)


RUNNERS: dict[str, Callable[[StageContext, SlidePlan, MapBlocks], StageReport]] = {
    "ingest": _ingest,
    "tissue": _tissue,
    "predict": _predict,
    "label": _label,
    "measure": _measure,
    "pyramid": _pyramid,
    "export": _export,
    "overlay": _overlay,
}
