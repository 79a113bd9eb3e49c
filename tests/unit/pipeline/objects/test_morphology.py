"""Opening and closing equal scikit-image on the whole image, block by block and in the label stage."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import ndimage
from skimage import morphology

from pipeline.execution.blocks import MapBlocks, StageContext, serial
from pipeline.geometry import Box, TileGrid
from pipeline.objects.morphology import Morphology, closing, eroded, opening
from pipeline.stages.label import label_slide
from pipeline.storage.layout import OBJECTS
from pipeline.storage.slide_store import SlideStore
from tests.support import whole_objects
from tests.support.make_store import StopAfter, StoppedError, backwards, put_array, tree_bytes
from tests.unit.pipeline.stage_inputs import label_inputs

SEED = 311
SHAPE_YX = (1100, 1300)  # 3 x 3 blocks of 512, the last ones cut
BLOCKS = 9
Array = NDArray[Any]

masks = hnp.arrays(np.bool_, st.tuples(st.integers(1, 24), st.integers(1, 24)), elements=st.integers(0, 3).map(bool))
class_maps = hnp.arrays(
    np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20)), elements=st.sampled_from([0, 1, 1, 1, 2, 2, 3])
)
discs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=3, max_size=3)


@given(masks, st.integers(0, 9))
@settings(max_examples=200, deadline=None)
def test_erosion_opening_and_closing_equal_skimage(mask: Array, radius: int) -> None:
    footprint = morphology.disk(radius)
    np.testing.assert_array_equal(eroded(mask, radius), morphology.erosion(mask, footprint, mode="ignore"))
    if not mask.all():  # without any background the distance transform of isotropic_erosion is undefined
        np.testing.assert_array_equal(eroded(mask, radius), morphology.isotropic_erosion(mask, radius))
    np.testing.assert_array_equal(opening(mask, radius), morphology.opening(mask, footprint, mode="ignore"))
    np.testing.assert_array_equal(closing(mask, radius), morphology.closing(mask, footprint, mode="ignore"))


@pytest.mark.parametrize("radius", [1, 2, 5, 17])
def test_large_discs_on_smooth_masks_equal_skimage(radius: int) -> None:
    mask = blobs(1)[0, :300, :400] > 127
    footprint = morphology.disk(radius)
    np.testing.assert_array_equal(eroded(mask, radius), morphology.isotropic_erosion(mask, radius))
    np.testing.assert_array_equal(opening(mask, radius), morphology.opening(mask, footprint, mode="ignore"))
    np.testing.assert_array_equal(closing(mask, radius), morphology.closing(mask, footprint, mode="ignore"))


@given(class_maps, discs, st.integers(1, 7))
@settings(max_examples=200, deadline=None)
def test_blocks_with_their_halo_give_the_whole_class_map(
    classes: Array, radii: list[tuple[int, int]], block: int
) -> None:
    shape = Morphology(tuple(radii))
    expected = whole_objects.smoothed(classes, radii)
    area = Box.of_shape(classes.shape)
    for tile in TileGrid(area, block):
        read = tile.core.expand(shape.halo_px).intersect(area)
        assert read is not None
        found = shape.of_classes(classes[read.slices])[tile.core.shift(-read.y0, -read.x0).slices]
        np.testing.assert_array_equal(found, expected[tile.core.slices])


def test_a_gap_between_two_classes_gets_the_lower_class() -> None:
    classes = np.zeros((9, 12), np.uint8)
    classes[:, :5], classes[:, 6:] = 2, 1
    classes[4, 2] = 0
    np.testing.assert_array_equal(Morphology(((0, 1), (0, 1))).of_classes(classes)[4], [2] * 5 + [0] + [1] * 6)
    classes[:, 5] = 0
    classes[:, 6:8], classes[:, 8:] = 2, 1
    assert Morphology(((0, 3), (0, 3))).of_classes(classes)[4, 2] == 2


def test_pixels_at_the_border_are_not_eroded_from_outside() -> None:
    whole, corner = np.ones((6, 6), np.uint8), np.zeros((6, 6), np.uint8)
    assert Morphology(((9, 0),)).of_classes(whole).all()
    corner[0, 0] = 1
    assert Morphology(((1, 0),)).of_classes(corner).sum() == 0
    corner[:2, :2] = 1
    assert Morphology(((1, 0),)).of_classes(corner).tolist()[0][:3] == [1, 1, 0]


@cache
def blobs(classes: int) -> Array:
    """Smooth random fields: thousands of irregular objects, many across seams."""
    rng = np.random.default_rng(SEED)
    field = ndimage.gaussian_filter(rng.standard_normal((classes, *SHAPE_YX)), (0, 2.5, 2.5))
    probability = np.clip(110 + 700 * field, 0, 255 // classes * 2).astype(np.uint8)
    probability.setflags(write=False)
    return probability


def make_work(root: Path, probability: Array, block_px: int = 512) -> StageContext:
    put_array(SlideStore(root), "probability/0", probability, "0" * 64, block_px)
    return StageContext(root, (probability.shape[1], probability.shape[2]), block_px, "1" * 64)


def labels_of(work: StageContext) -> Array:
    return np.asarray(work.store.read(OBJECTS).read(work.grid.area))


@pytest.mark.parametrize(("block_px", "order"), [(512, backwards), (1024, serial), (2048, serial)])
def test_labels_are_those_of_the_opened_and_closed_mask(tmp_path: Path, block_px: int, order: MapBlocks) -> None:
    work = make_work(tmp_path, blobs(1), block_px)
    report = label_slide(work, label_inputs(discs_um=((1.0, 1.6),)), order)
    classes = (blobs(1)[0] >= 128).astype(np.uint8)
    expected = whole_objects.numbered(whole_objects.smoothed(classes, [(2, 3)]), 8)
    np.testing.assert_array_equal(labels_of(work), expected)
    assert report.facts["open_close_px"] == [[2, 3]]
    assert 100 < expected.max() < whole_objects.numbered(classes, 8).max() * 0.6


@pytest.mark.parametrize("connectivity", [4, 8])
def test_each_class_has_its_own_discs(tmp_path: Path, connectivity: Any) -> None:
    work = make_work(tmp_path, blobs(3))
    label_slide(work, label_inputs(connectivity=connectivity, discs_um=((1.0, 0.5), (0.0, 1.5), (0.5, 0.0))), serial)
    wide = blobs(3).astype(np.int16)
    classes = np.argmax(np.concatenate((np.maximum(0, 255 - wide.sum(axis=0))[None], wide)), axis=0).astype(np.uint8)
    expected = whole_objects.numbered(whole_objects.smoothed(classes, [(2, 1), (0, 3), (1, 0)]), connectivity)
    np.testing.assert_array_equal(labels_of(work), expected)


@pytest.mark.parametrize("stop", [0, 5, 9, 14, 20])
def test_labelling_resumes_after_any_block(tmp_path: Path, stop: int) -> None:
    section = label_inputs(fill_holes_um2=100.0, discs_um=((1.0, 1.5),))
    label_slide(make_work(tmp_path / "undisturbed", blobs(1)), section, serial)
    work = make_work(tmp_path / "stopped", blobs(1))
    with pytest.raises(StoppedError):
        label_slide(work, section, StopAfter(stop))
    counts = label_slide(work, section, serial).counts
    assert sum(counts.get(f"{name}_blocks", 0) for name in ("holes", "pieces", "label")) == 3 * BLOCKS - stop
    assert tree_bytes(tmp_path / "stopped") == tree_bytes(tmp_path / "undisturbed")


@pytest.mark.parametrize(("um", "px"), [(0.0, 0), (0.24, 0), (0.25, 1), (0.5, 1), (0.74, 1), (0.75, 2)])
def test_radii_are_rounded_to_whole_pixels(um: float, px: int) -> None:
    assert label_inputs(discs_um=((um, 0.0),)).morphology == Morphology(((px, 0),))
