"""The object table against skimage's regionprops of the whole image, and its sums against exact arithmetic."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label, regionprops_table

from pipeline.errors import StoreError
from pipeline.execution.blocks import StageContext, serial
from pipeline.inputs.regions import Regions
from pipeline.objects import table_writer
from pipeline.objects.components import find_runs
from pipeline.objects.moments import BlockSums, Ellipse, Shapes
from pipeline.objects.table_writer import MeasureInputs, table_schema
from pipeline.stages.label import LabelInputs, label_slide
from pipeline.stages.measure import STAGE, measure_slide, run_sums
from pipeline.storage.layout import TABLE
from pipeline.storage.slide_store import SlideStore
from tests.support.make_store import StopAfter, StoppedError, backwards, put_array
from tests.unit.pipeline.stage_inputs import image_info, label_inputs

SEED = 90
SHAPE_YX = (1100, 1300)  # 3 x 3 blocks of 512, the last ones cut
BLOCKS = 9
MPP = 0.5
SECTION = MeasureInputs(image_info(MPP), ("nucleus",), None)
LABELS = label_inputs(image_info(MPP))
PLAN = "3" * 64
Table = dict[str, NDArray[Any]]


@cache
def slide(classes: int, dtype: str = "uint8") -> tuple[NDArray[Any], NDArray[Any]]:
    """Probability and image: thousands of blobs from a smooth random field, and one object as large as the slide."""
    rng = np.random.default_rng(SEED)
    field = ndimage.gaussian_filter(rng.standard_normal((classes, *SHAPE_YX)), (0, 3 * classes, 3 * classes))
    probability = np.clip((120 + 900 * classes * field) / classes, 0, 255 // classes).astype(np.uint8)
    probability[:, 600:606, :] = probability[:, :, 700:703] = 0
    probability[0, 603, 5:1290] = probability[0, 300:900, 701] = 255  # a cross, one pixel wide, over many blocks
    image = rng.integers(0, np.iinfo(dtype).max, (3, *SHAPE_YX), dtype=dtype, endpoint=True)
    return probability, image


def make_work(
    root: Path,
    probability: NDArray[Any],
    image: NDArray[Any],
    block_px: int = 512,
    section: LabelInputs = LABELS,
) -> StageContext:
    """A slide whose label stage is done."""
    store = SlideStore(root)
    put_array(store, "probability/0", probability, "0" * 64, block_px)
    put_array(store, "0", image, "1" * 64, block_px)
    shape = probability.shape[1], probability.shape[2]
    label_slide(StageContext(root, shape, block_px, "2" * 64), section, serial)
    return StageContext(root, shape, block_px, PLAN)


def table_of(work: StageContext) -> Table:
    table = pq.read_table(work.root / TABLE)
    return {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}


def reference(work: StageContext, image: NDArray[Any]) -> Table:
    labels = np.asarray(work.store.read("labels/objects/0").read(work.grid.area)).astype(np.int32)
    properties = (
        "label",
        "area",
        "centroid",
        "bbox",
        "axis_major_length",
        "axis_minor_length",
        "orientation",
        "eccentricity",
        "perimeter",
        "area_convex",
        "intensity_mean",
    )
    return regionprops_table(labels, np.moveaxis(image, 0, -1), properties=properties)  # type: ignore[no-any-return]


def assert_shapes_agree(table: Table, expected: Table) -> None:
    close = {"rtol": 1e-9, "atol": 1e-12}
    np.testing.assert_array_equal(table["id"], expected["label"])
    np.testing.assert_array_equal(table["area_px"], expected["area"])
    np.testing.assert_allclose(table["centroid_y_px"], expected["centroid-0"], **close)
    np.testing.assert_allclose(table["centroid_x_px"], expected["centroid-1"], **close)
    for number, name in enumerate(("y0", "x0", "y1", "x1")):
        np.testing.assert_array_equal(table[f"bbox_{name}_px"], expected[f"bbox-{number}"])
    major, minor = (table[f"{which}_axis_um"] / MPP for which in ("major", "minor"))
    np.testing.assert_allclose(major, expected["axis_major_length"], **close)
    # The smaller eigenvalue is a difference: its rounding is relative to the larger one, in skimage too.
    assert (np.abs(minor**2 - expected["axis_minor_length"] ** 2) <= 1e-9 * major**2).all()
    assert (np.abs(table["eccentricity"] ** 2 - expected["eccentricity"] ** 2) <= 1e-9).all()
    perimeter = table["perimeter_um"] / MPP
    np.testing.assert_allclose(perimeter, expected["perimeter"], rtol=1e-12)
    np.testing.assert_array_equal(table["solidity"], expected["area"] / expected["area_convex"])
    some = expected["perimeter"] > 0
    circularity = 4 * np.pi * expected["area"][some] / expected["perimeter"][some] ** 2
    np.testing.assert_allclose(table["circularity"][some], circularity, rtol=1e-12)
    assert np.isnan(table["circularity"][~some]).all()
    turned = np.abs(np.sin(table["orientation_rad"] - expected["orientation"]))
    assert (turned * table["eccentricity"] ** 2 <= 1e-9).all()  # a round object has no orientation


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_the_table_is_that_of_regionprops(tmp_path: Path, dtype: str) -> None:
    probability, image = slide(1, dtype)
    work = make_work(tmp_path, probability, image)
    report = measure_slide(work, SECTION, backwards)
    table, expected = table_of(work), reference(work, np.concatenate((image, probability)))
    assert len(table["id"]) > 1000
    assert_shapes_agree(table, expected)
    for number, name in enumerate(("red", "green", "blue")):
        np.testing.assert_allclose(table[f"mean_intensity_{name}"], expected[f"intensity_mean-{number}"], rtol=1e-12)
    np.testing.assert_allclose(table["mean_probability"], expected["intensity_mean-3"] / 255, rtol=1e-12)
    np.testing.assert_allclose(table["area_um2"], expected["area"] * MPP**2)
    inside = (expected["bbox-0"] > 0) & (expected["bbox-1"] > 0)
    inside &= (expected["bbox-2"] < SHAPE_YX[0]) & (expected["bbox-3"] < SHAPE_YX[1])
    np.testing.assert_array_equal(table["touches_border"], ~inside)
    assert report.facts["objects"] == {"nucleus": len(table["id"])}
    assert report.facts["area_um2"] == {"nucleus": expected["area"].sum() * MPP**2}


def test_classes_and_the_probability_of_the_own_class(tmp_path: Path) -> None:
    probability, image = slide(3)
    work = make_work(tmp_path, probability, image)
    section = replace(SECTION, class_names=("tumour", "stroma", "other"))
    report = measure_slide(work, section, serial)
    table, expected = table_of(work), reference(work, probability)
    assert_shapes_agree(table, expected)
    wide = probability.astype(np.int16)
    classes = np.argmax(np.concatenate((np.maximum(0, 255 - wide.sum(axis=0))[None], wide)), axis=0)
    labels = label(classes)
    group = np.zeros(labels.max() + 1, int)
    group[labels] = classes
    np.testing.assert_array_equal(table["class"], np.array(section.class_names)[group[1:] - 1])
    own = np.choose(group[1:] - 1, [expected[f"intensity_mean-{number}"] for number in range(3)])
    np.testing.assert_allclose(table["mean_probability"], own / 255, rtol=1e-12)
    assert report.facts["objects"] == {
        name: int((group[1:] == number).sum()) for number, name in enumerate(section.class_names, start=1)
    }


@pytest.mark.parametrize("block_px", [1024, 2048])
def test_the_rows_do_not_depend_on_the_block_size(tmp_path: Path, block_px: int) -> None:
    probability, image = slide(1)
    work = make_work(tmp_path, probability, image, block_px)
    measure_slide(work, SECTION, serial)
    assert_shapes_agree(table_of(work), reference(work, image))


def test_level_0_pixels_and_micrometres(tmp_path: Path) -> None:
    probability, image = np.zeros((1, 40, 50), np.uint8), np.zeros((3, 40, 50), np.uint8)
    probability[0, 10:20, 30:50] = 255
    work = make_work(tmp_path, probability, image)
    measure_slide(work, replace(SECTION, image=image_info(MPP, (2.0, 4.0))), serial)
    row = {name: column[0] for name, column in table_of(work).items()}
    assert (row["centroid_y_px"], row["centroid_x_px"]) == (29.5, 159.5)
    assert (row["centroid_y_um"], row["centroid_x_um"]) == (7.5, 20.0)
    assert [row[f"bbox_{edge}_px"] for edge in ("y0", "x0", "y1", "x1")] == [20, 120, 40, 200]
    assert row["touches_border"]
    assert row["mean_probability"] == 1


@pytest.mark.parametrize("stop", [0, 4, 8])
def test_stopped_stage_resumes_to_same_bytes(tmp_path: Path, stop: int) -> None:
    probability, image = slide(1)
    work = make_work(tmp_path, probability, image)
    with pytest.raises(StoppedError):
        measure_slide(work, SECTION, StopAfter(stop))
    assert not (tmp_path / TABLE).exists()
    assert work.store.stamped(STAGE) is None
    assert measure_slide(work, SECTION, serial).computed == BLOCKS - stop
    resumed = (tmp_path / TABLE).read_bytes()
    for path in (tmp_path / ".work" / STAGE).iterdir():
        path.unlink()
    assert measure_slide(work, SECTION, backwards).computed == BLOCKS
    assert (tmp_path / TABLE).read_bytes() == resumed


def test_no_objects_give_a_table_with_the_same_columns(tmp_path: Path) -> None:
    nothing = np.zeros((1, 600, 600), np.uint8)
    work = make_work(tmp_path, nothing, np.zeros((3, 600, 600), np.uint8))
    report = measure_slide(work, SECTION, serial)
    table = pq.read_table(tmp_path / TABLE)
    assert len(table) == 0
    assert table.schema.equals(table_schema(SECTION), check_metadata=False)
    assert table.schema.field("area_um2").metadata[b"description"] == b"square micrometres"
    assert report.facts["objects"] == {"nucleus": 0}
    assert report.facts["area_um2"] == {"nucleus": 0.0}


def test_row_groups_make_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probability, image = slide(1)
    work = make_work(tmp_path, probability, image)
    measure_slide(work, SECTION, serial)
    whole = pq.read_table(tmp_path / TABLE)
    monkeypatch.setattr(table_writer, "ROW_GROUP", 400)
    measure_slide(work, SECTION, serial)
    assert pq.ParquetFile(tmp_path / TABLE).num_row_groups == -(-len(whole) // 400) > 2
    assert pq.read_table(tmp_path / TABLE).equals(whole)


def test_an_image_with_other_channels_is_refused(tmp_path: Path) -> None:
    probability, image = slide(1)
    work = make_work(tmp_path, probability, image)
    with pytest.raises(StoreError, match="channels grey, found 3"):
        measure_slide(work, replace(SECTION, image=image_info(MPP, channels=("grey",))), serial)


masks = hnp.arrays(np.uint16, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 3))


@given(masks)
@settings(deadline=None)
def test_sums_over_runs_are_sums_over_pixels(labels: NDArray[np.uint16]) -> None:
    runs = find_runs(labels)
    pixels = np.random.default_rng(SEED).integers(0, 2**16, labels.shape, dtype=np.uint16)
    sums = np.zeros(4, np.int64)
    if len(runs.label):
        np.add.at(sums, runs.label, run_sums(pixels, runs).astype(np.int64))
    expected = np.bincount(labels.ravel(), weights=pixels.ravel(), minlength=4)
    np.testing.assert_array_equal(sums[1:], expected[1:])


@given(masks, st.integers(1, 5), st.sampled_from([0, 250_000]))
@settings(max_examples=100, deadline=None)
def test_merged_moments_are_the_exact_ones(labels: NDArray[np.uint16], block: int, far: int) -> None:
    shapes = Shapes.empty(3)
    for y0 in range(0, labels.shape[0], block):
        for x0 in range(0, labels.shape[1], block):
            runs = find_runs(labels[y0 : y0 + block, x0 : x0 + block])
            ids, place = np.unique(runs.label, return_inverse=True)
            shapes.add(ids.astype(np.int64) - 1, BlockSums.of_runs(runs, place, (y0 + far, x0 + far)))
    for number in (1, 2, 3):
        y, x = ([Fraction(int(value)) for value in axis] for axis in np.nonzero(labels == number))
        assert shapes.count[number - 1] == len(y)
        if not y:
            continue
        mean_y, mean_x = sum(y) / len(y), sum(x) / len(x)
        away_y, away_x = [value - mean_y for value in y], [value - mean_x for value in x]
        pairs = (away_y, away_y), (away_x, away_x), (away_y, away_x)
        exact = [float(sum(a * b for a, b in zip(*pair, strict=True))) for pair in pairs]
        np.testing.assert_allclose(shapes.moment[:, number - 1], exact, rtol=1e-12, atol=1e-10)
        centroid = [float(axis[0]) for axis in shapes.centroid(slice(number - 1, number))]
        assert centroid == pytest.approx([float(mean_y) + far, float(mean_x) + far], rel=1e-15)
        assert shapes.box[:, number - 1].tolist() == [
            min(y) + far,
            min(x) + far,
            max(y) + far + 1,
            max(x) + far + 1,
        ]


def test_an_object_as_large_as_the_largest_slide_does_not_overflow() -> None:
    """200,000 x 200,000 px in one piece: the sum of squares about the slide's origin would need 70 bits."""
    side, block = 200_000, 4_000
    shapes, place = Shapes.empty(1), np.zeros(1, np.int64)
    ramp = np.arange(block, dtype=np.int64)
    one = [block * block, block * ramp.sum(), block * ramp.sum(), block * (ramp**2).sum(), block * (ramp**2).sum()]
    sums = [np.array([value], np.int64) for value in (*one, ramp.sum() ** 2)]
    for y0 in range(0, side, block):
        for x0 in range(0, side, block):
            box = [np.array([edge], np.int64) for edge in (y0, x0, y0 + block, x0 + block)]
            shapes.add(place, BlockSums(sums[0], *box, *sums[1:]))
    expected = side * side * (side**2 - 1) / 12
    np.testing.assert_allclose(shapes.moment[:2, 0], expected, rtol=1e-12)
    assert abs(shapes.moment[2, 0]) < 1e-12 * expected
    assert shapes.centroid(slice(None))[0] == pytest.approx([(side - 1) / 2])
    assert Ellipse.of(shapes, slice(None)).major[0] == pytest.approx(4 * (expected / side**2) ** 0.5, rel=1e-12)


