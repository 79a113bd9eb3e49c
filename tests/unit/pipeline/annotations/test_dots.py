"""Dots instead of outlines: positions in every part and at every resolution, classes, and refusals by line."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from rich.console import Console

from flows.cli.dataset_summary import show_summary
from pipeline.annotations.dataset import Dataset, open_dataset
from pipeline.annotations.dataset_checks import check_annotations, members
from pipeline.annotations.lazy_arrays import Windows
from pipeline.errors import ConfigError
from pipeline.inputs.regions import Regions
from tests.unit.flows.annotating import (
    COLOURS,
    SHAPE,
    draw,
    folders,
    read_all,
    rectangle,
    save_image,
    save_mask,
    save_table,
)
from unet_core.data.mask_encoding import DataSettings

TWO = DataSettings(classes=tuple(COLOURS))


def area(rings: Any, kind: str = "") -> dict[str, Any]:
    return feature({"type": "Polygon", "coordinates": rings}, kind)


def feature(geometry: dict[str, Any], kind: str = "") -> dict[str, Any]:
    properties = {"classification": {"name": kind}} if kind else {}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def points(*xy: tuple[float, float], kind: str = "") -> dict[str, Any]:
    return feature({"type": "MultiPoint", "coordinates": [list(one) for one in xy]}, kind)


def save_features(path: Path, *features: dict[str, Any]) -> None:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}))


def one_image(root: Path) -> tuple[Path, Path]:
    images, masks = folders(root)
    save_image(images, "a", draw(1))
    return images, masks


def dotted(root: Path, *lines: str, settings: DataSettings | None = None) -> Dataset:
    images, masks = one_image(root)
    save_table(masks / "a.csv", *lines)
    return open_dataset(images, masks, None, settings)


def points_of(found: Dataset) -> list[NDArray[Any]]:
    assert all(case.points_N3 is not None for case in found.cases)
    return [np.asarray(case.points_N3) for case in found.cases]


# ---- positions -------------------------------------------------------------------------------------------------------


def test_a_table_gives_dots_in_array_indices_and_no_labels(tmp_path: Path) -> None:
    """The first and the last pixel, a fraction, and the lower right corner itself, in another order of columns."""
    found = dotted(tmp_path, "id,y,note,x", "1,0,left,0", "2,95,,119", "3,40.25,,30.5", "4,96,,120")
    (case,) = found.cases
    expected = [[0, 0, 1], [95, 119, 1], [40.25, 30.5, 1], [95, 119, 1]]
    assert np.array_equal(points_of(found)[0], np.array(expected, np.float32))
    assert points_of(found)[0].dtype == np.float32
    assert not read_all(case.labels_YX).any()
    assert case.labels_YX.shape == SHAPE
    assert isinstance(case.labels_YX, Windows), "labels without objects take no memory"
    assert isinstance(case.image_CYX, np.ndarray)


def test_a_table_without_lines_is_an_image_without_objects(tmp_path: Path) -> None:
    found = dotted(tmp_path, "x;y;class")
    assert points_of(found)[0].shape == (0, 3)
    with pytest.raises(ConfigError, match="class 'object' has not one pixel or dot"):
        check_annotations(found)


def test_a_repeated_dot_counts_once(tmp_path: Path) -> None:
    """A double click leaves two dots; those of two classes at one place are both kept."""
    found = dotted(tmp_path, "x,y,class", "1,2,tumour", "5,5,tumour", "1,2,tumour", "1,2,stroma", settings=TWO)
    assert points_of(found)[0].tolist() == [[2, 1, 1], [5, 5, 1], [2, 1, 2]]
    assert "1 dots repeat another one and are left out" in found.remarks
    assert not [remark for remark in dotted(tmp_path / "b", "x,y", "1,2", "1,3").remarks if "repeat" in remark]


@pytest.mark.parametrize("factor", [3, 4], ids=["0.75 um", "1 um"])
def test_dots_of_a_resampled_image_stay_on_their_objects(tmp_path: Path, factor: int) -> None:
    """Blocks of whole output pixels: a dot in the middle of a block of the source is that block's output pixel."""
    images, masks = folders(tmp_path)
    side, rng = 20 * factor + 1, np.random.default_rng(5)  # one pixel more than whole output pixels
    pixels = rng.integers(0, 255, (side, side, 3)).astype(np.uint8)
    tifffile.imwrite(
        images / "a.tif", pixels, photometric="rgb", resolution=(40000, 40000), resolutionunit="CENTIMETER"
    )
    yx = rng.permutation(np.array(np.unravel_index(np.arange(400), (20, 20))).T)[:50]
    middle = yx * factor + (factor - 1) / 2
    save_table(masks / "a.csv", "x,y", *[f"{x},{y}" for y, x in middle], f"{side},{side}")
    found = open_dataset(images, masks, None, None, 0.25 * factor)
    (dots,) = points_of(found)
    assert found.cases[0].labels_YX.shape == (20, 20)
    assert np.allclose(dots[:50, :2], yx, atol=1e-4)
    assert (dots[50, :2] == 19).all(), "the corner belongs to the last pixel"


