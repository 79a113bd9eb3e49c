"""Progress of a batch: planned and completed work, and a display that is safe for any name and thread."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import tifffile
from rich.console import Console

from flows.batch.batch import Batch, BatchRequest, plan_batch
from flows.batch.progress import Meter
from flows.cli.segment_progress import SegmentProgress
from pipeline.config import load_config
from tests.support.commands import CONTEXT


def batch(tmp_path: Path, name: str = "slide") -> Batch:
    """One slide of 2 x 3 blocks."""
    slide = tmp_path / f"{name}.tif"
    tifffile.imwrite(slide, np.full((1000, 1500, 3), 200, np.uint8), photometric="rgb")
    config = load_config(None, [f"model.weights={CONTEXT}", "input.mpp=0.25", "tiles.block=512"])
    return plan_batch(BatchRequest(inputs=(slide,), out=tmp_path / "out", config=config))


def test_all_blocks_of_all_stages_complete_the_bar(tmp_path: Path) -> None:
    planned, meter = batch(tmp_path), Meter()
    meter.plan(planned)
    assert meter.blocks == {"slide": 6}
    shares = []
    for stage in planned.plans["slide"].hashes:
        for _ in range(12 if stage == "label" else 6):  # labelling passes twice and counts once
            meter.block("slide", stage)
            shares.append(meter.finished / meter.total)
    assert shares == sorted(shares)
    assert abs(shares[-1] - 1) < 1e-9


def test_slide_that_ends_early_counts_as_completed(tmp_path: Path) -> None:
    meter = Meter()
    meter.plan(batch(tmp_path))
    meter.block("slide", "ingest")
    meter.end_slide("slide")
    assert meter.finished == meter.total


def test_names_are_escaped_in_the_display(tmp_path: Path) -> None:
    name = "[red]x[bold] \x1b[2J"
    planned, text = batch(tmp_path, name), io.StringIO()
    with SegmentProgress(Console(file=text, force_terminal=False, width=200)) as display:
        display.batch_planned(planned)
        display.stage_started(name, "ingest")
        display.block_done(name, "ingest", {})
        planned.outcomes[0].failed("ingest", ValueError("no\x1b[31m good\nat all"))
        display.slide_done(planned.outcomes[0])
    shown = text.getvalue()
    assert "\x1b" not in shown
    assert "[red]x[bold]" in shown
    assert "no?[31m good at all" in shown
