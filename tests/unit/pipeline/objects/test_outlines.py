"""Convex hulls and perimeters equal scikit-image, on the whole image and merged from blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label, regionprops

from pipeline.geometry import Box, TileGrid
from pipeline.objects.components import find_runs
from pipeline.objects.convex_hull import ConvexChains
from pipeline.objects.perimeter import LENGTHS, count_outline
from pipeline.objects.run_length import EDGE_PX, lines_around, save_edges
from pipeline.storage.slide_store import SlideStore

SEED = 19
Array = NDArray[Any]

class_maps = hnp.arrays(
    np.uint8, st.tuples(st.integers(1, 22), st.integers(1, 22)), elements=st.sampled_from([0, 1, 1, 1, 2])
)


def blobs(case: int) -> Array:
    """Objects of three touching classes, from single pixels to most of the image."""
    rng = np.random.default_rng((SEED, case))
    height, width = rng.integers(1, 70, 2)
    field = ndimage.gaussian_filter(rng.standard_normal((3, height, width)), (0, *[rng.uniform(0.1, 6)] * 2))
    return np.asarray(label(np.argmax(field, axis=0)))


def hull_areas(labels: Array, block: int) -> Array:
    """Pixels in the hull of each object, from the chains of all blocks."""
    found = []
    for tile in TileGrid(Box.of_shape(labels.shape), block):
        runs = find_runs(labels[tile.core.slices])
        ids, object_index = np.unique(runs.label, return_inverse=True)
        found.append(
            ConvexChains.of_runs(runs, object_index, (tile.core.y0, tile.core.x0)).relabel(ids.astype(np.int64) - 1)
        )
    return ConvexChains.merged(found).areas(int(labels.max()))


def perimeters(labels: Array, block: int) -> Array:
    """Sums of the lengths that all blocks count."""
    framed = np.pad(labels, EDGE_PX)
    counts = np.zeros((int(labels.max()) + 1, len(LENGTHS)), np.int64)
    for tile in TileGrid(Box.of_shape(labels.shape), block):
        np.add.at(counts, count_outline(framed[tile.core.expand(0, 2 * EDGE_PX).slices]), 1)
    return counts[1:] @ np.array(LENGTHS)


def check(labels: Array, block: int) -> None:
    expected = regionprops(labels.astype(np.int64))
    np.testing.assert_array_equal(hull_areas(labels, block), [one.area_convex for one in expected])
    np.testing.assert_allclose(perimeters(labels, block), [one.perimeter for one in expected], rtol=1e-13)


@given(class_maps, st.integers(1, 30))
@settings(max_examples=150, deadline=None)
def test_hulls_and_perimeters_of_random_masks_equal_skimage(classes: Array, block: int) -> None:
    check(np.asarray(label(classes, background=0)), block)


@pytest.mark.parametrize("block", [7, 25, 100])
def test_hulls_and_perimeters_of_smooth_objects_equal_skimage(block: int) -> None:
    for case in range(60):
        check(blobs(case), block)


def test_a_large_object_in_many_blocks_equals_skimage() -> None:
    field = ndimage.gaussian_filter(np.random.default_rng(SEED).standard_normal((900, 1100)), 30)
    check(np.asarray(label(field > 0)), 256)


@pytest.mark.parametrize("shape_yx", [(1, 1), (1025, 700), (512, 1030), (513, 1537)])
def test_lines_around_a_block_are_those_of_its_neighbours(tmp_path: Path, shape_yx: tuple[int, int]) -> None:
    ids = np.random.default_rng(SEED).integers(1, 2**32, shape_yx, dtype=np.uint32)
    store, grid = SlideStore(tmp_path), TileGrid(Box.of_shape(shape_yx), 512)
    for tile in grid:
        save_edges(store, "p" * 64, tile.index, ids[tile.core.slices])
    framed = np.pad(ids, EDGE_PX)
    for tile in grid:
        expected = framed[tile.core.expand(0, 2 * EDGE_PX).slices]
        found = np.zeros_like(expected)
        for where, lines in lines_around(store, "p" * 64, tile, grid):
            found[where] = lines
        found[EDGE_PX:-EDGE_PX, EDGE_PX:-EDGE_PX] = ids[tile.core.slices]
        np.testing.assert_array_equal(found, expected)
