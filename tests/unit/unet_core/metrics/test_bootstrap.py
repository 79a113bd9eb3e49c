"""Intervals and comparisons: patients are resampled, sums are pooled, few patients allow no conclusion."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_core.metrics.bootstrap import LEAST_PATIENTS, Patients, ScoredMethod, compare, interval, resampled_scores
from unet_core.metrics.overlap import Scores, confusion, pixel_scores, pixel_sums

Array = np.ndarray[Any, Any]


def made(seed: int, images: int, better: float = 0.0) -> tuple[Array, Array]:
    """Predicted and true masks (n, 8, 9)."""
    generator = np.random.default_rng(seed)
    true = generator.random((images, 8, 9)) < 0.4
    wrong = generator.random(true.shape) < 0.3 - better
    return true ^ wrong, true


def scorer(found: Array, true: Array) -> Any:
    sums = np.stack([pixel_sums(confusion(a, b, 2), 1) for a, b in zip(found, true, strict=True)])

    def score(weights: Array) -> Scores:
        return pixel_scores(weights @ sums)

    return score


def dice(found: Array, true: Array) -> float:
    return float(2 * (found & true).sum() / (found.sum() + true.sum()))


def test_whole_patients_are_resampled_and_counts_pooled() -> None:
    """Each resampled score is the Dice over all pixels of the drawn patients' images."""
    owners = ["b", "a", "c", "a", "d", "e", "f", "f", "f"]
    found, true = made(1, len(owners))
    patients = Patients.of(owners)
    assert patients.names == tuple("abcdef")
    scores = resampled_scores(scorer(found, true), patients)["dice"]
    for weights, score in list(zip(patients.resampled(), scores, strict=True))[:50]:
        by_patient = {owner: {int(weights[i]) for i, name in enumerate(owners) if name == owner} for owner in owners}
        assert all(len(times) == 1 for times in by_patient.values()), "a patient's images come together"
        assert sum(times.pop() for times in by_patient.values()) == 6
        drawn = np.repeat(np.arange(len(owners)), weights.astype(int))
        assert score == pytest.approx(dice(found[drawn], true[drawn]))


def test_more_images_of_one_patient_do_not_narrow_the_interval() -> None:
    found, true = made(2, 8)
    once = interval(resampled_scores(scorer(found, true), Patients.of(list("abcdefgh")))["dice"])
    often = np.repeat(np.arange(8), 5)
    again = Patients.of([*np.repeat(list("abcdefgh"), 5)])
    assert interval(resampled_scores(scorer(found[often], true[often]), again)["dice"]) == pytest.approx(once)


def test_an_interval_is_of_the_defined_scores() -> None:
    values = np.random.default_rng(0).permutation(np.arange(1001.0))
    assert interval(values) == pytest.approx((25, 975))
    half = np.concatenate([values, np.full(1000, np.nan)])
    assert interval(half) == pytest.approx((25, 975))
    assert interval(np.concatenate([half, np.full(5, np.nan)])) is None


def test_too_few_patients_have_no_interval() -> None:
    found, true = made(3, 10)
    assert resampled_scores(scorer(found, true), Patients.of(list("aabbccddee"))) == {}
    assert resampled_scores(scorer(found, true), Patients.of(list("aabbccddef")))


def direct_wilcoxon(differences: Array) -> float:
    """Share of all sign assignments to the ranks that are at least as extreme."""
    order = np.abs(differences).argsort().argsort() + 1
    middle = order.sum() / 2
    off = abs(order[differences > 0].sum() - middle)
    sums = [
        sum(rank for rank, sign in zip(order, signs, strict=True) if sign)
        for signs in product((0, 1), repeat=len(order))
    ]
    return float(np.mean([abs(total - middle) >= off - 1e-9 for total in sums]))


def direct_t_test(differences: Array) -> float:
    """Twice the tail of Student's density beyond t, by the trapezoid rule."""
    n = len(differences)
    t = abs(differences.mean()) / np.sqrt(((differences - differences.mean()) ** 2).sum() / (n - 1) / n)
    angle = np.linspace(np.arctan(t / np.sqrt(n - 1)), np.pi / 2, 200_001)  # x = sqrt(n - 1) tan(angle)
    density = np.cos(angle) ** (n - 2)
    whole = np.cos(np.linspace(-np.pi / 2, np.pi / 2, 400_001)) ** (n - 2)
    return float(2 * np.trapezoid(density, angle) / np.trapezoid(whole, dx=np.pi / 400_000))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), patients=st.integers(LEAST_PATIENTS, 9))
def test_p_values_equal_their_definitions(seed: int, patients: int) -> None:
    owners = [f"p{i}" for i in range(patients)]
    first, second = (
        ScoredMethod.of(name, scorer(*made(seed + i, patients)), Patients.of(owners)) for i, name in enumerate("ab")
    )
    found = compare(first, second, "dice")
    assert found is not None
    differences = second.by_patient["dice"] - first.by_patient["dice"]
    assert found.t_test_p == pytest.approx(direct_t_test(differences), rel=1e-4)
    if len({*np.abs(differences)}) == patients and 0 not in differences:
        assert found.wilcoxon_p == pytest.approx(direct_wilcoxon(differences))
    assert found.difference == pytest.approx(float(second.pooled["dice"][0] - first.pooled["dice"][0]))


def compared(patients: int, better: float) -> Any:
    owners = Patients.of([f"p{i}" for i in range(patients)])
    _, true = made(5, patients)
    noise = np.random.default_rng(6).random(true.shape)
    pair = [
        ScoredMethod.of(name, scorer(true ^ (noise < share), true), owners)
        for name, share in (("a", 0.3), ("b", 0.3 - better))
    ]
    return compare(*pair, "dice")


def test_conclusions_follow_interval_and_signed_rank_test() -> None:
    sure = compared(12, 0.2)
    assert sure.interval[0] > 0
    assert sure.wilcoxon_p == pytest.approx(2 / 2**12)
    assert "not chance" in sure.conclusion
    same = compared(12, 0.0)
    assert (same.difference, same.t_test_p, same.wilcoxon_p) == (0, None, None)
    assert "no difference can be concluded" in same.conclusion


def test_five_patients_allow_no_conclusion() -> None:
    few = compared(5, 0.25)
    assert few.wilcoxon_p == 0.0625
    assert few.interval is None
    assert "5 patients: nothing can be concluded" in few.conclusion
    assert "0.0625" in few.conclusion
    assert compared(1, 0.25).t_test_p is None