def test_regions_have_a_column_and_rows_of_their_own(tmp_path: Path) -> None:
    probability, image = slide(2)
    areas = [shapely.box(0, 0, 3000, 1500), shapely.box(2000, 1000, 5200, 2200), shapely.box(-50, -50, -10, -10)]
    regions = Regions(("left", "right", "beside"), ("", "", ""), tuple(shapely.to_wkb(one) for one in areas))
    scaled = image_info(MPP, (2.0, 4.0))
    labels = label_inputs(scaled, regions=regions)
    work = make_work(tmp_path, probability, image, section=labels)
    section = MeasureInputs(scaled, ("tumour", "stroma"), regions)
    report = measure_slide(work, section, serial)
    table, expected = table_of(work), reference(work, image)
    y, x = (expected["centroid-0"] + 0.5) * 2, (expected["centroid-1"] + 0.5) * 4
    held = [(y0 <= y) & (y <= y1) & (x0 <= x) & (x <= x1) for x0, y0, x1, y1 in (one.bounds for one in areas)]
    assert table["region"].tolist() == np.where(held[0], "left", np.where(held[1], "right", "")).tolist()
    assert held[0].sum() > 100
    rows = {(row["region"], row["class"]): row for row in report.facts["rows"]}
    assert list(rows) == [(place, name) for place in regions.names for name in section.class_names]
    for (place, name), row in rows.items():
        mine = (table["region"] == place) & (table["class"] == name)
        area, mean = table["area_um2"][mine], table["mean_probability"][mine]
        assert row["count"] == mine.sum()
        if place == "beside":
            assert row["area_um2"] == 0
            assert row["area_um2_quartiles"] is row["mean_probability"] is None
            continue
        assert row["area_um2"] == pytest.approx(area.sum(), rel=1e-12)
        assert row["mean_area_um2"] == pytest.approx(area.mean(), rel=1e-12)
        assert row["mean_probability"] == pytest.approx(mean.mean(), rel=1e-12)
        assert row["area_um2_quartiles"] == np.quantile(area, [0.25, 0.5, 0.75]).tolist()
        assert row["probability_quartiles"] == np.quantile(mean, [0.25, 0.5, 0.75]).tolist()
    assert sum(row["count"] for row in rows.values()) == len(table["id"])


def test_without_regions_there_is_a_row_for_each_class(tmp_path: Path) -> None:
    probability, image = slide(1)
    report = measure_slide(make_work(tmp_path, probability, image), SECTION, serial)
    (row,) = report.facts["rows"]
    assert (row["region"], row["class"], row["count"]) == (None, "nucleus", report.facts["objects"]["nucleus"])
    assert row["area_um2"] == report.facts["area_um2"]["nucleus"]
    assert "region" not in pq.read_schema(tmp_path / TABLE).names


def test_shapes_of_objects_that_were_split(tmp_path: Path) -> None:
    probability, image = slide(1)
    split = label_inputs(image_info(MPP), split="watershed", connectivity=4)
    work = make_work(tmp_path, probability, image, section=split)
    measure_slide(work, SECTION, serial)
    assert_shapes_agree(table_of(work), reference(work, image))
