"""Calibration error equals a direct count."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_core.metrics.calibration import calibration_scores, calibration_sums, reliability


def direct(stored: list[int], true: list[bool]) -> float:
    """Ten bins of probability, each closed below."""
    error = 0.0
    for number in range(10):
        inside = [i for i, byte in enumerate(stored) if number <= byte * 10 / 256 < number + 1]
        if inside:
            probability = np.mean([stored[i] / 255 for i in inside])
            share = np.mean([true[i] for i in inside])
            error += len(inside) / len(stored) * abs(probability - share)
    return error


@settings(deadline=None)
@given(pixels=st.lists(st.tuples(st.integers(0, 255), st.booleans()), min_size=1, max_size=60))
def test_ece_equals_its_definition(pixels: list[tuple[int, bool]]) -> None:
    stored, true = (list(values) for values in zip(*pixels, strict=True))
    sums = calibration_sums(np.array([stored], np.uint8), np.array([true]))
    assert calibration_scores(sums)["ece"] == pytest.approx(direct(stored, true))


@pytest.mark.parametrize(("stored", "true", "ece"), [(0, False, 0), (255, True, 0), (255, False, 1), (0, True, 1)])
def test_ece_of_empty_and_full_masks(stored: int, true: bool, ece: float) -> None:
    sums = calibration_sums(np.full((3, 4), stored, np.uint8), np.full((3, 4), true))
    assert calibration_scores(sums)["ece"] == ece


def test_reliability_bins_equal_a_direct_count() -> None:
    stored = np.repeat(np.array([[51, 204]], np.uint8), 10, axis=0)
    true = np.zeros((10, 2), bool)
    true[:2, 0] = true[:8, 1] = True
    bins = reliability(calibration_sums(stored, true))
    assert [count for count in bins["pixels"] if count] == [10, 10]
    assert [share for share in bins["share"] if share is not None] == [0.2, 0.8]
    assert [mean for mean in bins["probability"] if mean is not None] == pytest.approx([0.2, 0.8])
    assert bins["share"].count(None) == 8
