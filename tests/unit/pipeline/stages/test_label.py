"""The label stage on disk: labels of scikit-image, for any blocks, any order and after any stop."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label

from pipeline.errors import DamagedError
from pipeline.execution.blocks import Counts, MapBlocks, StageContext, StageReport, serial
from pipeline.objects.relabel import Limits
from pipeline.stages.label import FILL, HOLES, LOOKUP, PIECES, label_block, label_slide
from pipeline.storage.layout import OBJECTS
from pipeline.storage.slide_store import Index, SlideStore
from tests.support.make_store import StopAfter, StoppedError, backwards, put_array, tree_bytes
from tests.unit.pipeline.stage_inputs import image_info, label_inputs

SEED = 4107
PLAN, UPSTREAM = "1" * 64, "0" * 64
SECTION = label_inputs()
WITH_HOLES = label_inputs(fill_holes_um2=100.0)
SHAPE_YX = (1100, 1300)  # 3 x 3 blocks of 512, the last ones cut
BLOCKS = 9
HOPS = {4: 1, 8: 2}
Bytes = NDArray[np.uint8]


def shuffled(function: Callable[[Index], Counts], indices: Iterable[Index]) -> Iterator[Counts]:
    """Map blocks in a seeded random order."""
    order = list(indices)
    random.Random(SEED).shuffle(order)
    return (function(index) for index in order)


def make_work(root: Path, probability: Bytes, block_px: int = 512, plan: str = PLAN) -> StageContext:
    """A slide whose network stage is done."""
    store = SlideStore(root)
    if not (store.zarr / "probability").exists():
        put_array(store, "probability/0", probability, UPSTREAM, block_px)
    return StageContext(root, (probability.shape[1], probability.shape[2]), block_px, plan)


def labels_of(work: StageContext) -> NDArray[np.uint32]:
    return np.asarray(work.store.read(OBJECTS).read(work.grid.area))


def noise(density: float, shape_yx: tuple[int, int] = SHAPE_YX) -> Bytes:
    """One class; a pixel is foreground at threshold 0.5 with the given probability."""
    rng = np.random.default_rng(SEED)
    return np.where(rng.random((1, *shape_yx)) < density, rng.integers(128, 256), 127).astype(np.uint8)


@cache
def nuclei() -> Bytes:
    """A smooth random field: thousands of blobs with holes, many across seams."""
    field = ndimage.gaussian_filter(np.random.default_rng(SEED).standard_normal((1, *SHAPE_YX)), (0, 3, 3))
    probability = np.clip(128 + 900 * field, 0, 255).astype(np.uint8)
    probability.setflags(write=False)
    return probability


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every file of an uninterrupted run with holes."""
    root = tmp_path_factory.mktemp("undisturbed")
    label_slide(make_work(root, nuclei()), WITH_HOLES, serial)
    return tree_bytes(root)


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("density", [0.407, 0.593])
def test_noise_is_labelled_as_skimage_does(tmp_path: Path, connectivity: Any, density: float) -> None:
    probability = noise(density)
    work = make_work(tmp_path, probability)
    report = label_slide(work, label_inputs(connectivity=connectivity), shuffled)
    expected = label(probability[0] >= 128, connectivity=HOPS[connectivity])
    np.testing.assert_array_equal(labels_of(work), expected)
    assert report.facts["objects"] == expected.max()
    assert report.computed == BLOCKS


@pytest.mark.parametrize("connectivity", [4, 8])
def test_class_maps_are_labelled_as_skimage_does(tmp_path: Path, connectivity: Any) -> None:
    probability = np.random.default_rng(SEED).integers(0, 100, (3, *SHAPE_YX), dtype=np.uint8)
    work = make_work(tmp_path, probability)
    report = label_slide(work, label_inputs(connectivity=connectivity), serial)
    wide = probability.astype(np.int16)
    classes = np.argmax(np.concatenate((np.maximum(0, 255 - wide.sum(axis=0))[None], wide)), axis=0)
    np.testing.assert_array_equal(labels_of(work), label(classes, connectivity=HOPS[connectivity]))
    assert report.facts["area_px_per_class"] == np.bincount(classes.ravel())[1:].tolist()


