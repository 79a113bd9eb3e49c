"""Overlap of pixels and of objects: Dice, IoU, precision, recall, PQ, AJI, F1.

Each image contributes counts and sums, which are added over images before division, so the same formulas score an
image, a data set and a resampled one. They take sums with any leading axes and return one score each.

`ratio` is the rule for empty masks; every score of this folder uses it:

    nothing is true and nothing is predicted   perfect: 1, a distance 0
    0 / 0 otherwise                            undefined: NaN in arrays, absent in files, and counted
                                               (precision without predictions, recall without true pixels,
                                               a distance to an empty outline)
    anything else                              the formula: a prediction where nothing is true scores 0
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Scores = dict[str, Array]

IOUS = tuple(round(0.5 + 0.05 * step, 2) for step in range(9))
"""IoU thresholds for a match of objects: 0.5, 0.55 .. 0.9."""


def ratio(part: Array, whole: Array, nothing: Array, perfect: float = 1.0) -> Array:
    """Return part / whole; where the whole is 0, `perfect` where `nothing` holds, else NaN."""
    part, whole, nothing = np.broadcast_arrays(part, whole, nothing)
    answer = np.where(nothing, perfect, np.nan)
    np.divide(part, whole, out=answer, where=whole > 0)
    return answer


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of pixels or objects: predicted and true, only predicted, only true."""

    both: int = 0
    found_only: int = 0
    true_only: int = 0

    def __add__(self, other: Self) -> Self:
        return type(self)(self.both + other.both, self.found_only + other.found_only, self.true_only + other.true_only)

    @property
    def f1(self) -> float:
        """2 both / (2 both + found only + true only); for pixels this is Dice."""
        total = 2 * self.both + self.found_only + self.true_only
        return float(ratio(np.array(2 * self.both), np.array(total), np.array(total == 0)))


def pixel_counts(found_YX: NDArray[np.bool_], true_YX: NDArray[np.bool_]) -> Counts:
    """Compare two masks (y, x) pixel by pixel."""
    both = int(np.count_nonzero(found_YX & true_YX))
    return Counts(both, int(np.count_nonzero(found_YX)) - both, int(np.count_nonzero(true_YX)) - both)


def confusion(found_YX: Array, true_YX: Array, classes: int) -> Array:
    """Return the confusion matrix (classes, classes): true class by row, predicted class by column."""
    pairs = true_YX.ravel().astype(np.int64) * classes + found_YX.ravel()
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def pixel_sums(confusion: Array, number: int) -> Array:
    """Return the pixels of one class that are both, only predicted, only true, neither, and correct in all: (5,)."""
    both = confusion[number, number]
    found_only, true_only = confusion[:, number].sum() - both, confusion[number].sum() - both
    neither = confusion.sum() - both - found_only - true_only
    return np.array([both, found_only, true_only, neither, np.trace(confusion)], np.float64)


def pixel_scores(sums: Array) -> Scores:
    """Return Dice, IoU, precision and recall of one class, and accuracy over all classes, from sums (..., 5)."""
    both, found_only, true_only, neither, right = np.moveaxis(sums, -1, 0)
    union = both + found_only + true_only
    nothing = union == 0
    return {
        "dice": ratio(2 * both, union + both, nothing),
        "iou": ratio(both, union, nothing),
        "pixel_accuracy": ratio(right, union + neither, nothing),
        "precision": ratio(both, both + found_only, nothing),
        "recall": ratio(both, both + true_only, nothing),
    }


