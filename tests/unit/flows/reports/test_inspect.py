"""Inspection of results, thumbnails, terminal previews, and the demo slide."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
import zarr
from rich.console import Console
from rich.style import Style

from flows.cli.demo import PERIOD_PX, halve, write_slide
from flows.cli.inspect_output import show
from flows.cli.terminal_preview import HALF, half_blocks
from flows.reports.inspect import _arrays, inspect_stores
from flows.reports.thumbnail import thumbnail
from pipeline.storage.slide_store import SlideStore
from tests.support.commands import Command
from tests.support.faults.trees import Finished
from tests.support.make_store import put_array
from tests.unit.pipeline.make_result import finished_slide


def test_doctor_lists_models_and_cuda_status(overtile: Command) -> None:
    ran = overtile.run("doctor")
    assert ran.code == 0, ran.transcript
    assert "nuclei@1" in ran.stdout
    assert "CUDA path last verified" in ran.stdout
    assert "ready" in ran.stdout


def test_inspect_rejects_a_folder_without_results(overtile_alone: Command, tmp_path: Path) -> None:
    ran = overtile_alone.run("inspect", tmp_path)
    assert ran.code == 2
    assert "holds no results" in ran.only_error


def test_inspect_reports_complete_and_incomplete_slides(
    finished: Finished, overtile_alone: Command, tmp_path: Path
) -> None:
    root = tmp_path / "out" / "slide"
    shutil.copytree(finished.result, root)
    ran = overtile_alone.run("inspect", tmp_path / "out", "--json")
    assert ran.code == 0, ran.transcript
    (record,) = json.loads(ran.stdout)
    _assert_arrays_are_as_zarr_finds_them(record, root / "slide.ome.zarr")
    _assert_classes_are_as_the_table_counts_them(record, pq.read_table(root / "objects.parquet"))
    assert record["size_mm"] == [0.15, 0.55]
    assert record["pyramids"]["objects"] == [
        {"path": "labels/objects/0", "shape": [300, 1100], "um_per_px": 0.5},
        {"path": "labels/objects/1", "shape": [150, 550], "um_per_px": 1.0},
        {"path": "labels/objects/2", "shape": [75, 275], "um_per_px": 2.0},
    ]
    assert record["seam"] is None, "two block borders of 300 px are too few"
    shown = shown_by_inspect(root)
    assert "1100 x 300 px at 0.5 um/px = 0.55 x 0.15 mm" in shown
    assert "seams: too few seams to measure" in shown
    assert "this terminal shows no colours" in shown
    assert "6 / 6" in shown, "blocks of three levels"
    assert shown_by_inspect(root, color_system="truecolor").count(HALF) == 96 * 13, "96 x 26 pixels"
    (root / "slide.ome.zarr" / "probability" / "0" / "c" / "0" / "0" / "1").unlink()
    (root / "manifest.json").unlink()
    ran = overtile_alone.run("inspect", tmp_path / "out")
    assert ran.code == 3
    assert "5 / 6" in ran.stdout


def shown_by_inspect(path: Path, color_system: Literal["truecolor"] | None = None) -> str:
    console = Console(record=True, width=120, color_system=color_system, force_terminal=False, file=io.StringIO())
    show(inspect_stores(path), console, preview=True)
    return console.export_text()


def _assert_arrays_are_as_zarr_finds_them(record: dict[str, Any], where: Path) -> None:
    assert record["state"] == "complete"
    for array in record["arrays"]:
        opened = zarr.open_array(where / array["path"], mode="r")
        assert array["shape"] == list(opened.shape)
        assert array["dtype"] == str(opened.dtype)
        assert (array["chunk"], array["shard"]) == (list(opened.chunks), list(opened.shards or ()))
        files = [path for path in (where / array["path"] / "c").rglob("*") if path.is_file()]
        assert array["bytes"] == sum(path.stat().st_size for path in files)
        assert array["ratio"] == round(opened.nbytes / array["bytes"], 2)
        assert array["blocks_done"] == array["blocks"] == len(files)


def _assert_classes_are_as_the_table_counts_them(record: dict[str, Any], table: Any) -> None:
    assert sum(row["count"] for row in record["classes"]) == len(table) > 0
    for row in record["classes"]:
        areas = np.array([area for area, name in zip(*map(table.column, ("area_um2", "class")), strict=True)
                          if name.as_py() == row["class"]], float)  # fmt: skip
        assert row["count"] == len(areas)
        assert row["area_mm2"] == pytest.approx(areas.sum() / 1e6)
        quartiles = [row[f"area_um2_{name}"] for name in ("q25", "median", "q75")]
        assert quartiles == (np.quantile(areas, (0.25, 0.5, 0.75)).tolist() if len(areas) else [None] * 3)


def test_inspect_reads_metadata_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only metadata and the manifest are opened, so an unreadable shard does not matter."""
    store = finished_slide(tmp_path / "slide")
    opened: list[str] = []
    original = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (opened.append(path.name), original(path))[1])
    for shard in (store.zarr / "0" / "c").rglob("*"):
        shard.chmod(0)
    arrays = _arrays(store)
    assert {array["path"]: array["blocks_done"] for array in arrays}["0"] == 4
    assert set(opened) == {"zarr.json"}