@pytest.mark.parametrize("order", [shuffled, backwards])
def test_the_files_do_not_depend_on_the_order_of_blocks(
    tmp_path: Path, undisturbed: dict[str, bytes], order: MapBlocks
) -> None:
    label_slide(make_work(tmp_path, nuclei()), WITH_HOLES, order)
    assert tree_bytes(tmp_path) == undisturbed


@pytest.mark.parametrize("block_px", [512, 1024, 2048])
def test_the_labels_do_not_depend_on_the_block_size(tmp_path: Path, block_px: int) -> None:
    probability = nuclei()
    work = make_work(tmp_path, probability, block_px)
    label_slide(work, SECTION, serial)
    np.testing.assert_array_equal(labels_of(work), label(probability[0] >= 128))


def test_seams_are_crossed_and_counted(tmp_path: Path) -> None:
    probability = noise(0.3)
    probability[0, 500:524, 500:524] = 255
    report = label_slide(make_work(tmp_path, probability), SECTION, serial)
    across = report.facts["objects_across_seams"]
    assert min(across["vertical"], across["horizontal"]) > 50
    assert across["corner"] >= 1


def test_areas_limit_merged_objects(tmp_path: Path) -> None:
    probability = nuclei()
    work = make_work(tmp_path, probability)
    report = label_slide(work, label_inputs(min_area_um2=10.0, max_area_um2=60.0), serial)
    labels = label(probability[0] >= 128)
    area = np.bincount(labels.ravel())
    kept = (area >= 40) & (area <= 240)
    kept[0] = False
    np.testing.assert_array_equal(labels_of(work), (np.cumsum(kept) * kept)[labels])
    assert report.facts["objects"] == kept.sum() > 100
    assert report.facts["objects_removed_by_area"] == labels.max() - kept.sum() > 100


@pytest.mark.parametrize("connectivity", [4, 8])
def test_holes_are_filled_before_labelling(tmp_path: Path, connectivity: Any) -> None:
    probability = nuclei()
    work = make_work(tmp_path, probability)
    label_slide(work, label_inputs(connectivity=connectivity, fill_holes_um2=100.0), serial)
    mask = probability[0] >= 128
    background = label(~mask, connectivity=HOPS[12 - connectivity])
    closed = np.bincount(background.ravel()) <= 400
    closed[[0, *np.unique(np.concatenate((background[[0, -1]].ravel(), background[:, [0, -1]].ravel())))]] = False
    assert closed.sum() > 20
    expected = label(mask | closed[background], connectivity=HOPS[connectivity])
    np.testing.assert_array_equal(labels_of(work), expected)


def test_holes_between_classes_stay_across_a_seam(tmp_path: Path) -> None:
    probability = np.zeros((2, 600, 1100), np.uint8)
    probability[0, 100:200, 400:512] = probability[1, 100:200, 512:600] = 255
    probability[0, 300:400, 400:600] = 255
    probability[:, 150, 511] = probability[:, 350, 505:520] = 0
    work = make_work(tmp_path, probability)
    label_slide(work, label_inputs(fill_holes_um2=50.0), serial)
    labels = labels_of(work)
    assert labels[150, 511] == 0
    assert np.unique(labels[350, 400:600]).tolist() == [3]


@pytest.mark.parametrize("shape_yx", [(1, 1), (1, 700), (512, 512), (513, 511)])
def test_odd_sizes(tmp_path: Path, shape_yx: tuple[int, int]) -> None:
    probability = noise(0.4, shape_yx)
    work = make_work(tmp_path, probability)
    label_slide(work, SECTION, serial)
    np.testing.assert_array_equal(labels_of(work), label(probability[0] >= 128))


def test_an_empty_slide_is_complete(tmp_path: Path) -> None:
    work = make_work(tmp_path, np.zeros((2, 600, 600), np.uint8))
    report = label_slide(work, SECTION, serial)
    assert report.facts["objects"] == 0
    assert report.facts["objects_per_class"] == [0, 0]
    assert work.store.stamped("label") == PLAN
    assert not labels_of(work).any()


def counted(report: StageReport) -> list[int]:
    return [report.counts.get(f"{name}_blocks", 0) for name in ("holes", "pieces", "label")]


