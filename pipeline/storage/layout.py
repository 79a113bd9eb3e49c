"""What lies where in a slide's folder, by the names everybody uses.

The one decision made here: a name on disk is written down once, so that who reads imports nothing of who writes.
"""

from __future__ import annotations

IMAGE, PROBABILITY, OBJECTS = "0", "probability/0", "labels/objects/0"
"""Full-resolution arrays that get a pyramid, as paths in the OME-Zarr."""

TISSUE, QUALITY = "tissue", "quality"
"""Coarse arrays of the tissue stage, as paths in the OME-Zarr."""

TABLE, GEOJSON, OVERVIEW = "objects.parquet", "objects.geojson.gz", "overview.png"
RESULTS = (TABLE, GEOJSON, OVERVIEW)
"""What stands beside the arrays."""

TISSUE_UM = 8.0
LARGEST_FACTOR = 64


def tissue_factor(mpp: float) -> int:
    """Image pixels along one tissue pixel: the largest power of two that stays at or below 8 um, dividing a cell."""
    factor = 1
    while factor < LARGEST_FACTOR and 2 * factor * mpp <= TISSUE_UM:
        factor *= 2
    return factor
