"""Matching of predicted centres with annotated ones."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial import cKDTree

from unet_core.metrics.overlap import Counts

Array = NDArray[Any]


def centre_counts(found_N2: Array, true_N2: Array, within_px: float) -> Counts:
    """Match centres (y, x) one to one within a distance, as many as possible."""
    both = 0
    if len(found_N2) and len(true_N2):
        near = cKDTree(found_N2).sparse_distance_matrix(cKDTree(true_N2), within_px, output_type="coo_matrix").tocsr()
        near.data[:] = 1
        both = int((maximum_bipartite_matching(near, perm_type="column") >= 0).sum())
    return Counts(both, len(found_N2) - both, len(true_N2) - both)