def test_dots_of_annotated_parts_are_relative_to_them(tmp_path: Path) -> None:
    """Of each Region*, the dots inside: QuPath's (0.5, 0.5) is the centre of the first pixel, its edges half open."""
    images, masks = one_image(tmp_path)
    save_features(
        masks / "a.geojson",
        area(rectangle(10, 20, 40, 60), "Region*"),
        area(rectangle(50, 20, 90, 60), "Region*"),
        points((10.0, 20.0), (39.99, 59.5), (40.0, 30.0), (5.5, 5.5), kind="Nucleus"),
        feature({"type": "Point", "coordinates": [50.5, 21.5]}),
    )
    first, second = points_of(open_dataset(images, masks))
    assert np.allclose(first, [[0, 0, 1], [39, 29, 1]], atol=0.02)
    assert np.allclose(second, [[1, 0, 1]])


def test_a_file_may_hold_outlines_and_dots(tmp_path: Path) -> None:
    """A dot on an outlined object or in an excluded area is none; the others stay beside the outlines."""
    images, masks = one_image(tmp_path)
    save_features(
        masks / "a.geojson",
        area(rectangle(10, 10, 20, 20), "Nucleus"),
        points((15, 15), (30.5, 31.5), (70, 70), kind="Nucleus"),
        area(rectangle(60, 60, 80, 80), "Ignore*"),
    )
    found = open_dataset(images, masks)
    assert found.class_names == ("Nucleus",)
    assert np.array_equal(points_of(found)[0], [[31, 30, 1]])
    labels = read_all(found.cases[0].labels_YX)
    assert labels.sum() == 100
    assert labels[10:20, 10:20].all()


def test_outlines_and_dots_may_lie_in_one_folder(tmp_path: Path) -> None:
    """A table that belongs to no image is no mask, and images with masks have no dots."""
    images, masks = one_image(tmp_path)
    save_image(images, "b", draw(2))
    save_mask(masks, "b", "labels png", draw(2))
    save_table(masks / "a.csv", "x,y", "3,4")
    save_table(masks / "measured.csv", "area", "3")
    found = open_dataset(images, masks)
    dots, outlined = found.cases
    assert np.array_equal(np.asarray(dots.points_N3), [[4, 3, 1]])
    assert outlined.points_N3 is None
    assert np.array_equal(read_all(outlined.labels_YX), draw(2).one_class)
    summary = check_annotations(found)
    assert [(case.dots, case.counted.objects) for case in summary.cases] == [((1,), 0), ((), draw(2).one_class.max())]
    console = Console(file=io.StringIO(), width=140)
    show_summary(summary, console)
    rows = [re.split(r"\s*[│┃]\s*", line.strip(" │┃")) for line in console.file.getvalue().splitlines()]
    header = next(row for row in rows if row[0] == "image")
    assert [row[header.index("dots")] for row in rows if row[0] in ("a", "b")] == ["1", "0"]


# ---- classes ---------------------------------------------------------------------------------------------------------


def test_all_dots_are_of_one_class_unless_classes_are_named(tmp_path: Path) -> None:
    lines = ("x,y,class", "1,2,stroma", "3,4,tumour", "5,6,")
    found = dotted(tmp_path / "one", *lines)
    assert points_of(found)[0][:, 2].tolist() == [1, 1, 1]
    assert any("dots of class stroma, tumour all count as 'object'" in one for one in found.remarks)
    found = dotted(tmp_path / "two", *lines[:3], settings=TWO)
    assert points_of(found)[0].tolist() == [[2, 1, 2], [4, 3, 1]]
    summary = check_annotations(found)
    assert summary.dots == (1, 1)
    assert members(found, summary)[0].classes == {"tumour", "stroma"}
    with pytest.raises(ConfigError, match=r"a\.csv, line 4: a dot without a class, where data\.classes names tumour"):
        dotted(tmp_path / "two", *lines, settings=TWO)
    with pytest.raises(ConfigError, match=r"a\.csv, line 2: class 'necrosis', where data\.classes"):
        dotted(tmp_path / "two", "x,y,class", "1,2,necrosis", settings=TWO)


