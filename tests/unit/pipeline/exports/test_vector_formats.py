"""Exports read back by other libraries have the same objects, areas and positions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest
import rasterio.features
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from shapely.geometry import shape
from skimage.measure import label

from pipeline.errors import ConfigError, DamagedError
from pipeline.execution.blocks import serial
from pipeline.exports.polygon_stream import object_shapes
from pipeline.exports.vector_formats import CompleteResult, write_csv, write_geojson, write_geoparquet
from pipeline.stages.export import ExportInputs, export_slide
from pipeline.storage.slide_store import SlideStore, StoredArray
from tests.support.make_store import put_objects
from tests.unit.pipeline.stages.test_export import MPP, PLAN, SECTION, blobs, make_slide

SCALE = 2.5
LABELS = blobs()
LABELS[500:525, 100:900] = (
    LABELS.max() + 1
)  # across a corner of four blocks, of which the last holds none of its pixels
LABELS[505:520, 700:1040] = 0


def result_of(
    root: Path, labels: NDArray[np.uint32], scale: float = SCALE, names: Any = SECTION.classes.names
) -> CompleteResult:
    """A complete result with the parts of a manifest that exports read."""
    plan = {
        "key": "case/one",
        "hashes": {"label": PLAN},
        "image": {"shape_yx": labels.shape, "level0_from_image_yx": [scale, scale]},
        "model": {"spec": {"class_names": list(names), "colours": [[0, 190, 60], [255, 140, 0]]}},
        "config": {"tiles": {"block": 512}},
    }
    return CompleteResult(SlideStore(root), {"plan": plan})


@pytest.fixture(scope="module")
def labels() -> NDArray[np.uint32]:
    return np.asarray(label(LABELS, connectivity=2), np.uint32)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, labels: NDArray[np.uint32]) -> CompleteResult:
    root = tmp_path_factory.mktemp("slide")
    make_slide(root, labels, scale=SCALE)
    return result_of(root, labels)


def painted(geometries: Any, ids: Any, labels: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Label image of shapes at level 0."""
    small = [shapely.transform(one, lambda corners: corners / SCALE) for one in geometries]
    pairs = list(zip(small, map(int, ids), strict=True))
    return np.asarray(rasterio.features.rasterize(pairs, out_shape=labels.shape, dtype="int32"), np.uint32)


# ---- shapes ----------------------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32 - 1), st.integers(1, 1400), st.integers(1, 1400), st.floats(0.0002, 0.4))
def test_shapes_equal_objects_across_any_blocks(
    tmp_path_factory: pytest.TempPathFactory, seed: int, height: int, width: int, share: float
) -> None:
    """Random boxes, later ones over earlier: objects of many forms, across any blocks, with holes."""
    rng = np.random.default_rng(seed)
    boxes = np.zeros((height, width), np.uint32)
    for number in range(1, 12):
        y, x = rng.integers(height), rng.integers(width)
        far = rng.integers(1, 1 + max(1, int(share * 2000)), 2)
        boxes[y : y + far[0], x : x + far[1]] = number
    root = tmp_path_factory.mktemp("boxes")
    made = np.asarray(label(boxes, connectivity=2), np.uint32)
    work = make_slide(root, made)
    seen: list[int] = []
    areas = np.bincount(made.ravel())
    for shapes in object_shapes(work, SECTION):
        assert list(shapes) == sorted(shapes)
        seen += shapes
        for identity, one in shapes.items():
            assert one.is_valid
            assert one.area == areas[identity]
    assert sorted(seen) == list(range(1, int(made.max()) + 1))


