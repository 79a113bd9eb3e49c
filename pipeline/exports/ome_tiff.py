"""Export of labels, probability and maps as pyramidal OME-TIFF, for Fiji, QuPath, OMERO and ImageJ macros.

Tiles of 512 px are read and written one after another, so the memory is that of one tile for a slide of any size.
Coarser levels are those of the result, stored as sub-images of the first (OME-TIFF 6).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tifffile
from numpy.typing import NDArray

from pipeline.config import CELL_PX
from pipeline.exports.vector_formats import CompleteResult
from pipeline.geometry import Box, TileGrid
from pipeline.storage.atomic_files import read_json, write_atomic
from pipeline.storage.slide_store import StoredArray

LABELS, PROBABILITY = "labels/objects", "probability"


def write_ome_tiff(result: CompleteResult, group: str, path: Path) -> None:
    """Write the levels of one group as OME-TIFF, atomically.

    Args:
        result: The result.
        group: ``LABELS``, ``PROBABILITY``, or the group of a map.
        path: The file.
    """
    (pyramid,) = read_json(result.store.zarr / group / "zarr.json")["attributes"]["ome"]["multiscales"]
    levels = [result.store.read(f"{group}/{dataset['path']}") for dataset in pyramid["datasets"]]
    um_per_px = pyramid["datasets"][0]["coordinateTransformations"][0]["scale"][-1]
    names = result.section.classes.names if group == PROBABILITY else ()
    write_atomic(path, partial(_write, levels, _metadata(levels[0], um_per_px, names)))


def _metadata(first: StoredArray, um_per_px: float, names: Sequence[str]) -> dict[str, Any]:
    channels = {"Channel": {"Name": list(names)}} if names else {}
    scale = {f"PhysicalSize{axis}{part}": value for axis in "XY" for part, value in (("", um_per_px), ("Unit", "µm"))}
    return {"axes": "CYX"[-len(first.shape) :], **scale, **channels}


def _write(levels: Sequence[StoredArray], metadata: dict[str, Any], file: BinaryIO) -> None:
    with tifffile.TiffWriter(file, bigtiff=True, ome=True) as writer:
        for number, level in enumerate(levels):
            first = number == 0
            writer.write(
                tiles(level),
                shape=level.shape,
                dtype=level.dtype,
                tile=(CELL_PX, CELL_PX),
                photometric="minisblack",
                compression="deflate",
                maxworkers=1,
                subifds=len(levels) - 1 if first else None,
                subfiletype=0 if first else 1,
                metadata=metadata if first else None,
            )


def tiles(level: StoredArray) -> Iterator[NDArray[Any]]:
    """Yield tiles (512, 512) of each channel in turn, in raster order, padded with 0 beyond the edge."""
    channels = range(level.shape[0]) if len(level.shape) == 3 else [None]
    for channel in channels:
        for tile in TileGrid(Box(0, 0, *level.shape[-2:]), CELL_PX):
            slices = tile.core.slices if channel is None else (channel, *tile.core.slices)
            whole = np.zeros((CELL_PX, CELL_PX), level.dtype)
            whole[tile.core.shift(-tile.core.y0, -tile.core.x0).slices] = level[slices]
            yield whole