def test_a_class_of_dots_alone_is_learnt_and_a_missing_one_is_refused(tmp_path: Path) -> None:
    found = dotted(tmp_path, "x,y,class", "1,2,stroma", settings=TWO)
    with pytest.raises(ConfigError, match="class 'tumour' has not one pixel or dot in 1 masks"):
        check_annotations(found)


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("46,7,2", "1,2,3"), r"a\.csv, line 1: expected column names, one of them 'x'.*found '46,7,2'"),
        (("x,class",), r"a\.csv, line 1: expected the columns x and y, found x, class"),
        (("x,class", "1,a"), r"a\.csv, line 1: expected the columns x and y, found x, class"),
        (("x,y", "1,2", "3,"), r"a\.csv, line 3: expected a number as y.*found ''"),
        (("x,y", "1_0,2"), r"a\.csv, line 2: expected a number as x.*found '1_0'"),
        (("x,y", "nan,2"), r"a\.csv, line 2: expected a number as x"),
        (
            ("x,y", "1,2", "-0.1,2"),
            r"a\.csv, line 3: expected a dot in the image, x 0 to 120 and y 0 to 96, found x -0\.1",
        ),
        (("x,y", "1,96.5"), r"a\.csv, line 2: expected a dot in the image"),
        (("x,y", "96,120"), r"a\.csv, line 2: expected a dot in the image"),
        (("X,y", "1,1"), r"a\.csv, line 1"),
    ],
)
def test_invalid_tables_are_refused_by_line(tmp_path: Path, lines: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dotted(tmp_path, *lines)


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (points((1, 1), (121, 5)), "feature 1: expected a dot in the image"),
        (points((1, 1), kind="Ignore*"), r"feature 1 \(Ignore\*\): expected an area of class Ignore\*, found a point"),
        (points((1, 1), kind="Region*"), "expected an area of class"),
        (feature({"type": "Point", "coordinates": ["a", 1]}), "feature 1: expected positions"),
        (feature({"type": "LineString", "coordinates": [[1, 1], [2, 2]]}), "feature 1: expected a Polygon"),
    ],
)
def test_invalid_points_are_refused_by_feature(tmp_path: Path, one: dict[str, Any], message: str) -> None:
    images, masks = one_image(tmp_path)
    save_features(masks / "a.geojson", one)
    with pytest.raises(ConfigError, match=message):
        open_dataset(images, masks)


def test_regions_of_a_run_are_still_areas(tmp_path: Path) -> None:
    save_features(tmp_path / "a.geojson", area(rectangle(0, 0, 9, 9)), points((1, 1)))
    with pytest.raises(Exception, match="feature 2: expected a Polygon"):
        Regions.read(tmp_path / "a.geojson")


def test_two_masks_of_an_image_are_refused(tmp_path: Path) -> None:
    images, masks = one_image(tmp_path)
    save_mask(masks, "a", "0/1", draw(1))
    save_table(masks / "a.csv", "x,y")
    with pytest.raises(ConfigError, match=r"two masks of one image: .*a\.csv and .*a\.png"):
        open_dataset(images, masks)


# ---- resolution and weight -------------------------------------------------------------------------------------------


def test_the_table_of_cases_states_resolution_and_weight(tmp_path: Path) -> None:
    """An override of 0.25 um halves an image that states 0.5 um; another, without one, takes its own."""
    images, masks = folders(tmp_path)
    for name in ("a", "b"):
        save_image(images, name, draw(1), "tif")  # states 0.5 um
    save_table(masks / "a.csv", "x,y", "40.5,20.5")
    save_mask(masks, "b", "labels png", draw(1))
    table = save_table(tmp_path / "t.csv", "image,mpp,weight", "a,0.25,2.5", "b,,")
    found = open_dataset(images, masks, table, None, 0.5)
    first, second = found.cases
    assert (first.labels_YX.shape, second.labels_YX.shape) == ((48, 60), SHAPE)
    assert np.allclose(np.asarray(first.points_N3), [[10, 20, 1]])
    assert [case.weight for case in found.cases] == [2.5, 1.0]
    stated = open_dataset(images, masks, table).mpp
    assert stated == {"a": 0.25, "b": 0.5}


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        ("mpp", "0,25", "expected um per pixel from 0.05 to 10"),
        ("mpp", "40", "expected um per pixel"),
        ("mpp", "native", "expected um per pixel"),
        ("weight", "0", "expected a number above 0 as weight, found '0'"),
        ("weight", "-1", "expected a number above 0"),
        ("weight", "1e999", "expected a number above 0"),
        ("weight", "often", "expected a number above 0"),
    ],
)
def test_invalid_cells_are_refused_by_line(tmp_path: Path, column: str, cell: str, message: str) -> None:
    images, masks = one_image(tmp_path)
    save_table(masks / "a.csv", "x,y", "1,1")
    table = save_table(tmp_path / "t.csv", f"image;{column}", f"a;{cell}")
    with pytest.raises(ConfigError, match=rf"t\.csv, line 2: {message}"):
        open_dataset(images, masks, table)
