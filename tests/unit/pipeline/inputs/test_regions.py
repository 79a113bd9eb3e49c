"""Regions from GeoJSON, and the points and squares inside them, against plain arithmetic."""

from __future__ import annotations

import gzip
import itertools
import json
import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rasterio.features import rasterize

from pipeline.errors import SlideError
from pipeline.inputs.regions import LARGEST_BYTES, Regions, find_regions

Ring = list[list[float]]

SQUARE: Ring = [[10, 10], [50, 10], [50, 50], [10, 50], [10, 10]]
HOLE: Ring = [[20, 20], [30, 20], [30, 30], [20, 30], [20, 20]]


def feature(rings: list[Ring], name: str | None = None, kind: str | None = None) -> dict[str, Any]:
    """An annotation as QuPath 0.5 writes it."""
    properties: dict[str, Any] = {"objectType": "annotation"}
    if name is not None:
        properties["name"] = name
    if kind is not None:
        properties["classification"] = {"name": kind, "color": [200, 0, 0]}
    return {
        "type": "Feature",
        "id": "7e1c",
        "geometry": {"type": "Polygon", "coordinates": rings},
        "properties": properties,
    }


def written(folder: Path, content: Any) -> Path:
    path = folder / "slide.geojson"
    path.write_text(json.dumps(content), "utf-8")
    return path


def read(folder: Path, *features: Any) -> Regions:
    return Regions.read(written(folder, {"type": "FeatureCollection", "features": list(features)}))


def box_ring(x0: float, y0: float, x1: float, y1: float) -> Ring:
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]


# ---- the oracle: imports nothing that the code under test uses -------------------------------------------------------


def crossings(rings: list[Ring], y: float, x: float) -> bool:
    """Even-odd rule in exact fractions, for points that lie on no edge."""
    inside = False
    for ring in rings:
        for (x0, y0), (x1, y1) in itertools.pairwise(ring):
            if (y0 > y) != (y1 > y):
                at = Fraction(x0) + (Fraction(y) - Fraction(y0)) * (Fraction(x1) - Fraction(x0)) / (
                    Fraction(y1) - Fraction(y0)
                )
                inside ^= at > Fraction(x)
    return inside


# ---- the file --------------------------------------------------------------------------------------------------------


def test_names_and_classes_as_qupath_writes_them(tmp_path: Path) -> None:
    derived = feature([SQUARE])
    derived["properties"]["classification"] = {"names": ["Tumor", "Positive"], "color": [1, 2, 3]}
    found = read(
        tmp_path,
        feature([SQUARE], "core A1", "Tumor"),
        feature([SQUARE], kind="Tumor"),
        feature([SQUARE], kind="Tumor"),
        feature([SQUARE]),
        derived,
        {**feature([SQUARE]), "properties": None},
    )
    assert found.names == ("core A1", "Tumor", "Tumor (2)", "region 4", "Tumor: Positive", "region 6")
    assert found.classes == ("Tumor", "Tumor", "Tumor", "", "Tumor: Positive", "")
    assert pickle.loads(pickle.dumps(found)) == found


def test_generated_names_are_distinct_from_given_names(tmp_path: Path) -> None:
    names = ["a", "a", "a (2)", "a", "a (2)"]
    found = read(tmp_path, *(feature([SQUARE], name) for name in names)).names
    assert len(set(found)) == 5
    assert found[:3] == ("a", "a (3)", "a (2)")


