"""The weight map against the paper's formula, evaluated directly; the loss against a sum written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from unet_core.loss import part_touching, separation_weights, weighted_cross_entropy
from unet_core.spec import UNetSpec


def formula(labels: NDArray[np.int32], w0: float, sigma: float) -> NDArray[np.float64]:
    """Equation 2 with w_c = 1, pixel by pixel: distances to every pixel of every object, no transform, no window."""
    weights = np.ones(labels.shape)
    objects = [np.argwhere(labels == i) for i in np.unique(labels) if i]
    for pixel in np.argwhere(labels == 0):
        distances = sorted(float(np.sqrt(((points - pixel) ** 2).sum(axis=1)).min()) for points in objects)
        if len(distances) >= 2:
            weights[tuple(pixel)] += w0 * math.exp(-((distances[0] + distances[1]) ** 2) / (2 * sigma**2))
    return weights


@given(seed=st.integers(0, 10_000), sigma=st.sampled_from([1.0, 2.0, 5.0]), count=st.integers(0, 6))
@settings(max_examples=25, deadline=None)
def test_equals_the_formula(seed: int, sigma: float, count: int) -> None:
    generator = np.random.default_rng(seed)
    labels = np.zeros((30, 44), np.int32)
    for i in range(1, count + 1):
        y, x = generator.integers(0, 30), generator.integers(0, 44)
        labels[y : y + generator.integers(1, 9), x : x + generator.integers(1, 9)] = 3 * i  # gaps in the numbering too
    np.testing.assert_allclose(separation_weights(labels, 10, sigma), formula(labels, 10, sigma), rtol=1e-5)


def test_the_gap_between_touching_objects_weighs_most() -> None:
    labels = np.zeros((40, 60), np.int32)
    labels[10:30, 10:29], labels[10:30, 30:50] = 1, 2  # a gap of one pixel: d1 = d2 = 1
    weights = separation_weights(labels)
    assert weights.max() == weights[20, 29] == pytest.approx(1 + 10 * math.exp(-4 / 50))
    assert weights[labels > 0].max() == 1
    assert weights[0, 0] < 1.1


def brute_parting(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    parted = labels.copy()
    for y, x in np.argwhere(labels):
        around = labels[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
        if ((around != 0) & (around != labels[y, x])).any():
            parted[y, x] = 0
    return parted


@given(seed=st.integers(0, 10_000), kinds=st.integers(1, 4))
def test_parting_leaves_no_two_objects_touching(seed: int, kinds: int) -> None:
    labels = np.random.default_rng(seed).integers(0, kinds + 1, (9, 12)).astype(np.int32)
    np.testing.assert_array_equal(part_touching(labels), brute_parting(labels))


def test_weighted_mean_of_the_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, generator=generator)
    target = torch.randint(0, 3, (2, 4, 5), generator=generator)
    weight = torch.rand(2, 4, 5, generator=generator)
    total = 0.0
    for n in range(2):
        for y in range(4):
            for x in range(5):
                p = torch.softmax(logits[n, :, y, x], 0)[target[n, y, x]]
                total -= float(weight[n, y, x]) * math.log(float(p))
    expected = total / float(weight.sum())
    assert float(weighted_cross_entropy(UNetSpec(classes=3), logits, target, weight)) == pytest.approx(expected)


def test_a_sigmoid_head_answers_one_question_a_class() -> None:
    spec = UNetSpec(classes=3, head="sigmoid")
    logits = torch.tensor([2.0, -1.0]).reshape(1, 2, 1, 1)
    loss = weighted_cross_entropy(spec, logits, torch.tensor([[[1]]]), torch.tensor([[[5.0]]]))
    expected = -math.log(1 / (1 + math.exp(-2))) - math.log(1 - 1 / (1 + math.exp(1)))
    assert float(loss) == pytest.approx(expected)
