"""Morphology, holes, splitting, regions and area limits through the stage, against the whole image in memory."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.execution.blocks import MapBlocks, StageContext, serial
from pipeline.execution.local_cluster import local_cluster
from pipeline.inputs.regions import Regions
from pipeline.stages.label import LabelInputs, label_slide
from pipeline.storage.layout import OBJECTS
from pipeline.storage.slide_store import SlideStore
from tests.support import whole_objects
from tests.support.make_store import StopAfter, StoppedError, backwards, put_array, tree_bytes
from tests.unit.pipeline.killing import KILLED, killed_at
from tests.unit.pipeline.stage_inputs import image_info, label_inputs

SEED = 5
SHAPE_YX = (1100, 1300)  # 3 x 3 blocks of 512, the last ones cut
BLOCKS = 9
MPP, SCALE = 0.5, (2.0, 4.0)
LARGEST_PX, DEPTH = 300, 384
Array = NDArray[Any]


@cache
def probability(classes: int) -> Array:
    """Blobs from a smooth random field that touch one another; one with many maxima over the four-block corner."""
    rng = np.random.default_rng(SEED)
    field = ndimage.gaussian_filter(rng.standard_normal((classes, *SHAPE_YX)), (0, 5, 5))
    stored = np.clip((122 + 1300 * field) / classes, 0, 255 // classes).astype(np.uint8)
    y, x = np.mgrid[: SHAPE_YX[0], : SHAPE_YX[1]]
    stored[:, np.hypot(y - 512, x - 512) < 80] = 0
    for dy, dx in ((0, 0), (38, 4), (-35, 9), (3, 41), (-2, -39)):
        stored[0, np.hypot(y - 512 - dy, x - 512 - dx) < 22] = 255
    stored[1:, (stored[0] == 255)] = 0
    stored[:, 700:704] = 0
    stored[0, 702, 5:1290] = 255  # too long to be split
    stored.setflags(write=False)
    return stored


def class_map(stored: Array) -> Array:
    wide = stored.astype(np.int16)
    if len(stored) == 1:
        return (wide[0] >= 128).astype(np.uint8)
    background = np.maximum(0, 255 - wide.sum(axis=0))
    return np.argmax(np.concatenate((background[None], wide)), axis=0).astype(np.uint8)


POLYGONS = [shapely.Point(1800, 900).buffer(700), shapely.box(2400, 100, 5000, 1900)]
REGIONS = Regions(("a", "b"), ("", ""), tuple(shapely.to_wkb(one) for one in POLYGONS))


def inside(one: Any) -> bool:
    """Whether a region of the whole label image has its centroid in a region."""
    y, x = ((value + 0.5) * scale for value, scale in zip(one.centroid, SCALE, strict=True))
    return any(area.intersects(shapely.Point(x, y)) for area in POLYGONS)


def section(connectivity: Any = 8, **keys: Any) -> LabelInputs:
    return label_inputs(
        image_info(MPP, SCALE),
        connectivity=connectivity,
        split="watershed",
        split_depth_um=DEPTH / 256 * MPP,
        split_max_um=LARGEST_PX * MPP,
        **keys,
    )


def make_work(root: Path, stored: Array, block_px: int = 512) -> StageContext:
    put_array(SlideStore(root), "probability/0", stored, "0" * 64, block_px)
    return StageContext(root, (stored.shape[1], stored.shape[2]), block_px, "1" * 64)


def labels_of(work: StageContext) -> Array:
    return np.asarray(work.store.read(OBJECTS).read(work.grid.area))


@pytest.fixture(scope="module")
def dask() -> Iterator[MapBlocks]:
    with local_cluster(2) as mapper:
        yield mapper


@cache
def expected(classes: int, connectivity: int) -> Array:
    """Objects of the whole image, split."""
    labels = whole_objects.numbered(class_map(probability(classes)), connectivity)
    return whole_objects.split(labels, connectivity, DEPTH, LARGEST_PX)


@pytest.mark.parametrize(
    ("block_px", "classes", "connectivity"),
    [
        *[(512, 1, 4), (512, 3, 8), (1024, 1, 8), (2048, 1, 8)],
        *[pytest.param(*one, marks=pytest.mark.long) for one in ((512, 1, 8), (512, 3, 4), (1024, 3, 4))],
    ],
)
def test_split_objects_are_those_of_the_whole_image(
    tmp_path: Path, classes: int, connectivity: int, block_px: int
) -> None:
    work = make_work(tmp_path, probability(classes), block_px)
    report = label_slide(work, section(connectivity), backwards)
    np.testing.assert_array_equal(labels_of(work), expected(classes, connectivity))
    before = whole_objects.numbered(class_map(probability(classes)), connectivity)
    facts = report.facts["split"]
    assert (
        report.facts["objects"]
        == before.max() - facts["objects"] + facts["parts"]
        == expected(classes, connectivity).max()
    )
    assert facts["objects"] > 20
    assert facts["too_large"] >= 1


def test_the_object_over_the_corner_is_split_there(tmp_path: Path) -> None:
    work = make_work(tmp_path, probability(1))
    label_slide(work, section(), serial)
    labels = labels_of(work)
    assert len(set(labels[[512, 550, 477, 515, 510], [512, 516, 521, 553, 473]].tolist())) == 5
    assert set(np.unique(labels[512 - 5 : 512 + 5, 512 - 5 : 512 + 5])) == {labels[512, 512]}


@pytest.mark.parametrize(("classes", "how"), [(1, "serial"), pytest.param(2, "dask", marks=pytest.mark.long)])
def test_all_settings_together_equal_whole_image(
    tmp_path: Path, classes: int, how: str, request: pytest.FixtureRequest
) -> None:
    radii = [(2, 1), (1, 2)][:classes]
    chosen = section(
        discs_um=tuple((opens * MPP, closes * MPP) for opens, closes in radii),
        fill_holes_um2=60 * MPP**2,
        min_area_um2=40 * MPP**2,
        max_area_um2=1500 * MPP**2,
        regions=REGIONS,
    )
    work = make_work(tmp_path, probability(classes))
    report = label_slide(work, chosen, backwards if how == "serial" else request.getfixturevalue(how))
    classes_YX = whole_objects.filled(whole_objects.smoothed(class_map(probability(classes)), radii), 8, 60)
    parts = whole_objects.split(whole_objects.numbered(classes_YX, 8), 8, DEPTH, LARGEST_PX)
    fitting = whole_objects.kept(parts, lambda one: 40 <= one.area <= 1500)
    np.testing.assert_array_equal(labels_of(work), whole_objects.kept(fitting, inside))
    facts = report.facts
    assert facts["objects_removed_by_area"] == parts.max() - fitting.max() > 20
    assert facts["objects_outside_regions"] == fitting.max() - facts["objects"] > 100
    assert facts["objects"] > 20


def test_regions_alone(tmp_path: Path) -> None:
    work = make_work(tmp_path, probability(1))
    label_slide(work, label_inputs(image_info(MPP, SCALE), regions=REGIONS), serial)
    labels = whole_objects.numbered(class_map(probability(1)), 8)
    np.testing.assert_array_equal(labels_of(work), whole_objects.kept(labels, inside))


@pytest.mark.parametrize("stop", [13, *(pytest.param(one, marks=pytest.mark.long) for one in (0, 4, 9, 18, 26))])
def test_stopped_stage_resumes_where_it_was(tmp_path: Path, stop: int) -> None:
    label_slide(make_work(tmp_path / "undisturbed", probability(1)), section(), serial)
    work = make_work(tmp_path / "stopped", probability(1))
    with pytest.raises(StoppedError):
        label_slide(work, section(), StopAfter(stop))
    counts = label_slide(work, section(), backwards).counts
    found = [counts.get(f"{name}_blocks", 0) for name in ("pieces", "split", "label")]
    assert found == [min(max(3 * BLOCKS - stop - later * BLOCKS, 0), BLOCKS) for later in (2, 1, 0)]
    assert tree_bytes(tmp_path / "stopped") == tree_bytes(tmp_path / "undisturbed")


def test_no_object_at_all(tmp_path: Path) -> None:
    work = make_work(tmp_path, np.zeros((1, 600, 600), np.uint8))
    report = label_slide(work, section(regions=REGIONS), serial)
    assert report.facts["objects"] == 0
    assert not labels_of(work).any()


@pytest.mark.long
def test_stage_killed_at_any_change_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows of blocks around the four-block corner; stopped at every ninth change of the file system."""
    stored = np.ascontiguousarray(probability(1)[:, :600, :600])
    label_slide(make_work(tmp_path / "undisturbed", stored), section(), serial)
    expected_bytes, step = tree_bytes(tmp_path / "undisturbed"), 4
    while True:
        work = make_work(tmp_path / str(step), stored)
        with killed_at(step, monkeypatch) as steps:
            label_slide(work, section(), serial)
        if steps[-1] != KILLED:
            break
        label_slide(work, section(), serial)
        found = tree_bytes(tmp_path / str(step))
        assert {name: found[name] for name in found if not name.endswith(".partial")} == expected_bytes, step
        step += 9
    assert step > 60
