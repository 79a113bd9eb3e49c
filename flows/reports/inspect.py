"""Inspection of results from their metadata.

Only metadata and directory listings are read, so the run time does not depend on the number of pixels. Counts over
pixels (objects, areas, seams) were computed by the run and are read from the manifest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from flows.batch.result_records import figures, slide_record, slide_stores
from flows.batch.result_rows import manifest_rows
from pipeline.errors import ConfigError, DamagedError
from pipeline.printable import printable
from pipeline.runs.prune import pruned_parts
from pipeline.storage.atomic_files import read_json
from pipeline.storage.manifest import read_manifest
from pipeline.storage.slide_store import SlideStore

IMAGES = {"image": "", "probability": "probability", "objects": "labels/objects"}
"""The pyramids of a result and their paths in the OME-Zarr."""
BITS = {"bool": 8}


def inspect_stores(path: Path) -> list[dict[str, Any]]:
    """Return one record for each slide at or below ``path``.

    Raises:
        ConfigError: If there is none.
    """
    stores = list(slide_stores(path))
    if not stores:
        raise ConfigError(f"{path} holds no results: expected a folder that 'overtile segment' wrote")
    return [_record(store) for store in stores]


def _record(store: SlideStore) -> dict[str, Any]:
    record = {**slide_record(store), "path": str(store.root), "arrays": _arrays(store)}
    if record["state"] != "complete":
        return record
    manifest = read_manifest(store)
    assert manifest is not None, "the state is complete"
    plan, stages = manifest["plan"], manifest["stages"]
    pyramids = {name: list(_levels(store, group)) for name, group in IMAGES.items()}
    return {
        **record,
        "dropped": sorted(_dropped(pyramids)),
        "pruned": _pruned(manifest),
        **figures(manifest),
        "size_mm": [round(side * plan["image"]["mpp"] / 1000, 4) for side in plan["image"]["shape_yx"]],
        "pyramids": pyramids,
        "classes": [row for row in manifest_rows(manifest) if "class" in row],
        "seam": stages["predict"]["facts"].get("seam"),
        "plan": plan,
        "stages": {name: _stage(stage) for name, stage in stages.items()},
        "software": manifest["software"],
        "bytes": sum(entry["size"] for entry in manifest["files"].values()),
    }


def _pruned(manifest: dict[str, Any]) -> dict[str, Any] | None:
    """The pruned parts, with time and number of bytes."""
    if "pruned" not in manifest:
        return None
    pruned = manifest["pruned"]
    return {"parts": pruned_parts(manifest), "when": pruned["when"], "bytes": pruned["bytes"]}


def _stage(stage: dict[str, Any]) -> dict[str, Any]:
    runs = stage["runs"]
    seconds, computed = sum(run["seconds"] for run in runs), sum(run["computed"] for run in runs)
    return {"facts": stage["facts"], "seconds": round(float(seconds), 1), "runs": len(runs), "computed": computed}


def _levels(store: SlideStore, group: str) -> Iterator[dict[str, Any]]:
    """The levels listed in the metadata of a pyramid, finest first; none if the pyramid does not exist."""
    metadata = store.zarr / group / "zarr.json"
    if not metadata.exists():
        return
    (pyramid,) = read_json(metadata)["attributes"]["ome"]["multiscales"]
    for dataset in pyramid["datasets"]:
        path = Path(group, dataset["path"]).as_posix()
        scale = dataset["coordinateTransformations"][0]["scale"]
        yield {"path": path, "shape": read_json(store.zarr / path / "zarr.json")["shape"], "um_per_px": scale[-1]}


def _dropped(pyramids: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Full-resolution arrays that are missing although coarser levels exist."""
    for name, levels in pyramids.items():
        full = Path(IMAGES[name], "0").as_posix()
        if levels and levels[0]["path"] != full:
            yield full


# ---- arrays ----------------------------------------------------------------------------------------------------------


def _arrays(store: SlideStore) -> list[dict[str, Any]]:
    arrays = []
    for current, folders, files in os.walk(store.zarr):
        if "c" not in folders or "zarr.json" not in files:
            continue
        folders.clear()
        location = Path(current)
        arrays.append({"path": location.relative_to(store.zarr).as_posix(), **_array(location)})
    return sorted(arrays, key=lambda array: str(array["path"]))


def _array(location: Path) -> dict[str, Any]:
    try:
        metadata = read_json(location / "zarr.json")
        shape, shard = metadata["shape"], metadata["chunk_grid"]["configuration"]["chunk_shape"]
        (sharding,) = metadata["codecs"]
        inside = sharding["configuration"]
        chunk, codecs = inside["chunk_shape"], [codec["name"] for codec in inside["codecs"]]
        raw = prod(shape) * _bytes_of(metadata["data_type"])
        blocks = prod(-(-length // side) for length, side in zip(shape, shard, strict=True))
    except (DamagedError, LookupError, TypeError, ValueError) as error:
        return {"damaged": f"{location / 'zarr.json'}: {error}"}
    sizes = list(_sizes(location / "c"))
    return {
        "shape": shape,
        "dtype": metadata["data_type"],
        "chunk": chunk,
        "shard": shard,
        "codecs": codecs,
        "bytes": sum(sizes),
        "ratio": round(raw / sum(sizes), 2) if any(sizes) else None,
        "blocks": blocks,
        "blocks_done": len([size for size in sizes if size]),
    }


def _bytes_of(data_type: str) -> int:
    """Bytes of a sample; the digits at the end of a data type are its bits."""
    name = data_type.rstrip("0123456789")
    return (int(data_type[len(name) :]) if name != data_type else BITS[data_type]) // 8


def _sizes(folder: Path | str) -> Iterator[int]:
    """Sizes of all files below a folder."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _sizes(entry.path)
            else:
                yield entry.stat(follow_symlinks=False).st_size


def describe_seams(seam: dict[str, Any] | None) -> str:
    """Describe the result of the seam check."""
    if seam is None:
        return "too few seams to measure, or written by an earlier version"
    return printable(
        f"{seam['ratio']:.3f} +- {seam['error']:.3f} at {seam['places']} positions "
        "(1 = block and tile borders are invisible; above 1.2 they are visible)"
    )
