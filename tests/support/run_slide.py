"""Plan and run one slide in this process, stage by stage, as a batch would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import tifffile

from flows.batch.batch import BatchRequest, plan_batch
from pipeline.config import load_config
from pipeline.execution.blocks import serial
from pipeline.runs.plan import SlidePlan
from pipeline.runs.slide_run import SlideRun
from pipeline.storage.slide_store import SlideStore
from tests.support.commands import CLASSES
from tests.support.faults.pictures import draw, red_and_blue

Plan = Callable[..., SlidePlan]


def plans_of_discs(folder: Path, shape: tuple[int, int]) -> Plan:
    """Return a function that plans one generated slide of two classes with any settings."""
    slide = folder / "discs.tif"
    scale = {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(slide, draw(shape, red_and_blue(shape)), tile=(128, 128), photometric="rgb", **scale)

    def planned(*settings: str) -> SlidePlan:
        common = (f"model.weights={CLASSES}", "tiles.block=512", "tiles.tile=512", "compute.precision=fp32")
        request = BatchRequest(inputs=(slide,), out=folder / "planned", config=load_config(None, [*common, *settings]))
        return plan_batch(request, writing=False).plans["discs"]

    return planned


def run(plan: SlidePlan, root: Path, *, forced: bool = False) -> SlideRun:
    """Run the stages that are due in the slide's folder, up to the manifest."""
    slide = SlideRun(plan, SlideStore(root))
    if slide.prepare(forced=forced) == "todo":
        for stage in plan.hashes:
            slide.step(stage, serial)
        slide.finish()
    return slide


def computed(slide: SlideRun) -> dict[str, int]:
    """Return the blocks computed by this run by stage, without stages that had nothing to do."""
    return {stage: report.computed for stage, report in slide.reports.items() if report.computed}
