"""QuPath annotations as labels equal a brute-force test of every pixel, and GDAL away from ties."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.features import rasterize

from pipeline.annotations.qupath_objects import QuPathObjects
from pipeline.errors import SlideError
from pipeline.geometry import Box

SHAPE = (90, 130)


def feature(rings: Any, kind: str | None = None, name: str | None = None) -> dict[str, Any]:
    properties: dict[str, Any] = {"objectType": "annotation"}
    if kind is not None:
        properties["classification"] = {"name": kind, "color": [200, 0, 0]}
    if name is not None:
        properties["name"] = name
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": rings}, "properties": properties}


def rectangle(x0: float, y0: float, x1: float, y1: float) -> list[list[list[float]]]:
    return [[[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]]


def written(folder: Path, *features: Any) -> Path:
    path = folder / "slide.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def read(folder: Path, *features: Any, shape_yx: tuple[int, int] = SHAPE) -> QuPathObjects:
    return QuPathObjects.read(written(folder, *features), shape_yx)


def blob(rng: np.random.Generator, corners: int) -> list[list[float]]:
    """A star-shaped ring around a random point, with two decimals as QuPath writes them."""
    angle = np.sort(rng.uniform(0, 2 * np.pi, corners))
    radius = rng.uniform(1, 30) * rng.uniform(0.4, 1, corners)
    x, y = rng.uniform(-5, 135), rng.uniform(-5, 95)
    ring = np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], axis=1).round(2).tolist()
    return [*ring, ring[0]]


def expected_labels(areas: list[Any], holes: list[Any], shape_yx: tuple[int, int]) -> NDArray[np.int32]:
    """Test each pixel's centre against each area in turn; the smallest that holds it wins."""
    found = np.zeros(shape_yx, np.int32)
    order = sorted(range(len(areas)), key=lambda number: -areas[number].area)
    for y, x in np.ndindex(shape_yx):
        centre = shapely.Point(x + 0.5, y + 0.5)
        for number in order:
            if areas[number].intersects(centre):
                found[y, x] = number + 1
        if any(hole.contains(centre) for hole in holes):
            found[y, x] = 0
    return found


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(0, 2))
def test_every_window_equals_brute_force(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int, cut: int
) -> None:
    rng = np.random.default_rng(seed)
    shape = (40, 60)
    rings = [blob(rng, int(rng.integers(3, 12))) for _ in range(count + cut)]
    polygons = [shapely.make_valid(shapely.Polygon(ring)) for ring in rings]
    if any(polygon.area == 0 for polygon in polygons):
        return
    features = [feature([ring], "exclude" if n >= count else None) for n, ring in enumerate(rings)]
    if not any(polygon.intersection(shapely.box(0, 0, 60, 40)).area for polygon in polygons[:count]):
        return
    drawn = read(tmp_path_factory.mktemp("drawn"), *features, shape_yx=shape)
    expected = expected_labels(polygons[:count], polygons[count:], shape)
    assert np.array_equal(drawn.paint(Box.of_shape(shape)), expected)
    for _ in range(3):
        y0, x0 = rng.integers(0, 40), rng.integers(0, 60)
        box = Box(y0, x0, rng.integers(y0 + 1, 41), rng.integers(x0 + 1, 61))
        assert np.array_equal(drawn.paint(box), expected[box.slices])


def test_a_large_outline_equals_gdal(tmp_path: Path) -> None:
    """2000 corners and a hole: boxes are decided as a whole; windows lie far from the origin too."""
    rng = np.random.default_rng(5)
    angle = np.linspace(0, 2 * np.pi, 2000, endpoint=False)
    radius = 320 + np.cumsum(rng.normal(0, 1.5, 2000)) * np.sin(angle / 2)
    rings = []
    for part in (1.0, 0.4):
        ring = np.stack([500 + part * radius * np.cos(angle), 400 + part * radius * np.sin(angle)], axis=1).round(2)
        rings.append([*ring.tolist(), ring[0].tolist()])
    shape = (800, 1000)
    drawn = read(tmp_path, feature(rings), shape_yx=shape)
    burnt = rasterize([({"type": "Polygon", "coordinates": rings}, 1)], out_shape=shape, fill=0, dtype=np.int32)
    assert np.array_equal(drawn.paint(Box.of_shape(shape)), burnt)
    for box in (Box(100, 200, 700, 900), Box(333, 444, 334, 900), Box(399, 499, 402, 502)):
        assert np.array_equal(drawn.paint(box), burnt[box.slices])
    assert burnt.sum() > 100_000


