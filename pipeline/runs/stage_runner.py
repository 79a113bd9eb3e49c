"""Run one stage of a slide with the inputs that it needs from the plan.

A stage runs unless its stamp matches the plan hash. Resuming within a stage is up to the stage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.config import CELL_PX
from pipeline.execution.blocks import MapBlocks, StageContext, StageReport
from pipeline.geometry import Box
from pipeline.inputs.regions import Mask
from pipeline.objects.table_writer import MeasureInputs
from pipeline.runs.plan import SlidePlan
from pipeline.slides.bad_tiles import BadTile, cells_without_bad_tiles
from pipeline.stage_table import STAGE, WRITER
from pipeline.stages import export, ingest, label, measure, overlay, predict, pyramid, tissue
from pipeline.storage.layout import ARRAYS, tissue_factor
from pipeline.tissue_detection.threshold import TissueParams


def run_stage(stage: str, plan: SlidePlan, root: Path, map_blocks: MapBlocks) -> StageReport:
    """Run one stage of one slide unless it is complete.

    Args:
        stage: Name of the stage.
        plan: The slide's plan.
        root: The slide's folder.
        map_blocks: Maps the stage's blocks.

    Returns:
        What was computed; no blocks when the stage was complete.

    Raises:
        SlideError: The slide cannot be read.
        ModelError: The network cannot be used, or its output is not finite.
        StoreError: An array that the stage reads is missing, damaged or of another plan.
        DiskError: The disk is full or read-only.
        WorkerError: A block failed, or its worker died.
    """
    context = StageContext(root, plan.shape_yx, plan.block_px, plan.hashes[stage])
    if context.store.stamped(stage) == context.plan_hash:
        return StageReport(stage, facts=context.store.facts(stage))
    context.store.unstamp([stage])
    return RUNNERS[stage](context, plan, map_blocks)


def _ingest(context: StageContext, plan: SlidePlan, map_blocks: MapBlocks) -> StageReport:
    return ingest.ingest_slide(context, ingest_section(plan), map_blocks)


def ingest_section(plan: SlidePlan) -> ingest.IngestInputs:
    """How the image of a plan is read from its slide."""
    return ingest.IngestInputs(
        slide=plan.slide,
        resolution=plan.resolution,
        channels=plan.channels,
        dtype=plan.dtype,
        channel_numbers=plan.channel_numbers,
        config=plan.config.input,
    )


def _tissue(context: StageContext, plan: SlidePlan, map_blocks: MapBlocks) -> StageReport:
    factor = tissue_factor(plan.resolution.mpp)
    inputs = tissue.TissueInputs(
        how=plan.mask or tissue_params(plan, factor),
        factor=factor,
        image=plan.image,
        regions=plan.regions,
        stain=plan.model.spec.stain,
        exclude_qc=plan.config.tissue is not None and plan.config.tissue.exclude_qc,
        normalisations=plan.model.normalisations,
    )
    return tissue.tissue_slide(context, inputs, map_blocks)


def tissue_params(plan: SlidePlan, factor: float) -> TissueParams | None:
    """Parameters of tissue detection on a thumbnail.

    Args:
        plan: The slide's plan.
        factor: Image pixels along one pixel of the thumbnail.

    Returns:
        None when tissue detection is switched off: everything is tissue.
    """
    config = plan.config.tissue
    if config is None:
        return None
    return TissueParams(
        mpp_um=plan.resolution.mpp * factor,
        min_area_um2=config.min_area_um2,
        fill_holes_um2=config.fill_holes_um2,
        dilate_px=math.ceil(plan.model.shape.halo / factor),
    )


def _predict(context: StageContext, plan: SlidePlan, map_blocks: MapBlocks) -> StageReport:
    inputs = predict.PredictInputs(
        weights=plan.model.weights,
        tta=plan.model.tta,
        foreground=plan.model.spec.foreground,
        step_px=plan.model.shape.step,
        device=plan.compute.device,
        precision=plan.compute.precision,
        tile_px=plan.compute.tile_px,
        tissue_factor=tissue_factor(plan.resolution.mpp),
        cells=_cells(plan, BadTile.listed(context.store.facts("ingest"))),
        colours=predict.colours_of(context.store.facts("tissue")),
        maps=plan.model.spec.maps,
    )
    return predict.predict_slide(context, inputs, map_blocks)


def _cells(plan: SlidePlan, bad: Sequence[BadTile]) -> Mask | None:
    """Cells to compute: those that touch a region and whose read touches no bad tile; None for all."""
    sound = cells_without_bad_tiles(bad, plan.shape_yx, plan.model.shape.halo) if bad else None
    if plan.regions is None:
        return sound
    drawn = plan.regions.cells(plan.shape_yx, CELL_PX, plan.resolution.level0_from_image_yx)
    return drawn if sound is None else drawn & sound


def _label(context: StageContext, plan: SlidePlan, map_blocks: MapBlocks) -> StageReport:
    assert plan.config.objects is not None, "a plan without objects has no such stage"
    inputs = label.LabelInputs(
        config=plan.config.objects,
        image=plan.image,
        threshold=plan.threshold,
        min_area_um2=plan.min_area_um2,
        discs_um=plan.discs_um,
        regions=plan.regions,
        method=plan.object_settings,
    )
    return label.label_slide(context, inputs, map_blocks)


def _measure(context: StageContext, plan: SlidePlan, map_blocks: MapBlocks) -> StageReport:
    inputs = MeasureInputs(image=plan.image, class_names=plan.classes.names, regions=plan.regions)
    return measure.measure_slide(context, inputs, map_blocks)


def _pyramid(context: StageContext, plan: SlidePlan, map_blocks: MapBlocks) -> StageReport:
    made = [artifact for artifact in STAGE["pyramid"].reads if artifact not in plan.artifacts_left_out]
    arrays = {ARRAYS[artifact]: plan.hashes[WRITER[artifact]] for artifact in made if WRITER[artifact] in plan.hashes}
    inputs = pyramid.PyramidInputs(image=plan.image, classes=plan.classes, arrays=arrays)
    return pyramid.pyramid_slide(context, inputs, map_blocks)


def _export(context: StageContext, plan: SlidePlan, map_blocks: MapBlocks) -> StageReport:
    inputs = export.ExportInputs(
        objects_plan=plan.hashes["label"],
        level0_from_image=plan.resolution.level0_from_image_yx,
        classes=plan.classes,
    )
    return export.export_slide(context, inputs, map_blocks)


def _overlay(context: StageContext, plan: SlidePlan, map_blocks: MapBlocks) -> StageReport:
    tissue_facts, ingest_facts = context.store.facts("tissue"), context.store.facts("ingest")
    searched_px = tissue_facts["tissue_px"] if plan.regions is None else sum(tissue_facts["region_tissue_px"])
    inputs = overlay.OverlayInputs(
        name=plan.key,
        model=plan.model.name,
        image=plan.image,
        classes=plan.classes,
        tissue_mm2=searched_px * plan.resolution.mpp**2 / 1e6 if plan.config.tissue or plan.regions else None,
        objects="label" in plan.hashes,
        flags=(*ingest_facts.get("flags", ()), *tissue_facts["flags"]),
        regions=plan.regions,
        masked=tuple(Box(*tile.box) for tile in BadTile.listed(ingest_facts)),
    )
    return overlay.overlay_slide(context, inputs, map_blocks)


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
"""The function that runs each stage; the same stages, in the same order, as in the stage table."""
