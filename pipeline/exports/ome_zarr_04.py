"""Export of a result as OME-Zarr 0.4 (zarr 2), for versions of QuPath, Bio-Formats and OMERO that do not read 0.5.

Pixels and metadata are those of the result. Each level is copied block by block into chunks of one cell.

Format: ngff.openmicroscopy.org/0.4; Blosc with lz4, dimension separator "/".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import zarr
from numcodecs.blosc import Blosc
from zarr.storage import LocalStore

from pipeline.config import CELL_PX
from pipeline.exports.vector_formats import CompleteResult
from pipeline.geometry import Box, TileGrid
from pipeline.storage.atomic_files import fsync_tree, read_json, write_json
from pipeline.storage.slide_store import StoredArray

VERSION = "0.4"


def write_ngff04(result: CompleteResult, folder: Path) -> None:
    """Write image, probability and labels of a result below ``folder``, which must not exist."""
    source = result.store.zarr
    for group in _groups(source):
        attributes = read_json(source / group / "zarr.json")["attributes"].get("ome", {})
        target = folder / group
        for level in attributes.get("multiscales", [{"datasets": []}])[0]["datasets"]:
            path = (Path(group) / level["path"]).as_posix()
            _copy(result.store.read(path), target / level["path"])
        write_json(target / ".zgroup", {"zarr_format": 2})
        write_json(target / ".zattrs", translated(attributes))
    fsync_tree(folder)


def _groups(source: Path) -> Iterator[Path]:
    """Groups of the result, relative to it, in order of name."""
    for metadata in sorted(source.rglob("zarr.json")):
        if read_json(metadata).get("node_type") == "group":
            yield metadata.parent.relative_to(source)


def translated(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the attributes of a group from 0.5 to 0.4: no ``ome`` around them, and the version in each part."""
    found = deepcopy(dict(attributes))
    found.pop("version", None)
    for multiscale in found.get("multiscales", ()):
        multiscale["version"] = VERSION
    for name in ("omero", "image-label"):
        if name in found:
            found[name]["version"] = VERSION
    return found


def _copy(array: StoredArray, folder: Path) -> None:
    """Copy one level; one block is in memory at a time."""
    made = zarr.create_array(
        LocalStore(folder),
        shape=array.shape,
        dtype=array.dtype,
        chunks=(*array.shape[:-2], CELL_PX, CELL_PX),
        compressors=Blosc(cname="lz4", clevel=5, shuffle=Blosc.SHUFFLE),
        fill_value=0,
        zarr_format=2,
        chunk_key_encoding={"name": "v2", "separator": "/"},
        config={"write_empty_chunks": True},
    )
    for tile in TileGrid(Box(0, 0, *array.shape[-2:]), array.block_px):
        made[(..., *tile.core.slices)] = array.read(tile.core)
