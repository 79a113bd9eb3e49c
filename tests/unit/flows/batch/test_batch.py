"""Planning a batch: plans, hashes and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from flows.batch.batch import Batch, BatchRequest, ModelRuntime, plan_batch
from flows.batch.outcome import Outcome, State
from pipeline.config import ModelSection, load_config
from pipeline.inference.ensemble import Ensemble, EnsembleMember
from pipeline.runs.plan import Compute
from tests.support.commands import CLASSES, CONTEXT
from unet_core.model_file.header import Weights, describe

MODEL = Ensemble((EnsembleMember("context", Weights(CONTEXT, "0" * 64), describe(CONTEXT).spec),))


def request(tmp_path: Path, *settings: str) -> BatchRequest:
    """One small slide."""
    slide = tmp_path / "slide.tif"
    tifffile.imwrite(slide, np.full((64, 64, 3), 200, np.uint8), photometric="rgb")
    config = load_config(None, [f"model.weights={CONTEXT}", "input.mpp=0.25", *settings])
    return BatchRequest(inputs=(slide,), out=tmp_path / "out", config=config)


def outcomes(*states: State, disk: bool = False) -> Batch:
    """A batch whose slides ended in these states."""
    found = [Outcome(str(number), Path("x"), state, disk_failed=disk) for number, state in enumerate(states)]
    runtimes = {ModelSection(weights="context"): ModelRuntime(MODEL, Compute("cpu", "fp32", 512))}
    return Batch(BatchRequest(inputs=(), out=Path("out")), runtimes, found)


@pytest.mark.parametrize(
    ("states", "code"),
    [
        (("complete", "complete before"), 0),
        (("complete", "failed"), 3),
        (("complete", "kept"), 3),
        (("kept",), 3),
        (("failed", "failed"), 4),
        (("failed", "locked"), 4),
        (("locked", "locked"), 75),
        (("complete before", "locked"), 3),
    ],
)
def test_exit_codes(states: tuple[State, ...], code: int) -> None:
    assert outcomes(*states).exit_code() == code


def test_disk_error_determines_the_exit_code() -> None:
    assert outcomes("complete", "failed", disk=True).exit_code() == 74


@pytest.mark.parametrize("before", ["fp32", "bf16"])
def test_auto_precision_of_a_started_slide_is_kept(tmp_path: Path, before: str) -> None:
    asked = request(tmp_path)
    (plan,) = plan_batch(asked).plans.values()
    summary = plan.summary()
    summary["compute"]["precision"] = before
    work = asked.out / "slide" / ".work"
    work.mkdir(parents=True)
    (work / "plan.json").write_text(json.dumps(summary))
    (again,) = plan_batch(asked).plans.values()
    assert again.compute.precision == before


def test_configured_precision_is_used(tmp_path: Path) -> None:
    asked = request(tmp_path, "compute.precision=fp32")
    (plan,) = plan_batch(asked).plans.values()
    summary = plan.summary()
    summary["compute"]["precision"] = "bf16"
    work = asked.out / "slide" / ".work"
    work.mkdir(parents=True)
    (work / "plan.json").write_text(json.dumps(summary))
    (again,) = plan_batch(asked).plans.values()
    assert again.compute.precision == "fp32"


def test_settings_that_change_no_pixel_change_no_hash(tmp_path: Path) -> None:
    (one,) = plan_batch(request(tmp_path, "tiles.tile=256", "cluster.workers=1")).plans.values()
    (two,) = plan_batch(request(tmp_path, "tiles.tile=512", "cluster.kind=serial")).plans.values()
    assert one.hashes == two.hashes


@pytest.mark.parametrize(
    ("setting", "first"),
    [
        ("objects.threshold=0.7", "label"),
        ("objects.min_area_um2=3", "label"),
        ("objects.open_um=0.5", "label"),
        ("objects.close_um={dark spot: 0.5}", "label"),
        ("objects.split=watershed", "label"),
        ("objects.split_depth_um=2", None),
        ("objects.open_um={dark spot: 0.0}", None),
        ("tissue=null", "tissue"),
        ("compute.precision=bf16", "predict"),
        ("tiles.block=512", "ingest"),
        ("outputs.overview=false", None),
    ],
)
def test_setting_changes_hashes_from_its_stage_on(tmp_path: Path, setting: str, first: str | None) -> None:
    (before,) = plan_batch(request(tmp_path, "compute.precision=fp32")).plans.values()
    (after,) = plan_batch(request(tmp_path, "compute.precision=fp32", setting)).plans.values()
    changed = [stage for stage in after.hashes if after.hashes[stage] != before.hashes[stage]]
    assert changed[:1] == ([] if first is None else [first])


def test_radii_are_resolved_by_class(tmp_path: Path) -> None:
    asked = request(tmp_path, f"model.weights={CLASSES}", "objects.open_um=1", "objects.close_um={blue cell: 2.5}")
    (plan,) = plan_batch(asked).plans.values()
    assert plan.discs_um == ((1.0, 0.0), (1.0, 2.5))
    unknown = plan_batch(request(tmp_path, f"model.weights={CLASSES}", "objects.open_um={nucleus: 1}"))
    assert not unknown.plans
    assert "objects.open_um: expected classes of the model (red cell, blue cell), found nucleus" in str(
        unknown.outcomes
    )