@pytest.mark.parametrize("stop", [0, 1, 8, 9, 13, 18, 26, 27])
def test_stopped_stage_resumes_where_it_was(tmp_path: Path, undisturbed: dict[str, bytes], stop: int) -> None:
    work = make_work(tmp_path, nuclei())
    with pytest.raises(StoppedError) if stop < 3 * BLOCKS else nullcontext():
        label_slide(work, WITH_HOLES, StopAfter(stop))
    assert work.store.stamped("label") == (None if stop < 3 * BLOCKS else PLAN)
    report = label_slide(work, WITH_HOLES, serial)
    expected = [min(max(3 * BLOCKS - stop - later * BLOCKS, 0), BLOCKS) for later in (2, 1, 0)]
    assert counted(report) == expected
    assert report.computed == expected[-1]
    assert tree_bytes(tmp_path) == undisturbed


def test_stage_stopped_between_tables_resumes(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    work = make_work(tmp_path, nuclei())
    label_slide(work, WITH_HOLES, serial)
    for stage in (FILL, LOOKUP):
        work.store.result_path(stage, PLAN, (1, 1)).unlink()
    work.store.unstamp(["label"])
    assert counted(label_slide(work, WITH_HOLES, serial)) == [0, 0, 0]
    assert tree_bytes(tmp_path) == undisturbed


def test_missing_small_files_are_redone_alone(tmp_path: Path) -> None:
    work = make_work(tmp_path, nuclei())
    facts = label_slide(work, SECTION, serial).facts
    before = tree_bytes(tmp_path / "slide.ome.zarr")
    for path in (tmp_path / ".work" / "label").rglob("*.npz"):
        path.unlink()
    report = label_slide(work, SECTION, serial)
    assert counted(report) == [0, BLOCKS, 0]
    assert report.facts == facts
    assert tree_bytes(tmp_path / "slide.ome.zarr") == before


def test_another_plan_restarts_and_removes_results_of_old_plan(tmp_path: Path) -> None:
    label_slide(make_work(tmp_path, nuclei()), WITH_HOLES, serial)
    work = make_work(tmp_path, nuclei(), plan="2" * 64)
    changed = label_inputs(threshold=0.6)
    assert counted(label_slide(work, changed, serial)) == [0, BLOCKS, BLOCKS]
    np.testing.assert_array_equal(labels_of(work), label(nuclei()[0] >= 153))
    assert all(".22222222." in path.name for path in (tmp_path / ".work" / "label").rglob("*.npz"))
    assert [len(work.store.results(stage, work.plan_hash)) for stage in (HOLES, PIECES)] == [0, BLOCKS]


@pytest.mark.parametrize("keep", [0, 100])
def test_a_damaged_small_file_is_named(tmp_path: Path, keep: int) -> None:
    work = make_work(tmp_path, nuclei())
    label_slide(work, SECTION, serial)
    path = work.store.result_path(PIECES, PLAN, (1, 2))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DamagedError, match=r"1\.2\.11111111\.npz"):
        label_slide(work, SECTION, serial)


def test_a_missing_probability_shard_is_never_background(tmp_path: Path) -> None:
    work = make_work(tmp_path, nuclei())
    (tmp_path / "slide.ome.zarr/probability/0/c/0/1/1").unlink()
    with pytest.raises(DamagedError, match="missing or empty"):
        label_slide(work, SECTION, serial)


def test_block_functions_are_picklable(tmp_path: Path) -> None:
    function = partial(label_block, StageContext(tmp_path, (5, 5), 512, PLAN))
    assert pickle.loads(pickle.dumps(function)).args == function.args


def test_area_limits_in_pixels_are_exact() -> None:
    for mpp in (0.1, 0.25, 0.2528, 0.3):
        for px in (1, 3, 100, 12345):
            section = label_inputs(
                image_info(mpp),
                min_area_um2=px * mpp**2,
                max_area_um2=px * mpp * mpp,
                fill_holes_um2=px * (mpp * mpp),
            )
            assert section.limits == Limits(px, px)
            assert section.fill_holes_px == px
    assert label_inputs().limits == Limits(0, None)
    assert label_inputs(min_area_um2=0.3, max_area_um2=0.3).limits == Limits(2, 1)
