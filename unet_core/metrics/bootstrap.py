"""Confidence intervals and paired tests over patients.

Patients are the sampling unit, so patients are resampled and paired, not images, of which a patient may have many. A
pooled score is recomputed from the sums of each resampled set. Nothing is concluded from fewer than six patients: a
Wilcoxon test of five pairs cannot fall below p = 0.0625.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from unet_core.metrics.overlap import Array, Scores

RESAMPLES, SEED, LEVEL = 2000, 0, 0.95
LEAST_PATIENTS = 6
SIGNIFICANT = 1 - LEVEL
_AT_ONCE = 100
Score = Callable[[Array], Scores]
"""Maps weights (r, images) to scores (r,)."""


@dataclass(frozen=True, slots=True)
class Patients:
    """Patients of the images: `of_image` (n,) is an index into `names`."""

    names: tuple[str, ...]
    of_image: Array

    @classmethod
    def of(cls, patients: Sequence[str]) -> Patients:
        """Build from the patient of each image."""
        names, place = np.unique(np.array(patients, dtype=object).astype(str), return_inverse=True)
        return cls(tuple(str(name) for name in names), place)

    def own(self) -> Array:
        """Return the weights (patients, images) that select each patient's images."""
        return np.asarray(np.arange(len(self.names))[:, None] == self.of_image, np.float64)

    def resampled(self) -> Array:
        """Return weights (r, images): counts of each image when as many patients are drawn with replacement."""
        count = len(self.names)
        draws = np.random.default_rng(SEED).multinomial(count, np.full(count, 1 / count), RESAMPLES)
        return np.asarray(draws[:, self.of_image], np.float64)


def resampled_scores(score: Score, patients: Patients) -> Scores:
    """Return every score of each resampled set of patients (r,); empty if there are too few patients."""
    if len(patients.names) < LEAST_PATIENTS:
        return {}
    weights = patients.resampled()
    parts = [score(weights[start : start + _AT_ONCE]) for start in range(0, len(weights), _AT_ONCE)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def interval(resampled: Array) -> tuple[float, float] | None:
    """Return the percentile interval at `LEVEL`; None if the score is undefined in most resampled sets."""
    defined = resampled[~np.isnan(resampled)]
    if 2 * len(defined) < len(resampled):
        return None
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """One score of two models on the same images, second minus first.

    Attributes:
        patients: Number of patients for which both scores are defined; the tests pair by patient.
        difference: Difference of the pooled scores.
        interval: Bootstrap interval of the difference.
        conclusion: The result in words.
    """

    score: str
    first: str
    second: str
    patients: int
    difference: float
    interval: tuple[float, float] | None
    t_test_p: float | None
    wilcoxon_p: float | None
    conclusion: str


@dataclass(frozen=True, slots=True)
class ScoredMethod:
    """Scores of a model: pooled (1,), by patient (p,) and by resampled set of patients (r,)."""

    name: str
    pooled: Scores
    by_patient: Scores
    resampled: Scores

    @classmethod
    def of(cls, name: str, score: Score, patients: Patients) -> ScoredMethod:
        """Score all images together, those of each patient and each resampled set."""
        everything = np.ones((1, len(patients.of_image)))
        return cls(name, score(everything), score(patients.own()), resampled_scores(score, patients))


def compare(first: ScoredMethod, second: ScoredMethod, score: str) -> PairedComparison | None:
    """Compare two models scored on the same images; None if a pooled score is undefined."""
    difference = float(second.pooled[score][0] - first.pooled[score][0])
    if np.isnan(difference):
        return None
    pairs = second.by_patient[score] - first.by_patient[score]
    pairs = pairs[~np.isnan(pairs)]
    drawn = interval(second.resampled[score] - first.resampled[score]) if second.resampled else None
    tests = _t_test(pairs), _wilcoxon(pairs)
    conclusion = _conclusion(score, (first.name, second.name), (difference, drawn), (len(pairs), tests[1]))
    return PairedComparison(score, first.name, second.name, len(pairs), difference, drawn, *tests, conclusion)


def _t_test(differences: Array) -> float | None:
    """Return p of the paired t-test; None if all differences are equal."""
    if len(differences) < 2 or np.ptp(differences) == 0:
        return None
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def _wilcoxon(differences: Array) -> float | None:
    """Return p of the two-sided Wilcoxon signed-rank test without differences of 0; None if all are 0."""
    kept = differences[differences != 0]
    if not len(kept):
        return None
    return float(stats.wilcoxon(kept, method="exact" if len(kept) <= 20 else "approx").pvalue)


def _conclusion(
    score: str,
    names: tuple[str, str],
    difference: tuple[float, tuple[float, float] | None],
    paired: tuple[int, float | None],
) -> str:
    """Return the conclusion: a difference if the interval excludes 0 and the signed-rank test agrees."""
    (by, drawn), (patients, p) = difference, paired
    difference_text = f"{score} of {names[1]} minus {names[0]}: {by:+.4f}"
    if drawn is None or patients < LEAST_PATIENTS:
        least = f"a signed-rank test of so few cannot fall below p = {2 / 2**patients:.3g}" if patients else "no pair"
        return f"{difference_text} on {patients} patient{'s' * (patients != 1)}: nothing can be concluded ({least})"
    text = f"{difference_text}, 95 % interval {drawn[0]:+.4f} to {drawn[1]:+.4f}, {patients} patients, Wilcoxon "
    text += "undefined (no patient differs)" if p is None else f"p = {p:.3g}"
    if p is None or p >= SIGNIFICANT or drawn[0] <= 0 <= drawn[1]:
        return f"{text}: no difference can be concluded"
    return f"{text}: the {'higher' if by > 0 else 'lower'} score is not chance on patients like these"
