"""Scores of pixels and objects equal brute force, and empty masks follow their rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from unet_core.metrics.overlap import (
    IOUS,
    Counts,
    Overlaps,
    confusion,
    object_counts,
    object_scores,
    object_sums,
    pixel_counts,
    pixel_scores,
    pixel_sums,
)

Image = np.ndarray[Any, Any]

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


@settings(deadline=None)
@given(labels=LABELS)
def test_object_matching_is_optimal(labels: np.ndarray[Any, Any]) -> None:
    found, true = labels
    assert object_counts(found, true) == brute_counts(found, true, 0.5)
    mixed = np.where(np.indices(found.shape)[1] < 7, true, found)  # many good matches
    assert object_counts(mixed, true) == brute_counts(mixed, true, 0.5)


@settings(deadline=None)
@given(labels=LABELS)
def test_pixels_are_counted(labels: np.ndarray[Any, Any]) -> None:
    found, true = labels > 2
    counts = pixel_counts(found, true)
    assert counts.both == sum(a and b for a, b in zip(found.ravel(), true.ravel(), strict=True))
    dice = 2 * (found & true).sum() / (found.sum() + true.sum()) if (found | true).any() else 1.0
    assert counts.f1 == dice


def test_an_iou_of_one_half_is_a_match_and_less_is_not() -> None:
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


def test_counts_add_and_empty_masks_are_perfect() -> None:
    assert Counts(1, 2, 3) + Counts(4, 5, 6) == Counts(5, 7, 9)
    empty = np.zeros((3, 3), int)
    assert object_counts(empty, empty).f1 == 1
    assert object_counts(empty, empty + 1) == Counts(0, 0, 1)


# ---- against the definitions ---------------------------------------------------------------------------------------


def direct_pixels(found: Image, true: Image, number: int) -> dict[str, float]:
    """Scores from sets of pixels; NaN for 0 / 0 unless both masks are empty."""
    f, t = ({i for i, value in enumerate(labels.ravel()) if value == number} for labels in (found, true))
    right = sum(a == b for a, b in zip(found.ravel(), true.ravel(), strict=True))
    empty = not f and not t

    def over(part: int, whole: int) -> float:
        return part / whole if whole else (1.0 if empty else np.nan)

    return {
        "dice": over(2 * len(f & t), len(f) + len(t)),
        "iou": over(len(f & t), len(f | t)),
        "pixel_accuracy": right / found.size,
        "precision": over(len(f & t), len(f)),
        "recall": over(len(f & t), len(t)),
    }


def plain(scores: dict[str, Image]) -> dict[str, float]:
    return {name: float(value) for name, value in scores.items()}


@settings(deadline=None)
@given(labels=LABELS)
def test_pixel_scores_of_each_class_equal_their_definitions(labels: Image) -> None:
    found, true = labels % 3
    matrix = confusion(found, true, 3)
    for number in (1, 2):
        ours = plain(pixel_scores(pixel_sums(matrix, number)))
        assert ours == pytest.approx(direct_pixels(found, true, number), nan_ok=True)


def direct_objects(found: Image, true: Image) -> dict[str, float]:
    """PQ from all pairs above 0.5, which are unique; AJI by its algorithm, object by object."""
    found_ids, true_ids = ([i for i in np.unique(labels) if i] for labels in (found, true))
    if not found_ids and not true_ids:
        return {"pq": 1.0, "aji": 1.0}

    def iou(i: int, j: int) -> float:
        return float(((found == i) & (true == j)).sum() / ((found == i) | (true == j)).sum())

    pairs = [iou(i, j) for i in found_ids for j in true_ids if iou(i, j) > 0.5]
    alone = len(found_ids) + len(true_ids) - 2 * len(pairs)
    inside = union = 0
    used = set()
    for j in true_ids:
        best = max(found_ids, key=lambda i, j=j: iou(i, j), default=None)
        if best is None or iou(best, j) == 0:
            union += (true == j).sum()
            continue
        used.add(best)
        inside += ((found == best) & (true == j)).sum()
        union += ((found == best) | (true == j)).sum()
    union += sum((found == i).sum() for i in found_ids if i not in used)
    return {"pq": sum(pairs) / (len(pairs) + alone / 2), "aji": inside / union}


@settings(deadline=None)
@given(labels=LABELS, shift=st.integers(0, 9))
def test_object_scores_equal_their_definitions(labels: Image, shift: int) -> None:
    found, true = labels
    mixed = np.where(np.indices(found.shape)[1] < shift, true, found)
    ours = plain(object_scores(object_sums(Overlaps.of(mixed, true))))
    expected = direct_objects(mixed, true)
    assert {name: ours[name] for name in expected} == pytest.approx(expected)
    for least in IOUS:
        assert ours[f"f1_{round(100 * least)}"] == pytest.approx(object_counts(mixed, true, least).f1)


@settings(deadline=None)
@given(labels=LABELS, cut=st.integers(1, 7))
def test_overlaps_of_parts_add_to_those_of_the_whole(labels: Image, cut: int) -> None:
    found, true = labels
    parts = [Overlaps.of(found[:cut], true[:cut]), Overlaps.of(found[cut:], true[cut:])]
    assert np.array_equal(object_sums(Overlaps.added(parts)), object_sums(Overlaps.of(found, true)))


FULL, EMPTY = np.ones((4, 5), int), np.zeros((4, 5), int)
NAN = float("nan")


@pytest.mark.parametrize(
    ("found", "true", "expected"),
    [
        (EMPTY, EMPTY, {"dice": 1, "iou": 1, "pixel_accuracy": 1, "precision": 1, "recall": 1, "pq": 1, "aji": 1}),
        (FULL, FULL, {"dice": 1, "iou": 1, "pixel_accuracy": 1, "precision": 1, "recall": 1, "pq": 1, "aji": 1}),
        (FULL, EMPTY, {"dice": 0, "iou": 0, "pixel_accuracy": 0, "precision": 0, "recall": NAN, "pq": 0, "aji": 0}),
        (EMPTY, FULL, {"dice": 0, "iou": 0, "pixel_accuracy": 0, "precision": NAN, "recall": 0, "pq": 0, "aji": 0}),
    ],
    ids=["nothing", "everything", "found alone", "missed"],
)
def test_the_rule_for_empty_masks(found: Image, true: Image, expected: dict[str, float]) -> None:
    ours = plain(pixel_scores(pixel_sums(confusion(found, true, 2), 1)))
    ours |= plain(object_scores(object_sums(Overlaps.of(found, true))))
    f1 = expected["dice"]
    assert ours == pytest.approx(expected | {f"f1_{round(100 * least)}": f1 for least in IOUS}, nan_ok=True)


def test_rows_are_scored_independently() -> None:
    rows = np.stack([pixel_sums(confusion(a, b, 2), 1) for a, b in ((FULL, FULL), (EMPTY, FULL), (EMPTY, EMPTY))])
    assert pixel_scores(rows)["dice"].tolist() == [1, 0, 1]
    assert pixel_scores(rows.sum(axis=0))["dice"] == pytest.approx(2 / 3)