# ---- objects -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Overlaps:
    """Pixels (`both`) that each predicted object shares with each true one; 0 is background.

    Only pairs that occur, sorted by `found`, then `true`. A number is one object, also in several pieces.
    """

    found: Array
    true: Array
    both: Array

    @classmethod
    def of(cls, found_YX: NDArray[np.integer], true_YX: NDArray[np.integer]) -> Self:
        """Count the pairs of two label images of one size."""
        found, true = found_YX.ravel().astype(np.int64), true_YX.ravel().astype(np.int64)
        return cls._counted(found, true, np.ones(1, np.int64))

    @classmethod
    def added(cls, parts: Iterable[Self]) -> Self:
        """Return the overlaps of an image from those of its parts; objects have the same numbers in all parts."""
        found, true, both = (
            np.concatenate(one) for one in zip(*((p.found, p.true, p.both) for p in parts), strict=True)
        )
        return cls._counted(found, true, both)

    @classmethod
    def _counted(cls, found: Array, true: Array, pixels: Array) -> Self:
        width = int(true.max(initial=0)) + 1
        pairs, index = np.unique(found * width + true, return_inverse=True)
        weights = np.broadcast_to(pixels, index.shape)
        both = np.bincount(index, weights, minlength=len(pairs)).astype(np.int64)
        return cls(pairs // width, pairs % width, both)

    @property
    def areas(self) -> tuple[dict[int, int], dict[int, int]]:
        """Pixels of each predicted and of each true object."""
        return _areas(self.found, self.both), _areas(self.true, self.both)

    @property
    def touching(self) -> Overlaps:
        """The pairs without background."""
        inside = (self.found > 0) & (self.true > 0)
        return Overlaps(self.found[inside], self.true[inside], self.both[inside])


def _areas(ids: Array, pixels: Array) -> dict[int, int]:
    known, index = np.unique(ids, return_inverse=True)
    return {int(i): int(area) for i, area in zip(known, np.bincount(index, pixels), strict=True) if i}


def object_counts(found_YX: NDArray[np.integer], true_YX: NDArray[np.integer], iou: float = 0.5) -> Counts:
    """Match the objects of two label images (y, x) with an IoU of at least `iou`, best pairs first, each object once.

    0 is background; any other number is one object, also in several pieces.
    """
    overlaps = Overlaps.of(found_YX, true_YX)
    matched = int(np.count_nonzero(_matched_ious(overlaps) >= iou))
    found, true = overlaps.areas
    return Counts(matched, len(found) - matched, len(true) - matched)


def object_sums(overlaps: Overlaps) -> Array:
    """Return the sums of one image for `object_scores`, (14,).

    Predicted objects, true objects, sum of the IoU of pairs above 0.5, intersection and union of the aggregated Jaccard
    index, and the pairs that reach each of `IOUS`.
    """
    found, true = overlaps.areas
    ious = _matched_ious(overlaps)
    inside, union = _aggregated(overlaps)
    reached = [np.count_nonzero(ious >= least) for least in IOUS]
    return np.array([len(found), len(true), ious[ious > IOUS[0]].sum(), inside, union, *reached], np.float64)


def object_scores(sums: Array) -> Scores:
    """Return PQ, AJI and F1 at each of `IOUS` from sums (..., 14).

    PQ: Kirillov et al. 2019 (arXiv:1801.00868), equation 1. AJI: Kumar et al. 2017 (10.1109/TMI.2017.2677499),
    algorithm 1. F1 counts pairs whose IoU reaches the threshold, best pairs first, each object once.
    """
    found, true, iou_sum, inside, union, *reached = np.moveaxis(sums, -1, 0)
    nothing = found + true == 0
    scores = {"pq": ratio(2 * iou_sum, found + true, nothing), "aji": ratio(inside, union, nothing)}
    matched = zip(IOUS, reached, strict=True)
    return scores | {f"f1_{round(100 * least)}": ratio(2 * pairs, found + true, nothing) for least, pairs in matched}


def _ious(pairs: Overlaps, areas: tuple[dict[int, int], dict[int, int]]) -> Array:
    found = np.array([areas[0][int(i)] for i in pairs.found], np.float64)
    true = np.array([areas[1][int(i)] for i in pairs.true], np.float64)
    return np.asarray(pairs.both / (found + true - pairs.both))


def _matched_ious(overlaps: Overlaps) -> Array:
    """Return the IoU of matched pairs, taken in order of descending IoU, no object twice."""
    pairs = overlaps.touching
    ious = _ious(pairs, overlaps.areas)
    taken: list[float] = []
    used_found: set[int] = set()
    used_true: set[int] = set()
    for i in np.argsort(-ious, kind="stable"):
        found, true = int(pairs.found[i]), int(pairs.true[i])
        if found not in used_found and true not in used_true:
            used_found.add(found)
            used_true.add(true)
            taken.append(float(ious[i]))
    return np.array(taken, np.float64)


def _aggregated(overlaps: Overlaps) -> tuple[int, int]:
    """Return intersection and union of AJI: each true object with its best match; the rest adds to the union."""
    pairs, (found, true) = overlaps.touching, overlaps.areas
    ious = _ious(pairs, (found, true))
    order = np.lexsort((pairs.found, -ious, pairs.true))  # of equal overlaps the lowest number
    best = order[np.unique(pairs.true[order], return_index=True)[1]]
    inside = int(pairs.both[best].sum())
    paired = sum(found[int(i)] for i in pairs.found[best]) + sum(true[int(i)] for i in pairs.true[best]) - inside
    alone = sum(true[i] for i in true.keys() - set(pairs.true[best].tolist()))
    unused = sum(found[i] for i in found.keys() - set(pairs.found[best].tolist()))
    return inside, paired + alone + unused