def test_one_block_is_read_before_the_first_shapes(result: CompleteResult, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    unwatched = StoredArray.read
    monkeypatch.setattr(StoredArray, "read", lambda array, box: (reads.append(box.area_px), unwatched(array, box))[1])
    first = next(object_shapes(result.work, result.section))
    assert reads == [512 * 512]
    inside = LABELS[:511, :511]
    assert len(first) >= len(np.unique(inside)) // 2


# ---- GeoJSON ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def geojson(result: CompleteResult, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    path = tmp_path_factory.mktemp("geojson") / "new" / "objects.geojson"
    write_geojson(result, path)
    return list(json.loads(path.read_bytes())["features"])


def test_rasterized_geojson_equals_the_labels(geojson: list[dict[str, Any]], labels: NDArray[np.uint32]) -> None:
    ids = [feature["properties"]["measurements"]["Object id"] for feature in geojson]
    shapes = [shape(feature["geometry"]) for feature in geojson]
    assert sorted(ids) == list(range(1, int(labels.max()) + 1))
    assert any(one.interiors for many in shapes for one in getattr(many, "geoms", [many])), "there are holes"
    assert np.array_equal(painted(shapes, ids, labels), labels)
    areas = [feature["properties"]["measurements"]["Area µm^2"] for feature in geojson]
    assert [one.area / SCALE**2 * MPP**2 for one in shapes] == pytest.approx(areas)


def test_geojson_equals_that_of_the_run(
    tmp_path: Path, labels: NDArray[np.uint32], geojson: list[dict[str, Any]]
) -> None:
    work = make_slide(tmp_path, labels, scale=SCALE)
    export_slide(work, replace(SECTION, level0_from_image=(SCALE, SCALE)), serial)
    write_geojson(result_of(tmp_path, labels), tmp_path / "objects.geojson")
    wrote = json.loads((tmp_path / "objects.geojson").read_bytes())["features"]
    assert {feature["id"]: feature for feature in wrote} == {feature["id"]: feature for feature in geojson}


# ---- GeoParquet ------------------------------------------------------------------------------------------------------


def test_geoparquet_opens_in_geopandas(result: CompleteResult, labels: NDArray[np.uint32], tmp_path: Path) -> None:
    write_geoparquet(result, tmp_path / "objects.geo.parquet")
    frame = geopandas.read_parquet(tmp_path / "objects.geo.parquet")
    assert frame.crs is None
    assert frame.geometry.is_valid.all()
    assert np.array_equal(painted(frame.geometry, frame["id"], labels), labels)
    assert np.allclose(frame.geometry.area / SCALE**2 * MPP**2, frame["area_um2"])
    table = pq.read_table(result.table).to_pandas()
    columns = pandas.DataFrame(frame.drop(columns="geometry")).sort_values("id").reset_index(drop=True)
    pandas.testing.assert_frame_equal(columns, table)


def test_a_slide_without_objects_has_files_without_rows(tmp_path: Path) -> None:
    make_slide(tmp_path, np.zeros((600, 700), np.uint32))
    empty = result_of(tmp_path, np.zeros((600, 700), np.uint32))
    write_geoparquet(empty, tmp_path / "a.parquet")
    write_csv(empty, tmp_path / "a.csv")
    write_geojson(empty, tmp_path / "a.geojson")
    columns = list(pq.read_schema(empty.table).names)
    assert list(geopandas.read_parquet(tmp_path / "a.parquet").columns) == [*columns, "geometry"]
    assert list(pandas.read_csv(tmp_path / "a.csv").columns) == columns
    assert json.loads((tmp_path / "a.geojson").read_bytes()) == {"type": "FeatureCollection", "features": []}


# ---- CSV -------------------------------------------------------------------------------------------------------------


def test_csv_equals_the_table(result: CompleteResult, tmp_path: Path) -> None:
    write_csv(result, tmp_path / "objects.csv")
    found = pandas.read_csv(tmp_path / "objects.csv")
    expected = pq.read_table(result.table).to_pandas()
    assert list(found.columns) == list(expected.columns)
    assert found["class"].tolist() == expected["class"].tolist()
    for name in set(found.columns) - {"class"}:
        assert np.array_equal(found[name], expected[name]), name  # to the bit


def test_csv_has_no_formulas_for_a_spreadsheet(tmp_path: Path) -> None:
    squares = np.zeros((20, 20), np.uint32)
    squares[2:4, 2:4], squares[8:10, 8:10] = 1, 2
    store = SlideStore(tmp_path)
    put_objects(store, squares, {"=1+1": [1], "-cell": [2]}, MPP)
    write_csv(result_of(tmp_path, squares, names=("=1+1", "-cell")), tmp_path / "objects.csv")
    assert pandas.read_csv(tmp_path / "objects.csv")["class"].tolist() == ["'=1+1", "'-cell"]


# ---- rejected input --------------------------------------------------------------------------------------------------


def test_incomplete_results_and_results_without_objects_are_rejected(tmp_path: Path, result: CompleteResult) -> None:
    with pytest.raises(ConfigError, match="is not complete"):
        CompleteResult.open(SlideStore(tmp_path))
    plan = {**result.manifest["plan"], "hashes": {"predict": PLAN}}
    with pytest.raises(ConfigError, match="has no objects"):
        write_csv(CompleteResult(result.store, {"plan": plan}), tmp_path / "objects.csv")
    assert not list(tmp_path.iterdir())


def test_a_damaged_label_leaves_no_file_behind(tmp_path: Path, labels: NDArray[np.uint32]) -> None:
    make_slide(tmp_path / "slide", labels)
    (tmp_path / "slide" / "slide.ome.zarr" / "labels" / "objects" / "0" / "c" / "1" / "1").write_bytes(b"")
    with pytest.raises(DamagedError, match="missing or empty"):
        write_geoparquet(result_of(tmp_path / "slide", labels, 1.0), tmp_path / "out" / "a.parquet")
    assert not list((tmp_path / "out").iterdir())


def test_labels_of_another_plan_are_rejected(result: CompleteResult, tmp_path: Path) -> None:
    section: ExportInputs = replace(result.section, objects_plan="9" * 64)
    with pytest.raises(Exception, match="expected labels of plan 99999999"):
        next(object_shapes(result.work, section))