def test_equivalent_geojson_forms_give_same_areas(tmp_path: Path) -> None:
    one = feature([SQUARE, HOLE])
    as_multi = {**one, "geometry": {"type": "MultiPolygon", "coordinates": [[SQUARE, HOLE]]}}
    deep = feature([[[*point, 0.0] for point in ring] for ring in (SQUARE, HOLE)])
    contents = [{"type": "FeatureCollection", "features": [one]}, one, [one], one["geometry"], [as_multi], [deep]]
    y, x = np.mgrid[0.5:60, 0.5:60]
    expected = Regions.read(written(tmp_path, contents[0])).region_of(y, x)
    assert (expected == 0).sum() == 1500
    for content in contents:
        assert np.array_equal(Regions.read(written(tmp_path, content)).region_of(y, x), expected)
    packed = tmp_path / "slide.geojson.gz"
    packed.write_bytes(gzip.compress(json.dumps(contents[0]).encode()))
    assert Regions.read(packed) == Regions.read(written(tmp_path, contents[0]))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"geometry": {"type": "Point", "coordinates": [1, 2]}}, "expected a Polygon or a MultiPolygon, found Point"),
        ({"geometry": {"type": "LineString", "coordinates": [[1, 2], [2, 3]]}}, "found LineString: it has no area"),
        ({"geometry": None}, "found no geometry"),
        ({"geometry": {"type": "Polygon", "coordinates": []}}, "found one of 0 pixels"),
        ({"geometry": {"type": "Polygon", "coordinates": [[[0, 0], [9, 9], [0, 0], [0, 0]]]}}, "found one of 0 pixels"),
        ({"geometry": {"type": "Polygon", "coordinates": [SQUARE[:-1]]}}, "expected rings of"),
        ({"geometry": {"type": "Polygon", "coordinates": [[["a", 0], [1, 1]]]}}, "expected rings of"),
        ({"geometry": {"type": "Polygon"}}, "expected rings of"),
        ({"geometry": {"type": "Polygon", "coordinates": [[[0, 0], [float("nan"), 0], [1, 1], [0, 0]]]}}, "expected r"),
        ({"geometry": {"type": "Polygon", "coordinates": [[[0, 0], [float("inf"), 0], [1, 1], [0, 0]]]}}, "expected r"),
        ({"properties": [1]}, "expected properties by name"),
    ],
)
def test_feature_without_area_is_refused_by_name(tmp_path: Path, broken: Any, message: str) -> None:
    bad = {**feature([SQUARE], "tumour front"), **broken}
    with pytest.raises(SlideError) as caught:
        read(tmp_path, feature([SQUARE]), bad)
    named = "" if "properties" in broken else " (tumour front)"
    assert str(caught.value).startswith(f"{tmp_path / 'slide.geojson'}: feature 2{named}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "expected GeoJSON, found something else"),
        (b"\xff\xfe", "expected GeoJSON, found something else"),
        (b"[" * 100_000, "expected GeoJSON, found something else"),
        (b"[1]", "feature 1: expected a GeoJSON feature, found '1'"),
        (b"7", "expected a GeoJSON FeatureCollection as QuPath exports it .*, found int"),
        (b'{"type": "Topology"}', "found type 'Topology'"),
        (b"[]", "expected at least one region, found none"),
        (b" " * (LARGEST_BYTES + 1), "expected at most 64 MiB"),
    ],
    ids=["empty", "bytes", "deep", "number", "int", "topology", "none", "large"],
)
def test_file_without_regions_is_refused_with_its_content(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "slide.geojson"
    path.write_bytes(raw)
    with pytest.raises(SlideError, match=message):
        Regions.read(path)


def test_gzipped_file_is_read_up_to_the_size_limit(tmp_path: Path) -> None:
    path = tmp_path / "slide.geojson.gz"
    path.write_bytes(gzip.compress(b" " * (LARGEST_BYTES + 2)))
    with pytest.raises(SlideError, match="expected at most 64 MiB"):
        Regions.read(path)
    path.write_bytes(gzip.compress(b" " * 5000)[:-9])
    with pytest.raises(SlideError, match="cannot be read"):
        Regions.read(path)


def test_file_with_only_excluded_areas_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="found 1 areas to exclude and nothing else"):
        read(tmp_path, feature([SQUARE], kind="Exclude"))