def test_inspect_does_not_count_empty_shards_as_done(tmp_path: Path) -> None:
    store = finished_slide(tmp_path / "slide")
    (store.zarr / "0" / "c" / "0" / "1" / "0").write_bytes(b"")
    arrays = {array["path"]: (array["blocks_done"], array["blocks"]) for array in _arrays(store)}
    assert (arrays["0"], arrays["probability/0"]) == ((3, 4), (4, 4))


def test_thumbnail_tints_only_objects(tmp_path: Path) -> None:
    store = SlideStore(tmp_path)
    labels = np.zeros((40, 64), np.uint32)
    labels[8:16, 24:40] = 7
    put_array(store, "0", np.full((3, 40, 64), 200, np.uint8), "image")
    put_array(store, "labels/objects/0", labels, "labels")
    small = thumbnail(store, ("red", "green", "blue"), "0", "labels/objects/0", (20, 1000))
    assert small.shape == (20, 32, 3)
    tinted = (small != 200).any(axis=-1)
    assert np.array_equal(tinted, labels[::2, ::2] > 0)
    assert np.ptp(small[tinted], axis=0).tolist() == [0, 0, 0]
    assert np.array_equal(thumbnail(store, ("red", "green", "blue"), "0", None, (99, 99)), np.full((40, 64, 3), 200))


def test_half_blocks_have_the_colours_of_the_pixels() -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (5, 7, 3), np.uint8)
    lines = list(half_blocks(rgb))
    assert len(lines) == 3
    for y, line in enumerate(lines):
        assert line.plain == "  " + HALF * 7
        for x, span in enumerate(line.spans):
            style = span.style
            assert isinstance(style, Style)
            assert style.color is not None
            assert style.color.name == "#{:02x}{:02x}{:02x}".format(*rgb[2 * y, x])
            below = None if y == 2 else "#{:02x}{:02x}{:02x}".format(*rgb[2 * y + 1, x])
            assert (style.bgcolor and style.bgcolor.name) == below


def test_demo_slide_is_a_pyramid_with_periods_unaligned_to_16(tmp_path: Path) -> None:
    write_slide(tmp_path / "tissue.tif")
    assert all(period % 16 for period in PERIOD_PX)
    with tifffile.TiffFile(tmp_path / "tissue.tif") as tiff:
        shapes = [level.shape[:2] for level in tiff.series[0].levels]
        assert shapes == [(4096, 4096), (2048, 2048), (1024, 1024), (512, 512)]
        assert tiff.pages[0].is_tiled  # type: ignore[union-attr]


def test_halve_is_the_mean_of_four_pixels() -> None:
    level = np.random.default_rng(3).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    for y, x, c in np.ndindex(3, 2, 3):
        assert halve(level)[y, x, c] == round(float(level[2 * y : 2 * y + 2, 2 * x : 2 * x + 2, c].mean()))
