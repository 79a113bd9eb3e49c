"""GeoJSON: outlines that reproduce the label image for any blocks, and a file that follows QuPath's rules."""

from __future__ import annotations

import gzip
import json
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio.features
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.measure import label

from pipeline.errors import DamagedError, StoreError
from pipeline.execution.blocks import StageContext, serial
from pipeline.image_info import ClassInfo
from pipeline.objects.polygons import PolygonParts, join, outlines, trace
from pipeline.objects.table_writer import MeasureInputs, table_schema
from pipeline.stages.export import ExportInputs, export_slide
from pipeline.storage.layout import GEOJSON, OBJECTS
from pipeline.storage.slide_store import SlideStore
from tests.support.make_store import StopAfter, StoppedError, backwards, put_array, put_objects, tree_bytes
from tests.unit.pipeline.stage_inputs import NUCLEUS_MITOSIS, image_info

PLAN = "c" * 64
MPP = 0.25
SECTION = ExportInputs(PLAN, (1.0, 1.0), NUCLEUS_MITOSIS)
SHAPE_YX = (1100, 1500)  # 3 x 3 blocks of 512


def blobs(shape_yx: tuple[int, int] = SHAPE_YX, seed: int = 0) -> NDArray[np.uint32]:
    """Objects of many sizes, with holes, meeting at corners, crossing seams: noise, coarse and fine."""
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.random((-(-shape_yx[0] // 40), -(-shape_yx[1] // 40))) < 0.22, np.ones((40, 40), bool))
    fine = np.kron(rng.random((-(-shape_yx[0] // 5), -(-shape_yx[1] // 5))) < 0.8, np.ones((5, 5), bool))
    mask = coarse[: shape_yx[0], : shape_yx[1]] & fine[: shape_yx[0], : shape_yx[1]]
    return np.asarray(label(mask, connectivity=2), np.uint32)


def make_slide(root: Path, labels: NDArray[np.uint32], block_px: int = 512, scale: float = 1.0) -> StageContext:
    store = SlideStore(root)
    put_array(store, OBJECTS, labels, PLAN, block_px)
    count = int(labels.max(initial=0))
    odd = {"nucleus": range(1, count + 1, 2), "mitosis": range(2, count + 1, 2)}
    put_objects(store, labels, odd, MPP, scale)
    return StageContext(root, labels.shape, block_px, "p" * 64)


def features(root: Path) -> list[dict[str, Any]]:
    content = json.loads(gzip.decompress((root / GEOJSON).read_bytes()))
    assert content["type"] == "FeatureCollection"
    return list(content["features"])


def by_object(root: Path) -> dict[int, dict[str, Any]]:
    return {feature["properties"]["measurements"]["Object id"]: feature for feature in features(root)}


def painted(found: dict[int, dict[str, Any]], shape_yx: tuple[int, int]) -> NDArray[np.uint32]:
    """The label image that the polygons describe."""
    shapes = [(feature["geometry"], identity) for identity, feature in found.items()]
    if not shapes:
        return np.zeros(shape_yx, np.uint32)
    return np.asarray(rasterio.features.rasterize(shapes, out_shape=shape_yx, dtype="int32"), np.uint32)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("slide")
    export_slide(make_slide(root, blobs()), SECTION, serial)
    return root


# ---- outlines -------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 24), st.integers(1, 24), st.integers(1, 9), st.floats(0.1, 0.9), st.integers(0, 2**32 - 1))
def test_blocks_of_any_size_give_the_outline_of_one_trace(
    height: int, width: int, block: int, filled: float, seed: int
) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < filled
    labels = np.asarray(label(mask, connectivity=2), np.uint32)
    pieces: dict[int, list[Any]] = {identity: [] for identity in range(1, int(labels.max(initial=0)) + 1)}
    for y in range(0, height, block):
        for x in range(0, width, block):
            parts = PolygonParts.of_arrays(trace(labels[y : y + block, x : x + block], (y, x)).arrays())
            for identity, polygon in zip(parts.ids.tolist(), parts.polygons(), strict=True):
                pieces[identity].append(polygon)
    joined = [join(polygons, across_blocks=True) for polygons in pieces.values()]
    whole = trace(labels, (0, 0))
    in_one = [
        join([p for i, p in zip(whole.ids, whole.polygons(), strict=True) if i == identity], across_blocks=False)
        for identity in pieces
    ]
    assert all(shape.is_valid for shape in joined + in_one)
    assert list(outlines(joined, (1.0, 1.0))) == list(outlines(in_one, (1.0, 1.0)))
    assert [shape.area for shape in joined] == np.bincount(labels.ravel())[1:].tolist()


def test_outline_of_a_ring_and_of_pixels_meeting_at_a_corner() -> None:
    labels = np.array([[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1]], np.uint32)
    parts = trace(labels, (0, 10))
    (outline,) = outlines([join(list(parts.polygons()), across_blocks=False)], (2.0, 1.0))
    ring = [[[10, 0], [13, 0], [13, 6], [10, 6], [10, 0]], [[11, 2], [11, 4], [12, 4], [12, 2], [11, 2]]]
    assert sorted(outline) == sorted([ring, [[[13, 6], [14, 6], [14, 8], [13, 8], [13, 6]]]])


def test_ids_beyond_int32_are_kept() -> None:
    parts = trace(np.array([[2**32 - 1, 2**31, 7]], np.uint32), (0, 0))
    assert parts.ids.tolist() == [7, 2**31, 2**32 - 1]


# ---- the file -------------------------------------------------------------------------------------------------------


def test_file_reproduces_labels(finished: Path) -> None:
    labels = blobs()
    found = by_object(finished)
    count = int(labels.max())
    assert count > 100
    assert sorted(found) == list(range(1, count + 1))
    np.testing.assert_array_equal(painted(found, labels.shape), labels)
    area_px = np.bincount(labels.ravel())
    kinds = set()
    for identity, feature in found.items():
        shape = shapely.geometry.shape(feature["geometry"])
        assert shape.is_valid
        assert shape.area == area_px[identity]
        assert feature["properties"]["measurements"]["Area \u00b5m^2"] == round(area_px[identity] * MPP**2, 4)
        kinds.add((shape.geom_type, bool(shapely.get_num_interior_rings(shapely.get_parts(shape)).any())))
    assert kinds == {(kind, holes) for kind in ("Polygon", "MultiPolygon") for holes in (False, True)}


def test_features_are_as_qupath_reads_them(finished: Path) -> None:
    found = by_object(finished)
    assert len({feature["id"] for feature in found.values()}) == len(found)
    for identity in (1, 2):
        feature = found[identity]
        assert set(feature) == {"type", "id", "geometry", "properties"}
        assert str(uuid.UUID(feature["id"])) == feature["id"]
        assert feature["properties"]["objectType"] == "detection"
        assert all(isinstance(value, int | float) for value in feature["properties"]["measurements"].values())
    assert found[1]["properties"]["classification"] == {"name": "nucleus", "color": [0, 190, 60]}
    assert found[2]["properties"]["classification"] == {"name": "mitosis", "color": [255, 140, 0]}
    for feature in found.values():
        polygons = feature["geometry"]["coordinates"]
        for rings in [polygons] if feature["geometry"]["type"] == "Polygon" else polygons:
            assert shapely.is_ccw(shapely.linearrings(rings[0]))
            assert not any(shapely.is_ccw(shapely.linearrings(ring)) for ring in rings[1:])


def test_order_of_blocks_does_not_matter(finished: Path, tmp_path: Path) -> None:
    export_slide(make_slide(tmp_path, blobs()), SECTION, backwards)
    assert (tmp_path / GEOJSON).read_bytes() == (finished / GEOJSON).read_bytes()


def test_size_of_blocks_changes_the_order_only(finished: Path, tmp_path: Path) -> None:
    export_slide(make_slide(tmp_path, blobs(), block_px=1024), SECTION, serial)
    assert by_object(tmp_path) == by_object(finished)


@pytest.mark.parametrize("stop_after", [0, 4, 9])
def test_resume_is_byte_identical(finished: Path, tmp_path: Path, stop_after: int) -> None:
    work = make_slide(tmp_path, blobs())
    if stop_after < 9:
        with pytest.raises(StoppedError):
            export_slide(work, SECTION, StopAfter(stop_after))
        assert not (tmp_path / GEOJSON).exists()
        assert work.store.stamped("export") is None
    report = export_slide(work, SECTION, serial)
    assert (report.blocks, report.computed) == (9, 9 - stop_after if stop_after < 9 else 9)
    assert tree_bytes(tmp_path) == tree_bytes(finished)
    assert report.facts == work.store.facts("export") == {"objects": int(blobs().max())}


def test_scaled_coordinates_lie_on_level_0(tmp_path: Path) -> None:
    labels = blobs((300, 200))
    scale_y, scale_x = 1.9960079840319362, 2.0
    work = make_slide(tmp_path, labels)
    export_slide(work, replace(SECTION, level0_from_image=(scale_y, scale_x)), serial)
    found = by_object(tmp_path)
    for feature in found.values():
        shape = shapely.geometry.shape(feature["geometry"])
        assert shape.is_valid
        back = shapely.transform(shape, lambda xy: (xy / [scale_x, scale_y]).round())
        feature["geometry"] = shapely.geometry.mapping(back)
        assert shape.area == pytest.approx(back.area * scale_y * scale_x, rel=1e-3)
    np.testing.assert_array_equal(painted(found, labels.shape), labels)


@pytest.mark.parametrize("shape_yx", [(1, 1), (600, 700)])
def test_no_objects(tmp_path: Path, shape_yx: tuple[int, int]) -> None:
    report = export_slide(make_slide(tmp_path, np.zeros(shape_yx, np.uint32)), SECTION, serial)
    assert features(tmp_path) == []
    assert report.facts == {"objects": 0}


def test_one_pixel(tmp_path: Path) -> None:
    export_slide(make_slide(tmp_path, np.ones((1, 1), np.uint32)), SECTION, serial)
    (feature,) = features(tmp_path)
    assert feature["geometry"] == {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]]}


def test_gzip_header_has_no_time(finished: Path) -> None:
    header = (finished / GEOJSON).read_bytes()[:10]
    assert header[3] == 0, "no name, no comment"
    assert header[4:8] == bytes(4), "no time"


# ---- refusals -------------------------------------------------------------------------------------------------------


def test_labels_of_another_plan_are_refused(tmp_path: Path) -> None:
    work = make_slide(tmp_path, blobs((30, 30)))
    with pytest.raises(StoreError, match="expected labels of plan dddddddd, found cccccccc"):
        export_slide(work, replace(SECTION, objects_plan="d" * 64), serial)


@pytest.mark.parametrize(("change", "found"), [(1, "the 8 objects of .*, found 9"), (-1, "object 8, found 7")])
def test_a_table_of_other_objects_is_refused(tmp_path: Path, change: int, found: str) -> None:
    labels = blobs((300, 300))
    work = make_slide(tmp_path, labels)
    other = labels.copy()
    other[labels == labels.max()] = 0
    if change > 0:
        other = labels.copy()
        other[0, 0] = labels.max() + 1
    make_slide(tmp_path / "other", other)
    (tmp_path / "other/objects.parquet").replace(tmp_path / "objects.parquet")
    with pytest.raises(DamagedError, match=found):
        export_slide(work, SECTION, serial)
    assert not (tmp_path / GEOJSON).exists()


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    work = make_slide(tmp_path, blobs((30, 30)))
    (tmp_path / "objects.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DamagedError, match=r"objects\.parquet cannot be read"):
        export_slide(work, SECTION, serial)


def test_a_class_of_another_model_is_named(tmp_path: Path) -> None:
    work = make_slide(tmp_path, blobs((300, 300)))
    with pytest.raises(DamagedError, match=r"expected the classes \['cell', 'mitosis'\]"):
        export_slide(work, replace(SECTION, classes=ClassInfo(("cell", "mitosis"), NUCLEUS_MITOSIS.colours)), serial)


def test_the_columns_are_those_that_are_measured() -> None:
    names = table_schema(MeasureInputs(image_info(MPP, channels=("red",)), ("nucleus",), None)).names
    assert {"id", "class", "area_um2", "mean_probability", "centroid_y_um", "centroid_x_um"} <= set(names)
