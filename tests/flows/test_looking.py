"""Looking at results and at the machine: inspect, doctor, and the demo's slide."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import tifffile

from flows.demo import PERIOD_PX, halve, write_slide
from tests.commands import Command


def test_doctor_says_what_is_here_and_never_claims_cuda(overtile_alone: Command) -> None:
    ran = overtile_alone.run("doctor")
    assert ran.code == 0, ran.said
    assert "nuclei@1" in ran.stdout
    assert "CUDA path last verified" in ran.stdout
    assert "ready" in ran.stdout


def test_inspect_refuses_what_holds_no_results(overtile_alone: Command, tmp_path: Path) -> None:
    ran = overtile_alone.run("inspect", tmp_path)
    assert ran.code == 2
    assert "holds no results" in ran.only_error


def test_inspect_says_what_is_complete_and_what_is_not(overtile: Command, tmp_path: Path) -> None:
    slide = tmp_path / "slide.tif"
    tifffile.imwrite(slide, np.full((300, 500, 3), 120, np.uint8), photometric="rgb")
    assert overtile.segment(slide, tmp_path / "out", "--mpp", "0.5").code == 0
    ran = overtile.run("inspect", tmp_path / "out", "--json")
    assert ran.code == 0, ran.said
    (record,) = json.loads(ran.stdout)
    assert record["state"] == "complete"
    arrays = {array["path"]: array for array in record["arrays"]}
    assert arrays["probability/0"]["shape"] == [2, 300, 500]
    assert arrays["0"]["blocks_done"] == arrays["0"]["blocks"] == 1
    (tmp_path / "out" / "slide" / "manifest.json").unlink()
    assert overtile.run("inspect", tmp_path / "out").code == 3


def test_the_demo_slide_is_a_pyramid_that_never_repeats_in_phase(tmp_path: Path) -> None:
    write_slide(tmp_path / "tissue.tif")
    assert all(period % 16 for period in PERIOD_PX)
    with tifffile.TiffFile(tmp_path / "tissue.tif") as tiff:
        shapes = [level.shape[:2] for level in tiff.series[0].levels]
        assert shapes == [(4096, 4096), (2048, 2048), (1024, 1024), (512, 512)]
        assert tiff.pages[0].is_tiled  # type: ignore[union-attr]


def test_halving_is_the_mean_of_four() -> None:
    level = np.random.default_rng(3).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    for y, x, c in np.ndindex(3, 2, 3):
        assert halve(level)[y, x, c] == round(float(level[2 * y : 2 * y + 2, 2 * x : 2 * x + 2, c].mean()))