def test_a_pixel_centre_on_an_outline_is_inside_an_object_and_outside_a_hole(tmp_path: Path) -> None:
    """GDAL decides such ties by side: it finds 100 pixels instead of 121."""
    drawn = read(
        tmp_path,
        feature(rectangle(10.5, 10.5, 20.5, 20.5)),
        feature(rectangle(40, 40, 60, 60)),
        feature(rectangle(45.5, 45.5, 50.5, 50.5), "Ignore*"),
    )
    found = drawn.paint(Box.of_shape(SHAPE))
    assert (found == 1).sum() == 121
    assert (found[10:21, 10:21] == 1).all()
    assert drawn.ignored(Box.of_shape(SHAPE)).sum() == 16
    assert (found == 2).sum() == 400 - 16


def test_the_smallest_of_overlapping_areas_wins_in_any_order(tmp_path: Path) -> None:
    outer, inner = feature(rectangle(10, 10, 60, 60), "Tumor"), feature(rectangle(20, 20, 30, 30), "Necrosis")
    for features in ((outer, inner), (inner, outer)):
        drawn = read(tmp_path, *features)
        classes = np.array(["", *drawn.kinds])[drawn.paint(Box.of_shape(SHAPE))]
        assert (classes == "Necrosis").sum() == 100
        assert (classes == "Tumor").sum() == 2400


def test_excluded_areas_are_removed_from_all_objects(tmp_path: Path) -> None:
    drawn = read(
        tmp_path,
        feature(rectangle(0, 0, 50, 50)),
        feature(rectangle(10, 10, 20, 20), "Ignore*"),
        feature(rectangle(30, 30, 35, 60), "EXCLUDE"),
    )
    assert drawn.kinds == ("",)
    assert (drawn.paint(Box.of_shape(SHAPE)) == 1).sum() == 2500 - 100 - 100
    unknown = drawn.ignored(Box.of_shape(SHAPE))
    assert unknown[10:20, 10:20].all()
    assert unknown[30:60, 30:35].all()
    assert unknown.sum() == 100 + 150


def test_regions_define_the_annotated_parts(tmp_path: Path) -> None:
    drawn = read(
        tmp_path,
        feature(rectangle(12, 12, 14, 14), "Nucleus"),
        feature(rectangle(10.4, 5.6, 40.6, 30.2), "Region*", "ROI 1"),
        feature(rectangle(100, 50, 500, 500), "region*"),
    )
    assert drawn.kinds == ("Nucleus",)
    assert drawn.parts == (Box(6, 11, 30, 40), Box(50, 100, 90, 130))
    empty = read(tmp_path, feature(rectangle(0, 0, 9, 9), "Region*"))
    assert (empty.kinds, empty.parts) == ((), (Box(0, 0, 9, 9),))
    assert not empty.paint(Box.of_shape(SHAPE)).any()


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([feature(rectangle(500, 500, 600, 600))], "all 1 regions lie outside"),
        ([feature([[[0, 0], [9, 0], [0, 9], [0, 0]]], "Region*", "ROI")], r"ROI at x 0 to 9.* expected a rectangle"),
        ([feature(rectangle(200, 0, 300, 9), "Region*")], "expected an area of the slide"),
        (
            [{**feature([]), "geometry": {"type": "LineString", "coordinates": [[1, 2], [3, 4]]}}],
            "feature 1: expected a Polygon",
        ),
    ],
)
def test_invalid_annotations_are_rejected_by_file(tmp_path: Path, features: list[Any], message: str) -> None:
    with pytest.raises(SlideError, match=message) as caught:
        read(tmp_path, *features)
    assert "slide.geojson" in str(caught.value)
