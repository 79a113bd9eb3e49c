"""Distances between outlines equal those over all pairs of pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_core.metrics.surface_distance import TOLERANCE_PX, Distances, outline

Mask = np.ndarray[Any, np.dtype[np.bool_]]
MASKS = st.integers(0, 2**32 - 1).map(
    lambda seed: np.kron(np.random.default_rng(seed).random((2, 3, 4)) < 0.4, np.ones((1, 2, 3), bool))
)


def distances(found: Mask, true: Mask) -> Distances:
    return Distances.between(outline(np.pad(found, 1)), outline(np.pad(true, 1)))


def direct_outline(mask: Mask) -> list[tuple[int, int]]:
    height, width = mask.shape
    points = []
    for y, x in np.ndindex(mask.shape):
        around = [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
        enclosed = all(0 <= i < height and 0 <= j < width and mask[i, j] for i, j in around)
        if mask[y, x] and not enclosed:
            points.append((y, x))
    return points


def nearest(sources: list[tuple[int, int]], targets: list[tuple[int, int]]) -> list[float]:
    return [min(float(np.hypot(y - i, x - j)) for i, j in targets) for y, x in sources]


def direct(found: Mask, true: Mask) -> tuple[float, float]:
    """HD95 and surface Dice."""
    f, t = direct_outline(found), direct_outline(true)
    if not f and not t:
        return 0.0, 1.0
    if not f or not t:
        return np.nan, 0.0
    there, back = nearest(f, t), nearest(t, f)
    near = sum(distance <= TOLERANCE_PX for distance in there + back)
    return max(np.percentile(there, 95), np.percentile(back, 95)), near / (len(f) + len(t))


@settings(deadline=None)
@given(masks=MASKS)
def test_hd95_and_surface_dice_equal_their_definitions(masks: Mask) -> None:
    found, true = masks
    scores = distances(found, true).scores()
    assert (float(scores["hd95"]), float(scores["surface_dice"])) == pytest.approx(direct(found, true), nan_ok=True)


FULL, EMPTY = np.ones((6, 7), bool), np.zeros((6, 7), bool)


@pytest.mark.parametrize(
    ("found", "true", "hd95", "dice"),
    [(EMPTY, EMPTY, 0, 1), (FULL, FULL, 0, 1), (FULL, EMPTY, np.nan, 0), (EMPTY, FULL, np.nan, 0)],
)
def test_the_rule_for_empty_masks(found: Mask, true: Mask, hd95: float, dice: float) -> None:
    scores = distances(found, true).scores()
    assert float(scores["hd95"]) == pytest.approx(hd95, nan_ok=True)
    assert scores["surface_dice"] == dice


def test_hd95_is_the_larger_of_both_directions() -> None:
    true = np.zeros((3, 40), bool)
    true[1, 5] = True
    found = true.copy()
    found[1, 25] = True
    assert distances(found, true).scores()["hd95"] == pytest.approx(19)
    assert distances(true, found).scores()["hd95"] == pytest.approx(19)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_images_are_pooled_over_their_pixels(seed: int) -> None:
    """Outline pixels of all images count together, except images in which one outline is empty."""
    generator = np.random.default_rng(seed)
    pairs = [(generator.random((2, 7, 8)) < generator.choice([0.0, 0.3])) for _ in range(4)]
    cases = Distances.stacked([distances(*pair) for pair in pairs])
    each = cases.scores()
    for row, pair in enumerate(pairs):
        ours = float(each["hd95"][row]), float(each["surface_dice"][row])
        assert ours == pytest.approx(direct(*pair), nan_ok=True)
    together = Distances(cases.squared_px, cases.counts.sum(axis=0), cases.alone.sum(axis=0)).scores()
    outlines = [(direct_outline(found), direct_outline(true)) for found, true in pairs]
    both = [(f, t) for f, t in outlines if f and t]
    there = [d for f, t in both for d in nearest(f, t)]
    back = [d for f, t in both for d in nearest(t, f)]
    if both:
        assert together["hd95"] == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))
    if points := sum(len(f) + len(t) for f, t in outlines):
        near = sum(d <= TOLERANCE_PX for d in there + back)
        assert together["surface_dice"] == pytest.approx(near / points)
