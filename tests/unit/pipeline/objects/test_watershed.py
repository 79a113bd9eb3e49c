"""Splitting of objects equals scikit-image on one object at a time, alone and many on a sheet."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.objects import watershed
from pipeline.objects.components import RunLengths, find_runs
from pipeline.objects.watershed import Splitting, split_objects
from tests.support import whole_objects

SEED = 77
Array = NDArray[Any]

masks = hnp.arrays(np.uint8, st.tuples(st.integers(1, 26), st.integers(1, 26)), elements=st.sampled_from([0, 1, 1, 1]))
connectivities = st.sampled_from([4, 8])
depths = st.sampled_from([1, 30, 106, 107, 256, 500, 2000])
dents = st.sampled_from([1, 2, 3, 26, 128, 254])
levels = st.sampled_from([2, 3, 5, 256])


def split(labels: Array, connectivity: int, depth: int, seed: int = 0, map_YX: Array | None = None) -> Array:
    """Split all objects by their distances, or by a map, with runs in random order."""
    runs = find_runs(labels)
    order = np.random.default_rng(seed).permutation(len(runs.label))
    shuffled = RunLengths(runs.label[order] - 1, runs.y[order], runs.x0[order], runs.x1[order])
    splitting, values = Splitting(depth / 256, 10_000, connectivity), None
    if map_YX is not None:
        splitting = Splitting(depth / 255, 10_000, connectivity, "centre")
        slices = zip(shuffled.y, shuffled.x0, shuffled.x1, strict=True)
        values = np.concatenate([np.zeros(0, np.uint8), *(map_YX[y, x0:x1] for y, x0, x1 in slices)])
    parts = split_objects(shuffled, splitting, values)
    marks = labels.astype(np.int64) * 10_000
    for part, y, x0, x1 in zip(parts.runs.label, parts.runs.y, parts.runs.x0, parts.runs.x1, strict=True):
        assert (labels[y, x0:x1] == parts.owner[part] + 1).all()
        marks[y, x0:x1] += part + 1
    return whole_objects.renumbered(marks)


@given(masks, connectivities, depths, st.integers(0, 100))
@settings(max_examples=150, deadline=None)
def test_parts_of_random_masks_equal_skimage(mask: Array, connectivity: int, depth: int, seed: int) -> None:
    labels = whole_objects.numbered(mask, connectivity)
    np.testing.assert_array_equal(
        split(labels, connectivity, depth, seed), whole_objects.split(labels, connectivity, depth, 10_000)
    )


@given(masks, connectivities, dents, levels, st.integers(0, 1000))
@settings(max_examples=200, deadline=None)
def test_parts_of_random_maps_equal_skimage(mask: Array, connectivity: int, depth: int, levels: int, seed: int) -> None:
    """Few levels: plateaus, and pixels that are equally near to two seeds."""
    random = np.random.default_rng(seed)
    map_YX = (random.integers(0, levels, mask.shape) * (255 // (levels - 1))).astype(np.uint8)
    labels = whole_objects.numbered(mask, connectivity)
    expected = whole_objects.split(labels, connectivity, depth, 10_000, map_YX)
    np.testing.assert_array_equal(split(labels, connectivity, depth, seed, map_YX), expected)


def test_seeds_on_a_map_known_beforehand() -> None:
    mask = np.ones((1, 9), np.int64)
    map_YX = np.array([[0, 9, 9, 6, 8, 5, 5, 9, 0]], np.uint8)
    assert split(mask, 8, 1, 0, map_YX).max() == 3
    assert split(mask, 8, 2, 0, map_YX).tolist() == [[1, 1, 1, 1, 1, 1, 2, 2, 2]], "8 rises no more than 2 above 6"
    assert split(mask, 8, 4, 0, map_YX).max() == 1
    assert split(mask, 8, 1, 0, np.zeros_like(map_YX)).max() == 1, "an object is higher than what surrounds it"


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("sheet_px", [1, 3000, 2**16])
def test_parts_do_not_depend_on_sheets(connectivity: int, sheet_px: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watershed, "_SHEET_PX", sheet_px)
    field = ndimage.gaussian_filter(np.random.default_rng(SEED).standard_normal((300, 320)), 3)
    labels = whole_objects.numbered((field > 0).astype(np.uint8), connectivity)
    found = split(labels, connectivity, 256)
    np.testing.assert_array_equal(found, whole_objects.split(labels, connectivity, 256, 10_000))
    assert found.max() > 1.5 * labels.max()


def test_two_touching_discs_are_split_and_one_disc_is_not() -> None:
    y, x = np.mgrid[:60, :90]
    pair = (np.hypot(y - 30, x - 30) < 15) | (np.hypot(y - 30, x - 54) < 15)
    parts = split(pair.astype(np.int64), 8, 256)
    assert parts.max() == 2
    np.testing.assert_array_equal(parts > 0, pair)
    assert set(np.unique(parts[:, :42])) == {0, 1}
    assert split(pair.astype(np.int64), 8, 10 * 256).max() == 1, "no dent is so deep"
    assert split((np.hypot(y - 30, x - 30) < 15).astype(np.int64), 8, 1).max() == 1


def test_touching_objects_are_split_independently() -> None:
    field = ndimage.gaussian_filter(np.random.default_rng(SEED).standard_normal((3, 120, 130)), (0, 4, 4))
    classes = np.argmax(field, axis=0).astype(np.uint8)  # no background but class 0: objects touch everywhere
    labels = whole_objects.numbered(classes, 8)
    np.testing.assert_array_equal(split(labels, 8, 256), whole_objects.split(labels, 8, 256, 10_000))


def test_an_empty_image_has_no_parts() -> None:
    parts = split_objects(find_runs(np.zeros((4, 4), np.int64)), Splitting(1.0, 100, 8))
    assert (len(parts.owner), len(parts.runs.label)) == (0, 0)
