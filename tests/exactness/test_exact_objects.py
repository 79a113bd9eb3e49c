"""Label-exact with all object settings on.

The reference applies the same operations to the whole mask in memory. Opening, closing, filling, splitting and filters
by area and region are on. The slide is real tissue, cut into blocks by the stages of a normal run; the reference works
on the stored probability as one array.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
import tifffile
from numpy.typing import NDArray

from flows.batch.batch import BatchRequest, plan_batch
from pipeline.config import load_config
from pipeline.execution.blocks import MapBlocks, serial
from pipeline.execution.local_cluster import local_cluster
from pipeline.runs.slide_run import SlideRun, slide_root
from pipeline.storage.slide_store import SlideStore
from tests.exactness.test_exact import write_tiff
from tests.support import whole_objects
from tests.support.commands import CONTEXT
from tests.support.make_photos import write_png

CROP = (slice(200, 1113), slice(100, 1267))
MPP, THRESHOLD_BYTE = 0.25, 51
AREAS = {"left": shapely.box(40, 30, 500, 880), "right": shapely.Point(800, 500).buffer(330)}
SETTINGS = (
    *(f"model.weights={CONTEXT}", f"input.mpp={MPP}", "compute.precision=fp32", "tiles.tile=256", "tissue=null"),
    *("objects.threshold=0.2", "objects.open_um=0.5", "objects.close_um=0.25", "objects.fill_holes_um2=1.0"),
    *("objects.split=watershed", "objects.split_depth_um=0.25", "objects.min_area_um2=1", "objects.max_area_um2=60"),
)
Array = NDArray[Any]


@pytest.fixture(scope="module")
def crop(shared_data: Path) -> Array:
    """Real tissue (c, y, x) with odd height and width."""
    return np.ascontiguousarray(tifffile.imread(shared_data / "mosaics" / "he_mosaic.tif")[CROP].transpose(2, 0, 1))


@pytest.fixture(scope="module")
def dask() -> Iterator[MapBlocks]:
    with local_cluster(2) as mapper:
        yield mapper


def drawn(path: Path) -> Path:
    """Write regions in the form QuPath exports them."""
    features = [
        {"type": "Feature", "geometry": shapely.geometry.mapping(area), "properties": {"name": name}}
        for name, area in AREAS.items()
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def segmented(slide: Path, out: Path, settings: list[str], map_blocks: MapBlocks) -> SlideStore:
    """Run the stages up to the object table on the slide."""
    config = load_config(None, [*SETTINGS, *settings])
    (plan,) = plan_batch(BatchRequest(inputs=(slide,), out=out, config=config)).plans.values()
    run = SlideRun(plan, SlideStore(slide_root(out, plan.key)))
    run.prepare()
    for stage in ("ingest", "tissue", "predict", "label", "measure"):
        run.step(stage, map_blocks)
    return run.store


def region_of(one: Any) -> str | None:
    """Return the first region that contains an object's centroid; image pixels are level-0 pixels here."""
    y, x = (value + 0.5 for value in one.centroid)
    return next((name for name, area in AREAS.items() if area.intersects(shapely.Point(x, y))), None)


def expected(probability: Array) -> Array:
    """Apply the same operations to the whole mask."""
    mask = (probability[0] >= THRESHOLD_BYTE).astype(np.uint8)
    filled = whole_objects.filled(whole_objects.smoothed(mask, [(2, 1)]), 8, 16)
    parts = whole_objects.split(whole_objects.numbered(filled, 8), 8, 256, 800)
    fitting = whole_objects.kept(parts, lambda one: 16 <= one.area <= 960)
    assert 20 < fitting.max() < parts.max()
    return whole_objects.kept(fitting, lambda one: region_of(one) is not None)


@pytest.mark.parametrize(
    ("kind", "block", "how"),
    [
        ("tif", 512, "serial"),
        *(pytest.param(*one, "dask", marks=pytest.mark.long) for one in (("png", 512), ("tif", 1024))),
    ],
)
def test_objects_are_those_of_the_whole_mask(
    crop: Array, tmp_path: Path, request: pytest.FixtureRequest, *, kind: str, block: int, how: str
) -> None:
    slide = tmp_path / f"crop.{kind}"
    if kind == "png":
        write_png(slide, np.moveaxis(crop, 0, -1), None)
    else:
        write_tiff(slide, crop)
    settings = [f"tiles.block={block}", f"input.regions={drawn(tmp_path / 'regions.geojson')}"]
    store = segmented(slide, tmp_path / "out", settings, serial if how == "serial" else request.getfixturevalue("dask"))
    labels = store.read("labels/objects/0")[:]
    reference = expected(store.read("probability/0")[:])
    np.testing.assert_array_equal(labels, reference)
    facts = store.facts("label")
    assert facts["split"]["objects"] > 5
    assert facts["objects"] == labels.max() > 20
    table = pq.read_table(store.root / "objects.parquet")
    assert table["region"].to_pylist() == [region_of(one) for one in whole_objects.regionprops(reference)]
    assert table["area_px"].to_pylist() == np.bincount(reference.ravel())[1:].tolist()
    rows = store.facts("measure")["rows"]
    assert [(row["region"], row["count"]) for row in rows] == [
        (name, table["region"].to_pylist().count(name)) for name in AREAS
    ]
