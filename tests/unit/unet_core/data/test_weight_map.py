"""The weight map equals the paper's formula, and weights of a window equal those of the whole map."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.unit.unet_core.watched import Watched
from unet_core.data.weight_map import SeparationWeights, part_touching, separation_weights


def formula(labels: NDArray[np.int32], w0: float, sigma: float) -> NDArray[np.float64]:
    """Equation 2 with w_c = 1, pixel by pixel, from distances to every pixel of every object."""
    weights = np.ones(labels.shape)
    objects = [np.argwhere(labels == i) for i in np.unique(labels) if i]
    for pixel in np.argwhere(labels == 0):
        distances = sorted(float(np.sqrt(((points - pixel) ** 2).sum(axis=1)).min()) for points in objects)
        if len(distances) >= 2:
            weights[tuple(pixel)] += w0 * math.exp(-((distances[0] + distances[1]) ** 2) / (2 * sigma**2))
    return weights


def scattered(seed: int, count: int, shape: tuple[int, int]) -> NDArray[np.int32]:
    """Random overlapping rectangles; their numbers have gaps and are partly large."""
    generator = np.random.default_rng(seed)
    labels = np.zeros(shape, np.int32)
    for i in range(1, count + 1):
        y, x = (generator.integers(0, side) for side in shape)
        labels[y : y + generator.integers(1, 9), x : x + generator.integers(1, 9)] = 3 * i + 10**8 * (i % 2)
    return labels


@given(seed=st.integers(0, 10_000), sigma=st.sampled_from([1.0, 2.0, 5.0]), count=st.integers(0, 6))
@settings(max_examples=25, deadline=None)
def test_weight_map_equals_the_formula(seed: int, sigma: float, count: int) -> None:
    labels = scattered(seed, count, (30, 44))
    np.testing.assert_allclose(separation_weights(labels, 10, sigma), formula(labels, 10, sigma), rtol=1e-5)


@pytest.mark.parametrize("value", [0, 1, 7])
def test_empty_and_full_images_weigh_one_everywhere(value: int) -> None:
    assert (separation_weights(np.full((9, 12), value, np.int32)) == 1).all()


def test_the_gap_between_touching_objects_weighs_most() -> None:
    labels = np.zeros((40, 60), np.int32)
    labels[10:30, 10:29], labels[10:30, 30:50] = 1, 2  # a gap of one pixel: d1 = d2 = 1
    weights = separation_weights(labels)
    assert weights.max() == weights[20, 29] == pytest.approx(1 + 10 * math.exp(-4 / 50))
    assert weights[labels > 0].max() == 1
    assert weights[0, 0] < 1.1


def brute_parting(labels: NDArray[np.int32], classes: NDArray[np.int32]) -> NDArray[np.int32]:
    parted = labels.copy()
    for y, x in np.argwhere(labels):
        around = np.s_[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
        others = (labels[around] != 0) & (labels[around] != labels[y, x])
        if (others & (classes[around] == classes[y, x])).any():
            parted[y, x] = 0
    return parted


@given(seed=st.integers(0, 10_000), kinds=st.integers(1, 4))
def test_separated_objects_do_not_touch(seed: int, kinds: int) -> None:
    labels = np.random.default_rng(seed).integers(0, kinds + 1, (9, 12)).astype(np.int32)
    np.testing.assert_array_equal(part_touching(labels), brute_parting(labels, np.ones_like(labels)))


@given(seed=st.integers(0, 10_000))
def test_only_objects_of_one_class_are_separated(seed: int) -> None:
    labels, classes = np.random.default_rng(seed).integers(0, 4, (2, 9, 12)).astype(np.int32)
    np.testing.assert_array_equal(part_touching(labels, classes), brute_parting(labels, classes))


@given(
    seed=st.integers(0, 10_000),
    corner=st.tuples(st.integers(0, 119), st.integers(0, 149)),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    sigma=st.sampled_from([1.0, 2.5, 5.0]),
)
@settings(max_examples=40, deadline=None)
def test_weights_of_a_window_equal_the_map_to_the_bit(
    seed: int, corner: tuple[int, int], size: tuple[int, int], sigma: float
) -> None:
    labels = scattered(seed, 60, (120, 150))
    classes = np.random.default_rng(seed).integers(1, 3, labels.shape)
    weights = SeparationWeights(labels, classes, 10.0, sigma)
    window = (slice(corner[0], corner[0] + size[0]), slice(corner[1], corner[1] + size[1]))
    whole = separation_weights(part_touching(labels, classes), 10.0, sigma)
    np.testing.assert_array_equal(weights[window], whole[window])


def test_a_window_reads_only_itself_and_its_margin() -> None:
    labels = Watched(np.zeros((4000, 5000), np.int32))
    assert SeparationWeights(labels, None, 10.0, 5.0)[100:150, 0:20].shape == (50, 20)
    assert labels.read == [(50 + 2 * 30, 20 + 30)]
    assert SeparationWeights(labels, None, 0.0, 5.0)[100:150, 0:20].min() == 1
    assert len(labels.read) == 1, "where nothing is weighted nothing is read"
