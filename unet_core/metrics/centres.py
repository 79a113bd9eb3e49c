"""Centres of objects: predicted ones matched to true ones one to one within a distance.

Of all matchings the one with the most pairs counts, and among these one of the least total distance. Greedy matching of
nearest pairs first finds fewer pairs where objects are dense. Pairs within the distance form a sparse graph, and each
of its connected parts is matched alone, so memory grows with the objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, min_weight_full_bipartite_matching
from scipy.spatial import KDTree

from unet_core.metrics.overlap import Array, Scores, ratio

WITHIN_UM, WITHIN_PX = 4.0, 8.0
"""Largest distance of a pair: in um, and in px for images without a resolution."""


def within_px(mpp: float | None, within_um: float = WITHIN_UM) -> float:
    """Return the largest distance of a pair in pixels of ``mpp`` um; None: the resolution is not known."""
    return WITHIN_PX if mpp is None else within_um / mpp


@dataclass(frozen=True, slots=True)
class PixelSums:
    """Number of pixels and sums of their coordinates, by object in ascending order of ids: (n,) each."""

    ids: NDArray[np.int64]
    count: NDArray[np.int64]
    sum_y: NDArray[np.int64]
    sum_x: NDArray[np.int64]

    @classmethod
    def of(cls, ids_YX: NDArray[np.integer[Any]], origin_yx: tuple[int, int] = (0, 0)) -> Self:
        """Sum over a label image (y, x) whose first pixel is at ``origin_yx``; 0 is background."""
        y, x = np.nonzero(ids_YX)
        columns = (ids_YX[y, x].astype(np.int64), np.ones(len(y), np.int64), y + origin_yx[0], x + origin_yx[1])
        return cls._added(*columns)

    @classmethod
    def added(cls, parts: Iterable[Self]) -> Self:
        """Return the sums of an image from those of its parts; objects have the same ids in all parts."""
        rows = [(part.ids, part.count, part.sum_y, part.sum_x) for part in parts]
        return cls._added(*(np.concatenate(column) for column in zip(*rows, strict=True)))

    @classmethod
    def _added(cls, ids: Array, *columns: Array) -> Self:
        known, index = np.unique(ids, return_inverse=True)
        totals = [np.zeros(len(known), np.int64) for _ in columns]
        for total, column in zip(totals, columns, strict=True):
            np.add.at(total, index, column)
        return cls(known, *totals)

    @property
    def centres(self) -> NDArray[np.float64]:
        """Centres of mass (n, 2) as y, x; the centre of the first pixel is 0, 0."""
        return np.asarray(np.column_stack((self.sum_y, self.sum_x)) / self.count[:, None])


@dataclass(frozen=True, slots=True)
class CentreMatch:
    """Matched centres of one image and one class.

    Attributes:
        found_N2: Predicted centres (y, x).
        true_M2: True centres (y, x).
        pairs_P2: Indices of predicted and true centre of each pair.
    """

    found_N2: Array
    true_M2: Array
    pairs_P2: NDArray[np.int64]

    @property
    def sums(self) -> Array:
        """Pairs, predicted and true centres, (3,), for ``centre_scores``."""
        return np.array([len(self.pairs_P2), len(self.found_N2), len(self.true_M2)], np.float64)

    @property
    def false_positives(self) -> Array:
        """Predicted centres without a partner (y, x)."""
        return np.delete(self.found_N2, self.pairs_P2[:, 0], axis=0)

    @property
    def missed(self) -> Array:
        """True centres without a partner (y, x)."""
        return np.delete(self.true_M2, self.pairs_P2[:, 1], axis=0)


def match_centres(found_N2: Array, true_M2: Array, within: float) -> CentreMatch:
    """Match centres one to one: as many pairs as possible, then the least sum of distances.

    Args:
        found_N2: Predicted centres (y, x).
        true_M2: True centres (y, x), in the same unit.
        within: Largest distance of a pair, inclusive.
    """
    if not len(found_N2) or not len(true_M2):
        return CentreMatch(found_N2, true_M2, np.zeros((0, 2), np.int64))
    near = KDTree(found_N2).sparse_distance_matrix(KDTree(true_M2), within, output_type="ndarray")
    pairs = [_matched(*part) for part in _parts(near["i"], near["j"], near["v"], len(found_N2))]
    joined = np.concatenate([np.zeros((0, 2), np.int64), *pairs])
    return CentreMatch(found_N2, true_M2, joined[np.lexsort((joined[:, 1], joined[:, 0]))])


def _parts(found: Array, true: Array, distance: Array, count: int) -> Iterator[tuple[Array, Array, Array]]:
    """Edges of each connected part of the graph of near pairs."""
    nodes = count + int(true.max(initial=-1)) + 1
    graph = coo_array((np.ones(len(found), np.int8), (found, true + count)), shape=(nodes, nodes))
    _, part = connected_components(graph, directed=False)
    order = np.argsort(part[found], kind="stable")
    for edges in np.split(order, np.flatnonzero(np.diff(part[found][order])) + 1) if len(order) else ():
        yield found[edges], true[edges], distance[edges]


def _matched(found: Array, true: Array, distance: Array) -> NDArray[np.int64]:
    """Pairs (p, 2) of one connected part.

    Each predicted centre has a partner of its own beside the true ones, at a price above any sum of distances, so a
    full matching exists and the cheapest one has the most true pairs. No price is 0, which a sparse array cannot store.
    """
    if len(found) == 1:
        return np.array([[found[0], true[0]]], np.int64)
    (rows, row), (columns, column) = (np.unique(one, return_inverse=True) for one in (found, true))
    alone = np.arange(len(rows))
    price = 1 + distance.max() * len(rows) + 1
    costs = np.concatenate((1 + distance, np.full(len(rows), 1 + price)))
    at = np.concatenate((row, alone)), np.concatenate((column, len(columns) + alone))
    graph = coo_array((costs, at), shape=(len(rows), len(columns) + len(rows))).tocsr()
    one, other = min_weight_full_bipartite_matching(graph)
    real = other < len(columns)
    return np.column_stack((rows[one[real]], columns[other[real]])).astype(np.int64)


def centre_scores(sums: Array) -> Scores:
    """Return precision, recall and F1 of centres from sums (..., 3)."""
    pairs, found, true = np.moveaxis(sums, -1, 0)
    nothing = found + true == 0
    return {
        "centre_precision": ratio(pairs, found, nothing),
        "centre_recall": ratio(pairs, true, nothing),
        "centre_f1": ratio(2 * pairs, found + true, nothing),
    }
