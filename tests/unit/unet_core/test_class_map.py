"""The class of a pixel from stored bytes equals numpy's argmax."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from unet_core.class_map import class_map, threshold_byte


@pytest.mark.parametrize(("threshold", "byte"), [(0.5, 128), (0.4, 102), (1.0, 255), (0.001, 1), (0.2, 51)])
def test_threshold_byte(threshold: float, byte: int) -> None:
    assert threshold_byte(threshold) == byte


@given(hnp.arrays(np.uint8, st.tuples(st.integers(2, 4), st.just(3), st.just(4))))
def test_several_classes_are_the_argmax_with_the_remainder_as_background(probability: NDArray[np.uint8]) -> None:
    wide = probability.astype(np.int16)
    background = np.maximum(0, 255 - wide.sum(axis=0))
    expected = np.argmax(np.concatenate((background[None], wide)), axis=0)
    np.testing.assert_array_equal(class_map(probability, 0.5), expected)


def test_ties_go_to_the_lower_class_background_first() -> None:
    columns = [(85, 85), (128, 127), (127, 128), (100, 100), (0, 128), (0, 127), (128, 128)]
    probability = np.array(columns, np.uint8).T[:, None, :]
    assert class_map(probability, 0.01).tolist() == [[0, 1, 2, 1, 2, 0, 1]]


def test_one_class_is_foreground_from_the_threshold_on() -> None:
    assert class_map(np.array([[[127, 128, 255]]], np.uint8), 0.5).tolist() == [[0, 1, 1]]