def test_regions_file_is_found_in_folder_or_shared(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    one, packed = tmp_path / "a" / "b.c.geojson", tmp_path / "d.geojson.gz"
    one.touch(), packed.touch()
    assert find_regions(tmp_path, "a/b.c") == one
    assert find_regions(tmp_path, "d") == packed
    assert find_regions(one, "whatever") == one
    with pytest.raises(SlideError, match=r"a/b: no regions: expected .*a/b\.geojson or .*a/b\.geojson\.gz"):
        find_regions(tmp_path, "a/b")


# ---- points ----------------------------------------------------------------------------------------------------------


def test_first_region_with_a_point_is_found_outside_excluded_areas(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        feature([box_ring(30, 0, 60, 60)], "right"),
        feature([SQUARE, HOLE], "left"),
        feature([box_ring(40, 40, 100, 100)], kind="exclude"),
        feature([box_ring(0, 0, 12, 12)], kind="IGNORE*"),
    )
    assert (found.names, len(found.holes)) == (("right", "left"), 2)
    points = {(35, 35): 0, (35, 15): 1, (25, 25): -1, (45, 45): -1, (45, 35): 0, (11, 11): -1, (70, 70): -1}
    y, x = np.array(list(points), float).T
    assert found.region_of(y, x).tolist() == list(points.values())
    assert found.region_of(y, x).dtype == np.int32


def test_point_on_an_outline_is_inside_and_not_excluded(tmp_path: Path) -> None:
    found = read(tmp_path, feature([SQUARE, HOLE]), feature([box_ring(40, 40, 90, 90)], kind="exclude"))
    assert found.region_of(np.array([10, 30, 20, 40]), np.array([10, 50, 25, 45])).tolist() == [0, 0, 0, 0]


ring = st.lists(st.tuples(st.integers(0, 24), st.integers(0, 24)), min_size=3, max_size=7)


@settings(max_examples=150, deadline=None)
@given(st.lists(ring, min_size=1, max_size=3), st.lists(ring, max_size=2))
def test_points_equal_even_odd_rule_in_fractions(
    tmp_path_factory: pytest.TempPathFactory, areas: list[Any], excluded: list[Any]
) -> None:
    """Rings of any kind, self-crossing too (but no edge walked twice), at points that lie on no edge."""
    apart = np.random.default_rng(len(areas))
    drawn = [(4.0 * np.array(corners) + apart.random((len(corners), 2))).tolist() for corners in [*areas, *excluded]]
    rings = [[*corners, corners[0]] for corners in drawn]
    features = [feature([one], kind="exclude" if n >= len(areas) else None) for n, one in enumerate(rings)]
    rng = np.random.default_rng(len(rings))
    y, x = rng.integers(0, 96 * 64, (2, 60)) / 64
    found = read(tmp_path_factory.mktemp("regions"), *features).region_of(y, x)
    for at, number in zip(zip(y, x, strict=True), found, strict=True):
        inside = [crossings([one], *at) for one in rings]
        expected = -1 if any(inside[len(areas) :]) or not any(inside) else inside.index(True)
        assert number == expected, at


def test_pixels_of_outline_equal_rasterisation_by_gdal(tmp_path: Path) -> None:
    """A freehand outline of 400 corners with a hole, at pixel centres, against GDAL."""
    rng = np.random.default_rng(5)
    angle = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    radius = 90 + np.cumsum(rng.normal(0, 1.5, 400)) * np.sin(angle / 2)
    outer = np.stack([150 + radius * np.cos(angle), 120 + radius * np.sin(angle)], axis=1).round(2)
    inner = np.stack([150 + 0.4 * radius * np.cos(angle), 120 + 0.4 * radius * np.sin(angle)], axis=1).round(2)
    rings = [[*one.tolist(), one[0].tolist()] for one in (outer, inner)]
    regions = read(tmp_path, feature(rings))
    y, x = np.mgrid[0:260, 0:300] + 0.5
    burnt = rasterize([{"type": "Polygon", "coordinates": rings}], out_shape=(260, 300), fill=0)
    assert np.array_equal(regions.region_of(y, x) == 0, burnt == 1)
    assert 10_000 < burnt.sum() < 40_000


# ---- squares ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(ring, min_size=1, max_size=3), st.lists(ring, max_size=2), st.floats(3, 40), st.floats(3, 40))
def test_touched_squares_equal_single_intersections(
    tmp_path_factory: pytest.TempPathFactory, areas: list[Any], excluded: list[Any], height: float, width: float
) -> None:
    rings = [[[4.0 * x, 4.0 * y] for x, y in [*corners, corners[0]]] for corners in [*areas, *excluded]]
    features = [feature([one], kind="exclude" if n >= len(areas) else None) for n, one in enumerate(rings)]
    assume(all(shapely.make_valid(shapely.Polygon(one)).area for one in rings))
    y, x = np.arange(5) * height, np.arange(6) * width
    polygons = [shapely.make_valid(shapely.Polygon(one)) for one in rings]
    found = read(tmp_path_factory.mktemp("regions"), *features).touched(y, x)
    left = shapely.union_all(polygons[: len(areas)]).difference(shapely.union_all(polygons[len(areas) :]))
    for row, col in np.ndindex(found.shape):
        shared = left.intersection(shapely.box(x[col], y[row], x[col + 1], y[row + 1])).area
        if shared > 1e-6 or shared == 0:
            assert found[row, col] == (shared > 0), (row, col, shared)


def test_shared_edge_or_corner_is_not_touched(tmp_path: Path) -> None:
    edges = np.arange(5) * 512.0
    on_edges = read(tmp_path, feature([box_ring(512, 512, 1024, 1536)]))
    expected = np.zeros((4, 4), bool)
    expected[1:3, 1] = True
    assert np.array_equal(on_edges.touched(edges, edges), expected)
    pixel = read(tmp_path, feature([box_ring(1535, 1535, 1537, 1537)]))
    expected = np.zeros((4, 4), bool)
    expected[2:, 2:] = True
    assert np.array_equal(pixel.touched(edges, edges), expected)
    everything = feature([box_ring(0, 0, 2048, 2048)])
    cut_away = read(tmp_path, everything, feature([box_ring(0, 0, 2048, 1024)], kind="exclude"))
    assert np.array_equal(cut_away.touched(edges, edges).any(axis=1), [False, False, True, True])


# ---- slide extent and digest -----------------------------------------------------------------------------------------


def test_regions_outside_the_slide_are_refused_and_partly_outside_warned(tmp_path: Path) -> None:
    slide = tmp_path / "case 7.svs"
    assert read(tmp_path, feature([SQUARE])).check_inside(slide, (50, 50)) == ()
    two = read(tmp_path, feature([SQUARE], "a"), feature([box_ring(60, 0, 70, 9)], "b"))
    assert two.check_inside(slide, (50, 40)) == (
        f"{slide}: 25.0% of region 'a' lies outside the slide",
        f"{slide}: 100.0% of region 'b' lies outside the slide",
    )
    with pytest.raises(SlideError, match=r"case 7\.svs: all 1 regions lie outside .* within 8 x 9 .*found 10 to 50"):
        read(tmp_path, feature([SQUARE])).check_inside(slide, (9, 8))


def test_digest_depends_only_on_areas(tmp_path: Path) -> None:
    def digest(*features: Any) -> str:
        return read(tmp_path, *features).digest()

    one, other = feature([SQUARE], "a", "Tumor"), feature([SQUARE, HOLE])
    assert digest(one) == digest({**feature([SQUARE], "renamed", "Stroma"), "id": "another"})
    others = [digest(one), digest(other), digest(one, other), digest(other, one)]
    others += [digest(one, feature([SQUARE, HOLE], kind="exclude")), digest(feature([box_ring(10, 10, 50, 50.01)]))]
    assert len(set(others)) == len(others)
