"""Components read in windows have the numbers of the whole image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import label

from pipeline.annotations.lazy_components import LazyComponents
from pipeline.geometry import Box


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 24), st.integers(1, 24), st.integers(1, 11), st.integers(1, 3))
def test_any_window_has_the_numbers_of_the_whole_image(
    seed: int, height: int, width: int, block_px: int, classes: int
) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, classes + 1, (height, width)).astype(np.uint8) * (rng.random((height, width)) < 0.7)
    connected = LazyComponents.of(lambda box: image[box.slices], (height, width), block_px)
    expected = label(image, connectivity=2, background=0)
    assert connected.count == expected.max()
    for _ in range(4):
        y0, x0 = rng.integers(0, height), rng.integers(0, width)
        box = Box(y0, x0, rng.integers(y0 + 1, height + 1), rng.integers(x0 + 1, width + 1))
        found = connected.read(box)
        assert found.dtype == np.int32
        assert np.array_equal(found, expected[box.slices])


def test_a_window_reads_only_the_blocks_it_touches() -> None:
    image = (np.indices((40, 40)).sum(axis=0) % 5 == 0).astype(np.uint8)
    requested: list[Box] = []

    def read(box: Box) -> np.ndarray:
        requested.append(box)
        return image[box.slices]

    connected = LazyComponents.of(read, (40, 40), 8)
    assert sum(box.area_px for box in requested) == 1600, "every pixel once"
    requested.clear()
    connected.read(Box(7, 9, 9, 15))
    assert requested == [Box(0, 8, 8, 16), Box(8, 8, 16, 16)]


@pytest.mark.parametrize("value", [0, 1])
def test_uniform_images(value: int) -> None:
    connected = LazyComponents.of(lambda box: np.full(box.shape, value, np.uint8), (20, 30), 16)
    assert np.array_equal(connected.read(Box(0, 0, 20, 30)), np.full((20, 30), value))
