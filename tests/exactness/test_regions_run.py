"""Exactness of runs with regions.

A run with regions equals the run without, byte for byte, in cells that touch a region, and is zero elsewhere. The
expected cells are computed here independently, by one polygon intersection per cell.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import tifffile
from numpy.typing import NDArray

from flows.batch.batch import Batch, BatchRequest, open_slide_run, plan_batch
from pipeline.config import load_config
from pipeline.execution.blocks import serial
from pipeline.geometry import Box, TileGrid
from pipeline.inference import predictor
from pipeline.runs.slide_run import SlideRun, slide_root
from pipeline.storage.slide_store import SlideStore
from tests.unit.pipeline.predicting import CONTEXT, cut

CELL = 512
SHAPE = (1100, 1300)
STAGES = ("ingest", "tissue", "predict")

TRIANGLE = [(100.0, 80.0), (420.0, 130.0), (230.0, 500.0)]
BAR = [(1030.0, 600.0), (1299.0, 600.0), (1299.0, 620.5), (1030.0, 620.5)]
"""(x, y) corners in level-0 pixels: one inside the first cell, one in the last column."""


@pytest.fixture(autouse=True)
def _fresh_networks() -> None:
    predictor._loaded.cache_clear()


def geojson(path: Path, areas: Iterable[list[tuple[float, float]]], excluded: Iterable[Any] = ()) -> Path:
    """Write annotations in the form QuPath exports them, named a, b, c, ..."""

    def feature(corners: Any, properties: dict[str, Any]) -> dict[str, Any]:
        ring = [list(corner) for corner in [*corners, corners[0]]]
        return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}

    features = [feature(corners, {"name": name}) for name, corners in zip("abcdef", areas, strict=False)]
    features += [feature(corners, {"classification": {"name": "exclude"}}) for corners in excluded]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}), "utf-8")
    return path


def slide_file(folder: Path, shape_yx: tuple[int, int] = SHAPE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "slide.tif"
    tifffile.imwrite(path, np.moveaxis(cut(*shape_yx), 0, -1), tile=(256, 256), photometric="rgb")
    return path


def planned(slide: Path, out: Path, *settings: str, force: bool = False) -> Batch:
    common = ["input.mpp=0.25", "compute.precision=fp32", f"model.weights={CONTEXT}"]
    config = load_config(None, [*common, *settings])
    return plan_batch(BatchRequest(inputs=(slide,), out=out, config=config, force_all=force))


def predicted(slide: Path, out: Path, *settings: str) -> tuple[SlideStore, SlideRun]:
    batch = planned(slide, out, *settings)
    assert [outcome.cause for outcome in batch.outcomes] == [""]
    (plan,) = batch.plans.values()
    run = SlideRun(plan, SlideStore(slide_root(out, plan.key)))
    assert run.prepare() == "todo"
    for stage in STAGES:
        run.step(stage, serial)
    return run.store, run


def cells_of(shape_yx: tuple[int, int], area: shapely.Geometry, level0_from_image: float) -> NDArray[np.bool_]:
    """Return a (y, x) mask of image pixels whose cell overlaps the area."""
    touched = np.zeros(shape_yx, bool)
    for y in range(0, shape_yx[0], CELL):
        for x in range(0, shape_yx[1], CELL):
            below, right = min(y + CELL, shape_yx[0]), min(x + CELL, shape_yx[1])
            cell = shapely.box(*(level0_from_image * edge for edge in (x, y, right, below)))
            touched[y:below, x:right] = cell.intersection(area).area > 0
    return touched


@pytest.mark.parametrize(("tile", "block"), [(256, 512), (384, 1024), (512, 2048)])
@pytest.mark.parametrize("slide_mpp", [0.25, 0.2])
def test_inside_equals_the_run_without_regions_and_outside_is_nothing(
    tmp_path: Path, tile: int, block: int, slide_mpp: float
) -> None:
    slide = slide_file(tmp_path / "slides")
    drawn = geojson(tmp_path / "regions" / "slide.geojson", [TRIANGLE, BAR], [[(900, 610), (1250, 610), (1250, 700)]])
    settings = [f"tiles.tile={tile}", f"tiles.block={block}", "tissue=null", f"input.mpp={slide_mpp}"]
    whole, _ = predicted(slide, tmp_path / "whole", *settings)
    part, run = predicted(slide, tmp_path / "part", *settings, f"input.regions={drawn.parent}")

    area = shapely.Polygon(TRIANGLE).union(shapely.Polygon(BAR))
    area = area.difference(shapely.Polygon([(900, 610), (1250, 610), (1250, 700)]))
    everything, found = (store.read("probability/0")[:] for store in (whole, part))
    touched = cells_of(found.shape[1:], area, 0.25 / slide_mpp)
    assert 0.1 < touched.mean() < 0.7
    assert everything.std() > 3
    assert np.array_equal(found, everything * touched)

    grids = (TileGrid(one.core, tile) for one in TileGrid(Box.of_shape(run.plan.shape_yx), block))
    calls = sum(bool(touched[one.core.slices].any()) for grid in grids for one in grid)
    assert run.reports["predict"].counts["network_calls"] == calls
    assert run.reports["predict"].facts["skipped_pixels"] == int((~touched).sum())


def test_region_on_glass_needs_no_network_call(tmp_path: Path) -> None:
    """A cell is computed only if it has both tissue and a region."""
    image = np.full((3, *SHAPE), 244, np.uint8)
    image[:, 600:900, 600:900] = cut(300, 300)
    slide = tmp_path / "slide.tif"
    tifffile.imwrite(slide, np.moveaxis(image, 0, -1), tile=(256, 256), photometric="rgb")
    drawn = geojson(tmp_path / "glass.geojson", [TRIANGLE])
    settings = ["tiles.tile=256", "tiles.block=512", "tissue.min_area_um2=0"]
    store, run = predicted(slide, tmp_path / "glass", *settings, f"input.regions={drawn}")
    assert store.read("tissue")[:].any(), "regions do not change the tissue mask"
    assert run.reports["predict"].counts["network_calls"] == 0
    assert not store.read("probability/0")[:].any()
    both = geojson(tmp_path / "both.geojson", [[(0, 0), (1300, 0), (1300, 1100), (0, 1100)]])
    store, run = predicted(slide, tmp_path / "both", *settings, f"input.regions={both}")
    assert run.reports["predict"].counts["network_calls"] > 0
    plain, _ = predicted(slide, tmp_path / "plain", *settings)
    assert np.array_equal(store.read("probability/0")[:], plain.read("probability/0")[:])


# ---- errors and changes --------------------------------------------------------------------------------------


def test_slide_without_regions_or_outside_them_fails_with_its_name(tmp_path: Path) -> None:
    slide_file(tmp_path / "slides")
    tifffile.imwrite(tmp_path / "slides" / "other.tif", np.moveaxis(cut(300, 300), 0, -1), tile=(256, 256))
    folder = geojson(tmp_path / "regions" / "slide.geojson", [BAR]).parent
    batch = planned(tmp_path / "slides", tmp_path / "out", f"input.regions={folder}")
    causes = {one.key: one.cause for one in batch.outcomes}
    assert causes["slide"] == ""
    assert causes["other"].startswith("other: no regions: expected ")
    geojson(folder / "other.geojson", [BAR])
    batch = planned(tmp_path / "slides", tmp_path / "out", f"input.regions={folder}")
    causes = {one.key: one.cause for one in batch.outcomes}
    assert "other.tif: all 1 regions lie outside the slide" in causes["other"]


def test_regions_that_reach_beyond_the_slide_are_a_warning(tmp_path: Path) -> None:
    drawn = geojson(tmp_path / "regions.geojson", [[(1000, 0), (1600, 0), (1600, 100), (1000, 100)]])
    (plan,) = planned(slide_file(tmp_path), tmp_path / "out", f"input.regions={drawn}").plans.values()
    assert plan.warnings == (f"{tmp_path / 'slide.tif'}: 50.0% of region 'a' lies outside the slide",)
    assert plan.summary()["image"]["warnings"] == list(plan.warnings)


def test_region_shapes_but_not_names_change_the_network_hashes(tmp_path: Path) -> None:
    slide = slide_file(tmp_path / "slides")

    def hashes(*settings: str) -> dict[str, str]:
        (plan,) = planned(slide, tmp_path / "out", *settings).plans.values()
        return dict(plan.hashes)

    drawn = geojson(tmp_path / "regions.geojson", [TRIANGLE])
    plain, before = hashes(), hashes(f"input.regions={drawn}")
    drawn.write_text(drawn.read_text().replace('"a"', '"renamed"'), "utf-8")
    renamed = hashes(f"input.regions={drawn}")
    geojson(drawn, [TRIANGLE, BAR])
    extended = hashes(f"input.regions={drawn}")
    assert [stage for stage in before if before[stage] != plain[stage]] == list(before)[1:], "all stages but ingest"
    assert [stage for stage in before if before[stage] != extended[stage]] == list(before)[1:]
    changed = [stage for stage in before if before[stage] != renamed[stage]]
    assert changed == ["measure", "export", "overlay"]


def test_other_regions_keep_a_complete_slide_unless_forced_and_say_what_it_costs(tmp_path: Path) -> None:
    slide = slide_file(tmp_path / "slides", (600, 700))
    drawn = geojson(tmp_path / "regions.geojson", [TRIANGLE])
    settings = ["tiles.tile=256", "tiles.block=512", "tissue=null", f"input.regions={drawn}"]
    batch = planned(slide, tmp_path / "out", *settings)
    opened = open_slide_run(batch, batch.outcomes[0])
    assert opened is not None
    for stage in batch.plans["slide"].hashes:
        opened.run.step(stage, serial)
    opened.run.finish()
    opened.lock.close()

    geojson(drawn, [TRIANGLE, [(520, 10), (690, 10), (690, 90)]])
    batch = planned(slide, tmp_path / "out", *settings)
    assert open_slide_run(batch, batch.outcomes[0]) is None
    assert batch.outcomes[0].state == "kept"
    assert "tissue would change (the regions, all of which would be computed again)" in batch.outcomes[0].cause
    assert "Add --force slide" in batch.outcomes[0].cause
    forced = planned(slide, tmp_path / "out", *settings, force=True)
    again = open_slide_run(forced, forced.outcomes[0])
    assert again is not None
    again.lock.close()
