"""Matching of centres equals the best of all matchings, and the scores equal counts by hand."""

from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from unet_core.metrics.centres import PixelSums, centre_scores, match_centres

Points = list[tuple[int, int]]


def best_by_hand(found: Points, true: Points, within: float) -> tuple[int, float]:
    """Number of pairs and sum of distances of the best of all matchings."""
    apart = {(a, b): float(np.hypot(a[0] - b[0], a[1] - b[1])) for a in found for b in true}
    for size in range(min(len(found), len(true)), 0, -1):
        tried = [
            [apart[pair] for pair in zip(some, others, strict=True)]
            for some in combinations(found, size)
            for others in permutations(true, size)
        ]
        if sums := [sum(distances) for distances in tried if max(distances) <= within]:
            return size, min(sums)
    return 0, 0.0


@settings(max_examples=300, deadline=None)
@given(
    found=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=5),
    true=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=5),
    within=st.sampled_from([0.0, 1.0, 1.5, 2.0, 3.0, 5.0]),
)
def test_the_matching_is_the_best_of_all(found: Points, true: Points, within: float) -> None:
    """Points on a grid: equal positions, equal distances and distances of exactly the limit occur."""
    a, b = (np.array(one, np.float64).reshape(-1, 2) for one in (found, true))
    match = match_centres(a, b, within)
    pairs = match.pairs_P2
    assert len(set(pairs[:, 0])) == len(set(pairs[:, 1])) == len(pairs)
    apart = np.hypot(*(a[pairs[:, 0]] - b[pairs[:, 1]]).T)
    assert (apart <= within).all()
    size, total = best_by_hand(found, true, within)
    assert len(pairs) == size
    assert apart.sum() == pytest.approx(total, abs=1e-9)
    assert match.sums.tolist() == [size, len(found), len(true)]
    assert len(match.false_positives) == len(found) - size
    assert len(match.missed) == len(true) - size


def test_more_pairs_are_preferred_to_nearer_ones() -> None:
    """On a line: taking the nearest pair first would leave the two outer points alone."""
    match = match_centres(np.array([[0.0, 0], [0, 3]]), np.array([[0.0, 2], [0, 5]]), 2.0)
    assert match.pairs_P2.tolist() == [[0, 0], [1, 1]]


def test_a_long_chain_is_matched_as_a_whole() -> None:
    """1,500 points a side in one connected part: every other one has to take its farther neighbour."""
    found, true = np.zeros((1500, 2)), np.zeros((1500, 2))
    found[:, 1], true[:, 1] = np.arange(1500) * 5, np.arange(1500) * 5 + 3  # 3 to the right, 2 to the left
    match = match_centres(found, true, 3.0)
    assert np.array_equal(match.pairs_P2, np.column_stack((np.arange(1500),) * 2))


def test_centres_are_those_of_scipy_for_any_blocks() -> None:
    rng = np.random.default_rng(2)
    labels = np.kron(rng.integers(0, 9, (8, 9)), np.ones((5, 4), int))
    blocks = [PixelSums.of(labels[y : y + 16, x : x + 11], (y, x)) for y in range(0, 40, 16) for x in range(0, 36, 11)]
    found = PixelSums.added(blocks)
    assert found.ids.tolist() == list(range(1, 9))
    assert np.allclose(found.centres, ndimage.center_of_mass(labels > 0, labels, range(1, 9)))


def test_scores_follow_the_rule_for_empty_images() -> None:
    """Per image: 2 of 3 found and 2 of 4 true; nothing at all; only predictions; only dots; then all together."""
    sums = np.array([[2, 3, 4], [0, 0, 0], [0, 2, 0], [0, 0, 5]], np.float64)
    scores = centre_scores(np.concatenate((sums, sums.sum(axis=0)[None])))
    assert scores["centre_precision"] == pytest.approx([2 / 3, 1, 0, np.nan, 2 / 5], nan_ok=True)
    assert scores["centre_recall"] == pytest.approx([1 / 2, 1, np.nan, 0, 2 / 9], nan_ok=True)
    assert scores["centre_f1"] == pytest.approx([4 / 7, 1, 0, 0, 4 / 14], nan_ok=True)
