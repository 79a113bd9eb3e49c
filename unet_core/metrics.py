"""How good a segmentation is: pooled Dice of pixels, F1 of objects.

Decision: counts are kept as integers and added over images before anything is divided, so an image without objects
needs no rule of its own; where nothing exists and nothing was found at all, the score is 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Counts:
    """Found and true, only found, only true: of pixels or of objects."""

    both: int = 0
    found_only: int = 0
    true_only: int = 0

    def __add__(self, other: Self) -> Self:
        return type(self)(self.both + other.both, self.found_only + other.found_only, self.true_only + other.true_only)

    @property
    def f1(self) -> float:
        """2 both / (2 both + found only + true only), which for pixels is called Dice."""
        total = 2 * self.both + self.found_only + self.true_only
        return 2 * self.both / total if total else 1.0


def pixel_counts(found_YX: NDArray[np.bool_], true_YX: NDArray[np.bool_]) -> Counts:
    """Compare two masks pixel by pixel."""
    both = int(np.count_nonzero(found_YX & true_YX))
    return Counts(both, int(np.count_nonzero(found_YX)) - both, int(np.count_nonzero(true_YX)) - both)


def object_counts(found_YX: NDArray[np.integer], true_YX: NDArray[np.integer], iou: float = 0.5) -> Counts:
    """Match objects of two label images whose intersection over union reaches `iou`, best pairs first, each once.

    0 is background; any other number is an object, in whatever pieces.
    """
    found_ids, found = np.unique(found_YX, return_inverse=True)
    true_ids, true = np.unique(true_YX, return_inverse=True)
    shape = (found_ids.size, true_ids.size)
    overlap = np.bincount(found.ravel() * shape[1] + true.ravel(), minlength=shape[0] * shape[1]).reshape(shape)
    union = overlap.sum(axis=1, keepdims=True) + overlap.sum(axis=0, keepdims=True) - overlap
    ratio = np.where((found_ids != 0)[:, None] & (true_ids != 0)[None, :], overlap / np.maximum(union, 1), 0.0)
    matched = _matches(ratio, iou)
    return Counts(matched, int((found_ids != 0).sum()) - matched, int((true_ids != 0).sum()) - matched)


def _matches(ratio: NDArray[np.float64], least: float) -> int:
    """Count the pairs (row, column) taken in order of falling ratio, no row or column twice."""
    rows, columns = np.nonzero((ratio >= least) & (ratio > 0))
    used_rows: set[int] = set()
    used_columns: set[int] = set()
    for i in np.argsort(-ratio[rows, columns], kind="stable"):
        row, column = int(rows[i]), int(columns[i])
        if row not in used_rows and column not in used_columns:
            used_rows.add(row)
            used_columns.add(column)
    return len(used_rows)
