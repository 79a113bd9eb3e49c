"""Dice and F1 against brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from unet_core.metrics import Counts, object_counts, pixel_counts

LABELS = st.integers(0, 2**32 - 1).map(
    lambda seed: np.kron(np.random.default_rng(seed).integers(0, 5, (2, 4, 5)), np.ones((1, 2, 2), int))
)


def brute_counts(found: np.ndarray[Any, Any], true: np.ndarray[Any, Any], least: float) -> Counts:
    """Best possible matching over all pairs of masks."""
    found_ids, true_ids = ([i for i in np.unique(labels) if i] for labels in (found, true))
    pairs = np.zeros((len(found_ids), len(true_ids)))
    for row, i in enumerate(found_ids):
        for column, j in enumerate(true_ids):
            both = ((found == i) & (true == j)).sum()
            pairs[row, column] = both / ((found == i) | (true == j)).sum() >= least
    matched = int(pairs[linear_sum_assignment(pairs, maximize=True)].sum())
    return Counts(matched, len(found_ids) - matched, len(true_ids) - matched)


@given(labels=LABELS)
def test_objects_are_matched_as_well_as_can_be(labels: np.ndarray[Any, Any]) -> None:
    found, true = labels
    assert object_counts(found, true) == brute_counts(found, true, 0.5)
    mixed = np.where(np.indices(found.shape)[1] < 7, true, found)  # many good matches
    assert object_counts(mixed, true) == brute_counts(mixed, true, 0.5)


@given(labels=LABELS)
def test_pixels_are_counted(labels: np.ndarray[Any, Any]) -> None:
    found, true = labels > 2
    counts = pixel_counts(found, true)
    assert counts.both == sum(a and b for a, b in zip(found.ravel(), true.ravel(), strict=True))
    dice = 2 * (found & true).sum() / (found.sum() + true.sum()) if (found | true).any() else 1.0
    assert counts.f1 == dice


def test_half_an_overlap_is_a_match_and_less_is_not() -> None:
    true = np.zeros((1, 12), int)
    true[0, :6] = 1
    found = np.zeros((1, 12), int)
    found[0, 2:8] = 7  # 4 of 8
    assert object_counts(found, true) == Counts(1, 0, 0)
    found[0, 8] = 7
    assert object_counts(found, true) == Counts(0, 1, 1)


def test_one_object_is_not_matched_twice() -> None:
    true = np.array([[1, 1, 2, 2]])
    assert object_counts(np.array([[1, 1, 1, 1]]), true) == Counts(1, 0, 1)


def test_counts_add_and_nothing_at_all_is_perfect() -> None:
    assert Counts(1, 2, 3) + Counts(4, 5, 6) == Counts(5, 7, 9)
    empty = np.zeros((3, 3), int)
    assert object_counts(empty, empty).f1 == 1
    assert object_counts(empty, empty + 1) == Counts(0, 0, 1)
