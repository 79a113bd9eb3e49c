"""Objects split at the seeds of a stored map equal those of the whole image, for any blocks, any order and any stop."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.execution.blocks import MapBlocks, StageContext, serial
from pipeline.stages.label import LabelInputs, label_slide
from pipeline.storage.layout import OBJECTS
from pipeline.storage.slide_store import SlideStore, StoredArray
from tests.support import whole_objects
from tests.support.make_store import StopAfter, StoppedError, backwards, put_array, tree_bytes
from tests.unit.pipeline.stage_inputs import image_info, label_inputs

SEED = 11
SHAPE_YX = (1100, 1300)  # 3 x 3 blocks of 512, the last ones cut
MPP = 0.5
LARGEST_PX = 800
DEPTH = 20  # of 255
Array = NDArray[Any]


@cache
def stored(classes: int, levels: int = 256) -> tuple[Array, Array]:
    """Probability (k, y, x) and map (y, x): blobs that touch, and objects over corners and longer than a block."""
    rng = np.random.default_rng(SEED)
    field = ndimage.gaussian_filter(rng.standard_normal((classes, *SHAPE_YX)), (0, 5, 5))
    probability = np.clip((122 + 1300 * field) / classes, 0, 255 // classes).astype(np.uint8)
    tops = ndimage.gaussian_filter(rng.standard_normal(SHAPE_YX), 4)
    map_YX = np.clip(128 + 700 * tops, 0, 255)
    y, x = np.mgrid[: SHAPE_YX[0], : SHAPE_YX[1]]
    disc = np.hypot(y - 512, x - 512)
    probability[:, disc < 90] = 0
    probability[0, disc < 80] = 255
    ring = np.hypot(y - 500, x - 560)  # longer than a block, around the disc, and within the limit
    probability[:, (ring > 325) & (ring < 375)] = 0
    probability[0, (ring > 335) & (ring < 365)] = 255
    probability[:, 1060:1070] = 0
    probability[0, 1062:1066, 5:1290] = 255  # too long to be split
    probability[1:, probability[0] == 255] = 0
    step = 256 // levels
    map_YX = (np.asarray(map_YX, np.uint8) // step * step).astype(np.uint8)
    map_YX[1000:, 600:] = 77  # a plateau under many objects
    for one in (probability, map_YX):
        one.setflags(write=False)
    return probability, map_YX


def class_map(probability: Array) -> Array:
    wide = probability.astype(np.int16)
    if len(probability) == 1:
        return (wide[0] >= 128).astype(np.uint8)
    background = np.maximum(0, 255 - wide.sum(axis=0))
    return np.argmax(np.concatenate((background[None], wide)), axis=0).astype(np.uint8)


def section(connectivity: Any = 8, depth: float = DEPTH / 255, **keys: Any) -> LabelInputs:
    limit = {"split_max_um": LARGEST_PX * MPP, **keys}
    return label_inputs(image_info(MPP), connectivity=connectivity, method="seeds", seed_depth=depth, **limit)


def make_work(
    root: Path, probability: Array, map_YX: Array, block_px: int = 512, name: str = "distance"
) -> StageContext:
    store = SlideStore(root)
    put_array(store, "probability/0", probability, "0" * 64, block_px)
    put_array(store, f"maps/{name}/0", map_YX, "0" * 64, block_px)
    return StageContext(root, (map_YX.shape[0], map_YX.shape[1]), block_px, "1" * 64)


def labels_of(work: StageContext) -> Array:
    return np.asarray(work.store.read(OBJECTS).read(work.grid.area))


@cache
def expected(classes: int, connectivity: int, levels: int) -> Array:
    probability, map_YX = stored(classes, levels)
    labels = whole_objects.numbered(class_map(probability), connectivity)
    return whole_objects.split(labels, connectivity, DEPTH, LARGEST_PX, map_YX)


@pytest.mark.parametrize(
    ("block_px", "classes", "connectivity", "levels", "order"),
    [
        (512, 1, 8, 256, backwards),
        (512, 3, 4, 8, serial),
        (1024, 1, 8, 256, serial),
        (2048, 1, 8, 256, serial),
        pytest.param(512, 1, 4, 4, backwards, marks=pytest.mark.long),
        pytest.param(1024, 3, 8, 8, backwards, marks=pytest.mark.long),
    ],
)
def test_objects_are_those_of_the_whole_image(
    tmp_path: Path, block_px: int, classes: int, connectivity: int, levels: int, order: MapBlocks
) -> None:
    work = make_work(tmp_path, *stored(classes, levels), block_px)
    report = label_slide(work, section(connectivity), order)
    reference = expected(classes, connectivity, levels)
    np.testing.assert_array_equal(labels_of(work), reference)
    before = whole_objects.numbered(class_map(stored(classes, levels)[0]), connectivity)
    facts = report.facts["split"]
    assert report.facts["objects"] == before.max() - facts["objects"] + facts["parts"] == reference.max()
    assert facts["objects"] > 20
    assert facts["too_large"] >= 1
    assert (facts["map"], facts["depth_byte"], facts["too_large_px"]) == ("distance", DEPTH, LARGEST_PX)


def test_the_image_holds_what_the_test_is_about() -> None:
    """Split objects over the four-block corner and longer than a block, plateaus, and one object too long."""
    labels = expected(1, 8, 256)
    assert len(np.unique(labels[440:584, 440:584])) > 5
    disc = labels[512 - 40 : 512 + 40, 512 - 40 : 512 + 40]
    over = [
        one for one in np.unique(disc) if one and all((disc == one)[rows].any() for rows in (np.s_[:40], np.s_[40:]))
    ]
    assert over, "a part lies on both sides of the line between blocks"
    ring = labels[500, 560 + 350], labels[500, 560 - 350], labels[500 - 350, 560], labels[500 + 350, 560]
    assert len(set(ring)) == 4, "the ring is split"
    assert len(np.unique(labels[1062:1066, 5:1290])) == 1, "the bar is not"


@pytest.mark.parametrize("seed", range(6))
def test_random_maps_and_masks(tmp_path: Path, seed: int) -> None:
    """Noise of few levels: every object has ties, and most touch a line between blocks or a corner."""
    rng = np.random.default_rng(seed)
    levels, connectivity = int(rng.choice([2, 3, 6])), int(rng.choice([4, 8]))
    shape = (int(rng.integers(513, 560)), int(rng.integers(1025, 1060)))
    mask = ndimage.gaussian_filter(rng.standard_normal(shape), 1.2) > -0.08
    away = (np.abs(np.arange(shape[0]) - 512) > 60)[:, None] & (np.abs(np.arange(shape[1]) % 512 - 256) < 200)[None]
    mask &= ~away  # only along the lines
    values = rng.integers(0, levels, [-(-side // 3) for side in shape])
    map_YX = np.kron(values, np.ones((3, 3)))[: shape[0], : shape[1]] * (255 // (levels - 1))
    probability, map_YX = np.where(mask, 255, 0).astype(np.uint8)[None], map_YX.astype(np.uint8)
    work = make_work(tmp_path, probability, map_YX)
    report = label_slide(work, section(connectivity), backwards if seed % 2 else serial)
    labels = whole_objects.numbered(mask.astype(np.uint8), connectivity)
    np.testing.assert_array_equal(labels_of(work), whole_objects.split(labels, connectivity, DEPTH, LARGEST_PX, map_YX))
    assert report.facts["split"]["parts"] > 20


def test_holes_discs_and_area_limits_act_in_their_order(tmp_path: Path) -> None:
    probability, map_YX = stored(1)
    chosen = section(
        discs_um=((2 * MPP, 1 * MPP),), fill_holes_um2=60 * MPP**2, min_area_um2=40 * MPP**2, max_area_um2=900 * MPP**2
    )
    work = make_work(tmp_path, probability, map_YX)
    report = label_slide(work, chosen, backwards)
    classes = whole_objects.filled(whole_objects.smoothed(class_map(probability), [(2, 1)]), 8, 60)
    parts = whole_objects.split(whole_objects.numbered(classes, 8), 8, DEPTH, LARGEST_PX, map_YX)
    np.testing.assert_array_equal(labels_of(work), whole_objects.kept(parts, lambda one: 40 <= one.area <= 900))
    assert report.facts["objects_removed_by_area"] > 20


def test_the_map_that_is_named_is_read(tmp_path: Path) -> None:
    probability, map_YX = stored(1)
    part = np.s_[:520, :600]
    work = make_work(tmp_path, np.ascontiguousarray(probability[:, *part]), map_YX[part], name="centre")
    put_array(work.store, "maps/distance/0", np.zeros_like(map_YX[part]), "0" * 64)
    label_slide(work, section(source="centre"), serial)
    labels = whole_objects.numbered(class_map(probability[:, *part]), 8)
    np.testing.assert_array_equal(
        labels_of(work), whole_objects.split(labels, 8, DEPTH, LARGEST_PX, np.ascontiguousarray(map_YX[part]))
    )


def test_maps_are_read_one_block_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[tuple[int, ...]] = []
    take = StoredArray.__getitem__

    def noted(array: StoredArray, key: Any) -> Array:
        pixels = take(array, key)
        if "maps" in array.location.parts:
            reads.append(pixels.shape)
        return pixels

    monkeypatch.setattr(StoredArray, "__getitem__", noted)
    label_slide(make_work(tmp_path, *stored(1)), section(), serial)
    assert len(reads) >= 9
    assert max(np.prod(shape) for shape in reads) <= 512 * 512


@pytest.mark.parametrize("stop", [13, *(pytest.param(one, marks=pytest.mark.long) for one in (4, 10, 20))])
def test_stopped_stage_resumes_where_it_was(tmp_path: Path, stop: int) -> None:
    label_slide(make_work(tmp_path / "undisturbed", *stored(1)), section(), serial)
    work = make_work(tmp_path / "stopped", *stored(1))
    with pytest.raises(StoppedError):
        label_slide(work, section(), StopAfter(stop))
    label_slide(work, section(), backwards)
    assert tree_bytes(tmp_path / "stopped") == tree_bytes(tmp_path / "undisturbed")
