"""Names on disk in a slide's folder.

Each name is defined here once, so that readers need not import writers.
"""

from __future__ import annotations

from typing import get_args

from unet_core.spec import MapName

IMAGE, PROBABILITY, OBJECTS = "0", "probability/0", "labels/objects/0"
"""Full-resolution arrays that get a pyramid, as paths in the OME-Zarr."""

MAPS = {name: f"maps/{name}/0" for name in get_args(MapName)}
"""Full-resolution arrays of a network's maps by their names, as paths in the OME-Zarr. They get a pyramid too."""

TISSUE, QUALITY = "tissue", "quality"
"""Coarse arrays of the tissue stage, as paths in the OME-Zarr."""

ZARR = "slide.ome.zarr"
"""The OME-Zarr, below the slide's folder."""

ARRAYS = {
    "image": IMAGE,
    "probability": PROBABILITY,
    **{f"maps/{name}": path for name, path in MAPS.items()},
    "objects": OBJECTS,
    "tissue": TISSUE,
    "quality": QUALITY,
}
"""Arrays by their artifact's name in the stage table, as paths in the OME-Zarr."""

TABLE, GEOJSON, OVERVIEW = "objects.parquet", "objects.geojson.gz", "overview.png"
RESULTS = (TABLE, GEOJSON, OVERVIEW)
"""Files beside the arrays."""

MANIFEST = "manifest.json"
BATCH_FILES = ("summary.md", "report.html", "results.csv", "failures.csv", "batch.json", "history.jsonl")
"""Files of a batch, in the output folder."""
OWN_NAMES = frozenset((ZARR, *RESULTS, MANIFEST, *BATCH_FILES))
"""Names of files and folders that overtile writes, so that no slide's folder can have them."""

FILES = {"table": TABLE, "geojson": GEOJSON, "overview": OVERVIEW}
"""Files by their artifact's name in the stage table."""

LEVELS = "levels"
"""The artifact without a path of its own: everything else in the OME-Zarr, coarser levels and group metadata."""

TISSUE_UM = 8.0
LARGEST_FACTOR = 64


def tissue_factor(mpp: float) -> int:
    """Image pixels along one tissue pixel: the largest power of two of at most 8 um; it divides the cell size."""
    factor = 1
    while factor < LARGEST_FACTOR and 2 * factor * mpp <= TISSUE_UM:
        factor *= 2
    return factor


def path_of(artifact: str) -> str:
    """Path of an artifact's array or file below the slide's folder."""
    return f"{ZARR}/{ARRAYS[artifact]}" if artifact in ARRAYS else FILES[artifact]


def entry_of(path: str) -> str:
    """What is removed together with a file: itself, or the group or array in the OME-Zarr that it belongs to."""
    return "/".join(path.split("/")[:2])


def artifact_of(path: str) -> str:
    """The artifact to which the file at a path below the slide's folder belongs; ``LEVELS`` when no other has it."""
    owners = {artifact: path_of(artifact) for artifact in (*ARRAYS, *FILES)}
    return next((name for name, own in owners.items() if path == own or path.startswith(f"{own}/")), LEVELS)
