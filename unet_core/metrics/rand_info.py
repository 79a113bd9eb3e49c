"""V_rand and V_info of membrane segmentations.

The scores of the ISBI 2012 challenge as Arganda-Carreras et al. 2015 define them (10.3389/fnana.2015.00142). Regions
are 4-connected components of what is not membrane. Only pixels of true regions count; predicted membranes are thinned
to one pixel first, so their width does not matter, and a remaining predicted membrane pixel is a region of its own.
With n_ij pixels in predicted region i and true region j, s_i and t_j their sums over j and i, N their sum, p = n / N:

    V_rand = sum p_ij^2 / (1/2 sum s_i^2 + 1/2 sum t_j^2)                                  equation 3, alpha = 1/2
    V_info = I(S; T) / (1/2 H(S) + 1/2 H(T)),  I = H(S) + H(T) - H(S, T)                    equation 5, alpha = 1/2

Sums of squares and of n log n add over images, as if these were side by side.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from skimage.measure import label
from skimage.segmentation import watershed

from unet_core.metrics.overlap import Array, Overlaps, Scores, ratio


def regions(membrane_YX: NDArray[np.bool_]) -> NDArray[np.integer]:
    """Label the regions between membranes from 1; membranes are 0."""
    numbered: NDArray[np.integer] = label(~membrane_YX, connectivity=1)
    return numbered


def thinned_regions(membrane_YX: NDArray[np.bool_]) -> NDArray[np.integer]:
    """Label the regions grown into the membranes until lines of one pixel separate them."""
    before = regions(membrane_YX)
    if not before.any():
        return before
    grown: NDArray[np.integer] = watershed(distance_transform_edt(membrane_YX), before, watershed_line=True)
    return grown


def region_sums(found_YX: NDArray[np.bool_], true_YX: NDArray[np.bool_]) -> Array:
    """Return the sums of one image, (7,): N, sums of squares of n_ij, s_i, t_j, and sums of n log n of the three."""
    overlaps = Overlaps.of(thinned_regions(found_YX), regions(true_YX))
    inside = overlaps.true > 0
    found, true, both = overlaps.found[inside], overlaps.true[inside], overlaps.both[inside].astype(np.float64)
    single = both[found == 0].sum()  # regions of one pixel each: 1 squared, and 1 log 1
    pairs = both[found > 0]
    areas = [pairs, np.bincount(found[found > 0], pairs), np.bincount(true, both)]
    squares = [np.square(area).sum() + extra for area, extra in zip(areas, (single, single, 0.0), strict=True)]
    logs = [(area[area > 0] * np.log(area[area > 0])).sum() for area in areas]
    return np.array([both.sum(), *squares, *logs], np.float64)


def region_scores(sums: Array) -> Scores:
    """Return V_rand and V_info from sums (..., 7); undefined without a true region.

    One true region predicted as one region has no information to share and is perfect.
    """
    total, *others = np.moveaxis(sums, -1, 0)
    squares, logs = others[:3], others[3:]
    rand = ratio(squares[0], (squares[1] + squares[2]) / 2, np.zeros(total.shape, bool))
    known = np.maximum(total, 1)
    joint, found, true = (np.maximum(np.log(known) - one / known, 0) for one in logs)
    some = np.where(total > 0, found + true, 0.0)
    shared = np.maximum(found + true - joint, 0)
    return {"v_rand": rand, "v_info": ratio(2 * shared, np.where(some > 1e-12, some, 0.0), total > 0)}
