"""read_mirrored equals np.pad and reads little of the source."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.unet_core.watched import Watched
from unet_core.mirror import Square, mirrored_indices, read_mirrored


@given(
    sides=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    corner=st.tuples(st.integers(-40, 40), st.integers(-40, 40)),
    size=st.tuples(st.integers(0, 30), st.integers(0, 30)),
    leading=st.sampled_from([(), (1,), (3,), (2, 3)]),
)
def test_mirrored_reads_equal_numpy_reflect(
    sides: tuple[int, int], corner: tuple[int, int], size: tuple[int, int], leading: tuple[int, ...]
) -> None:
    pixels = np.arange(np.prod((*leading, *sides)), dtype=np.int32).reshape(*leading, *sides)
    box = Square(*corner, corner[0] + size[0], corner[1] + size[1])
    far = 80
    padded = np.pad(pixels, [(0, 0)] * len(leading) + [(far, far)] * 2, mode="reflect")
    expected = padded[..., far + box.y0 : far + box.y1, far + box.x0 : far + box.x1]
    watched = Watched(pixels)
    found = read_mirrored(watched, box)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == pixels.dtype
    assert len(watched.read) == 1
    assert watched.read[0][-2] <= min(size[0], sides[0])
    assert watched.read[0][-1] <= min(size[1], sides[1])


def test_reads_far_outside_are_no_larger_than_the_box() -> None:
    watched = Watched(np.zeros((3, 1000, 2000), np.uint8))
    assert read_mirrored(watched, Square(10**12, -(10**12), 10**12 + 5, 7 - 10**12)).shape == (3, 5, 7)
    assert watched.read == [(3, 5, 7)] or np.prod(watched.read[0]) <= 105


def test_inside_is_read_as_it_is() -> None:
    pixels = np.arange(100).reshape(10, 10)
    assert np.shares_memory(read_mirrored(pixels, Square(2, 3, 5, 9)), pixels)


def test_one_pixel_fills_everything() -> None:
    assert (read_mirrored(np.full((1, 1), 7), Square(-9, -9, 9, 9)) == 7).all()


@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_mirrored_indices_are_periodic(length: int) -> None:
    forth = list(range(length))
    there_and_back = forth + forth[-2:0:-1]
    expected = [there_and_back[i % len(there_and_back)] for i in range(-25, 25)]
    assert mirrored_indices(-25, 25, length).tolist() == expected


def test_empty_images_and_inverted_boxes_are_rejected() -> None:
    with pytest.raises(ValueError, match="image of 0 x 4 px"):
        read_mirrored(np.zeros((0, 4)), Square(0, 0, 1, 1))
    with pytest.raises(ValueError, match=r"y 5\.\.2"):
        read_mirrored(np.zeros((4, 4)), Square(5, 0, 2, 1))
