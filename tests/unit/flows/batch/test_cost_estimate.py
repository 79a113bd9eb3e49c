"""Cost estimates: arithmetic by hand, extents compared with a run, and dry runs that write nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile

from flows.batch import dry_run
from flows.batch.batch import BatchRequest, plan_batch
from flows.batch.cost_estimate import (
    EFFICIENCY,
    SLIDE_BYTES,
    SLIDE_S,
    START_S,
    CostEstimate,
    Extent,
    Rates,
    WindowCost,
    price,
    total,
)
from flows.batch.cost_probe import extent, look, window
from flows.batch.dry_run import estimate_batch
from pipeline.config import load_config
from pipeline.execution.blocks import serial
from pipeline.runs.plan import SlidePlan
from pipeline.runs.slide_run import SlideRun
from pipeline.storage.slide_store import SlideStore
from tests.support.commands import CLASSES, Command
from tests.support.faults.pictures import draw, red_and_blue, write
from tests.support.make_store import tree_bytes

RATES = Rates(
    tissue_s={"ingest": 1e-6, "label": 2e-6},
    glass_s={"ingest": 1e-7, "label": 0.0},
    tissue_bytes={"image": 3.0, "probability": 0.5},
    glass_bytes={"image": 0.1, "probability": 0.0},
    call_s=0.5,
    picture_s=2.0,
    picture_bytes=1000.0,
)

# ---- arithmetic ------------------------------------------------------------------------------------------------------


def test_cost_of_a_slide_equals_the_sum_by_hand() -> None:
    found = price(Extent(tissue_px=1_000_000, glass_px=2_000_000, calls=3), RATES)
    assert found.seconds == pytest.approx(1.0 + 2.0 + 0.2 + 3 * 0.5 + 2.0)
    assert found.sizes == pytest.approx(
        {"image": 3.2e6, "probability": 5e5, "pictures and records": 1000 + SLIDE_BYTES}
    )
    assert found.dropped == 0
    assert found.stays == pytest.approx(3.7e6 + 1000 + SLIDE_BYTES)


def test_complete_stages_cost_no_time_and_dropped_arrays_no_space() -> None:
    asked = Extent(1_000_000, 0, 4, left={"predict": 0.25, "ingest": 0.0, "label": 1.0, "overlay": 0.0})
    found = price(asked, RATES, dropped=["image"])
    assert found.seconds == pytest.approx(2.0 + 0.25 * 4 * 0.5)
    assert found.dropped == pytest.approx(3e6)
    assert found.stays == pytest.approx(5e5 + 1000 + SLIDE_BYTES)


def test_rates_are_means_over_pixels_and_calls() -> None:
    tissue = [
        WindowCost(100, 2, {"ingest": 1.0, "predict": 4.0, "overlay": 3.0}, {"image": 300, "overlay": 10}),
        WindowCost(300, 6, {"ingest": 1.0, "predict": 4.0, "overlay": 1.0}, {"image": 900, "overlay": 20}),
    ]
    glass = [WindowCost(100, 0, {"ingest": 0.1, "predict": 0.2}, {"image": 1})]
    rates = Rates.of(tissue, glass)
    assert rates.tissue_s == pytest.approx({"ingest": 2 / 400})
    assert rates.glass_s == pytest.approx({"ingest": 0.001})
    assert rates.call_s == pytest.approx(8 / 8)
    assert (rates.picture_s, rates.picture_bytes) == (3.0, 20)
    assert rates.tissue_bytes == pytest.approx({"image": 3.0})
    assert Rates.of(tissue, []).glass_bytes == rates.tissue_bytes, "without a look at glass it costs as much"
    assert Rates.of([], glass).call_s == 0


def test_total_divides_work_among_workers_and_counts_arrays_until_dropped() -> None:
    prices = [
        CostEstimate(100.0, {"image": 50.0, "tables": 1.0}, dropped=50.0),
        CostEstimate(60.0, {"image": 20.0}, dropped=20.0),
    ]
    prices.append(CostEstimate(10.0, {"image": 5.0}, dropped=5.0))
    assert total(prices, 1).seconds == pytest.approx(START_S + 170 + 3 * SLIDE_S)
    assert total(prices, 4).seconds == pytest.approx(START_S + 170 / (4 * EFFICIENCY) + 3 * SLIDE_S)
    whole = total(prices, 2)
    assert whole.sizes == {"image": 75.0, "tables": 1.0}
    assert (whole.stays, whole.at_most) == (1.0, 71.0)
    assert total([], 2).seconds == 0


# ---- looking ---------------------------------------------------------------------------------------------------------


def slide_with_glass(path: Path) -> Path:
    """Three levels of 2300 x 2100 px at 2 um, an eighth of it pictures of cells and the rest white."""
    image = np.full((2300, 2100, 3), 243, np.uint8)
    image[:900, :800] = draw((900, 800), red_and_blue((900, 800)))
    image[:900, :800] = np.minimum(image[:900, :800], (230, 190, 215))  # pale stain between the cells
    with tifffile.TiffWriter(path) as tiff:
        for factor in (1, 2, 4):
            scale = {"resolution": (2e4 / factor, 2e4 / factor), "resolutionunit": "CENTIMETER"}
            tiff.write(image[::factor, ::factor].copy(), tile=(128, 128), photometric="rgb", metadata=None, **scale)
    return path


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> SlidePlan:
    folder = tmp_path_factory.mktemp("looked")
    slide = slide_with_glass(folder / "slide.tif")
    settings = [f"model.weights={CLASSES}", "tiles.block=1024", "tiles.tile=512", "compute.precision=fp32"]
    request = BatchRequest(inputs=(slide,), out=folder / "out", config=load_config(None, settings))
    return plan_batch(request, writing=False).plans["slide"]


def test_estimated_calls_and_tissue_equal_those_of_a_run(plan: SlidePlan, tmp_path: Path) -> None:
    asked = extent(plan, look(plan).cells, SlideStore(tmp_path / "no"))
    run = SlideRun(plan, SlideStore(tmp_path / "slide"))
    run.prepare()
    for stage in ("ingest", "tissue", "predict"):
        report = run.step(stage, serial)
    assert 0.05 < asked.tissue_share < 0.6
    assert asked.calls == report.counts["network_calls"]
    assert asked.glass_px == report.facts["skipped_pixels"]
    done = extent(plan, look(plan).cells, run.store)
    assert done.left == {"ingest": 0.0, "tissue": 0.0, "predict": 0.0}


def test_windows_are_all_tissue_or_all_glass(plan: SlidePlan) -> None:
    cells = look(plan).cells
    for tissue in (True, False):
        box = window(plan, cells, tissue=tissue)
        assert box is not None
        assert (cells[box.cover(512).slices] == tissue).all()
        assert max(box.shape) <= plan.block_px
    assert window(plan, np.ones_like(cells), tissue=False) is None
    assert window(plan, np.zeros_like(cells), tissue=True) is None


def test_slide_without_coarse_level_counts_as_tissue(plan: SlidePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.batch.cost_probe.LARGEST_THUMB_PX", 1000)
    seen = look(plan)
    assert seen.cells.all()
    assert "estimated as tissue throughout" in seen.guessed


def test_estimated_bytes_equal_those_of_a_run(plan: SlidePlan, tmp_path: Path) -> None:
    """On the sampled slide; a benchmark compares a whole batch."""
    request = BatchRequest(inputs=(plan.slide,), out=tmp_path / "out", config=plan.config)
    quote = estimate_batch(plan_batch(request, writing=False))
    run = SlideRun(plan, SlideStore(tmp_path / "slide"))
    run.prepare()
    for stage in plan.hashes:
        run.step(stage, serial)
    run.finish()
    stored = sum(map(len, tree_bytes(tmp_path / "slide").values()))
    assert quote.total.stays == pytest.approx(stored, rel=0.25)
    assert quote.sampled == 1


def test_sampled_slides_are_spread_over_the_batch() -> None:
    plans = [SimpleNamespace(key=str(number)) for number in range(8)]
    order = [int(one.key) for one in dry_run._spread(plans)]  # type: ignore[arg-type]  # only counted
    assert sorted(order) == list(range(8))
    assert order[0] == 4
    assert {order[1], order[2]} == {2, 6}


# ---- the command -----------------------------------------------------------------------------------------------------


def test_fault_27_dry_run_prints_the_estimate_and_writes_nothing(overtile_alone: Command, tmp_path: Path) -> None:
    slides, out, temporary = tmp_path / "slides", tmp_path / "there" / "out", tmp_path / "tmp"
    slides.mkdir()
    temporary.mkdir()
    for name in ("a", "b"):
        write(slides / f"{name}.tif", draw((700, 600), red_and_blue((700, 600))))
    (slides / "bad.tif").write_bytes(b"no slide")
    ran = overtile_alone.with_environment(TMPDIR=str(temporary)).segment(slides, out, "--dry-run")
    assert ran.code == 0, ran.transcript
    for words in ("time:", "disk:", "GB when complete", "memory:", "free on the disk of", "2 slides sampled", "bad"):
        assert words in ran.stdout, ran.transcript
    assert not out.parent.exists(), "nothing of OUT is made"
    assert list(temporary.iterdir()) == []
    assert sorted(path.name for path in slides.iterdir()) == ["a.tif", "b.tif", "bad.tif"]


@pytest.mark.long
def test_complete_slides_cost_nothing(overtile: Command, tmp_path: Path) -> None:
    write(tmp_path / "a.tif", draw((300, 300), red_and_blue((300, 300))))
    assert overtile.segment(tmp_path / "a.tif", tmp_path / "out").code == 0
    before = tree_bytes(tmp_path / "out")
    ran = overtile.segment(tmp_path / "a.tif", tmp_path / "out", "--dry-run")
    assert ran.code == 0
    assert "complete already" in ran.stdout
    assert "time:" not in ran.stdout
    assert tree_bytes(tmp_path / "out") == before


def test_too_small_disk_is_a_warning(
    plan: SlidePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000))
    request = BatchRequest(inputs=(plan.slide,), out=tmp_path / "out", config=plan.config)
    assert dry_run.dry_run(request, Console()) == 0
    said = capsys.readouterr().out
    assert "warning: not enough disk space" in said
    assert "outputs.image=drop" in said
