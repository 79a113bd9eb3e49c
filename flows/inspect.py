"""Inspect: what a result is, from its files alone.

The one decision made here: only metadata and directory listings are read, so it answers at once whatever the size.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.plain import printable
from flows.records import figures, slide_record, slide_stores
from pipeline.dropped import unwanted_before
from pipeline.errors import ConfigError, DamagedError
from pipeline.files import read_json
from pipeline.manifest import read_manifest
from pipeline.store import SlideStore


def inspect_stores(path: Path) -> list[dict[str, Any]]:
    """One record for each slide at or below ``path``. Raises ConfigError when there is none."""
    stores = list(slide_stores(path))
    if not stores:
        raise ConfigError(f"{path} holds no results: expected a folder that 'overtile segment' wrote")
    return [_record(store) for store in stores]


def _record(store: SlideStore) -> dict[str, Any]:
    record = {**slide_record(store), "path": str(store.root), "arrays": _arrays(store)}
    if record["state"] != "complete":
        return record
    manifest = read_manifest(store)
    assert manifest is not None, "its state is complete"
    stages = {name: {"facts": stage["facts"], "seconds": _seconds(stage)} for name, stage in manifest["stages"].items()}
    dropped = sorted(path for path in unwanted_before(manifest) if not (store.zarr / path).exists())
    record |= {"dropped": dropped}
    return {**record, **figures(manifest), "plan": manifest["plan"], "stages": stages, "software": manifest["software"]}


def _seconds(stage: dict[str, Any]) -> float:
    return round(float(sum(run["seconds"] for run in stage["runs"])), 1)


def _arrays(store: SlideStore) -> list[dict[str, Any]]:
    found = []
    for current, folders, files in os.walk(store.zarr):
        if "c" not in folders or "zarr.json" not in files:
            continue
        folders.clear()
        location = Path(current)
        found.append({"path": location.relative_to(store.zarr).as_posix(), **_array(location)})
    return sorted(found, key=lambda array: str(array["path"]))


def _array(location: Path) -> dict[str, Any]:
    try:
        metadata = read_json(location / "zarr.json")
        shape, shard = metadata["shape"], metadata["chunk_grid"]["configuration"]["chunk_shape"]
    except (DamagedError, KeyError, TypeError) as error:
        return {"damaged": f"{location / 'zarr.json'}: {error}"}
    sizes = [entry.stat().st_size for entry in (location / "c").rglob("*") if entry.is_file()]
    blocks = 1
    for length, side in zip(shape, shard, strict=True):
        blocks *= -(-length // side)
    return {
        "shape": shape,
        "dtype": metadata["data_type"],
        "shard": shard,
        "bytes": sum(sizes),
        "blocks": blocks,
        "blocks_done": len([size for size in sizes if size]),
    }


def show(records: list[dict[str, Any]], console: Console) -> None:
    """Print the records for a person."""
    for record in records:
        complete = record["state"] == "complete"
        console.print(
            f"[bold]{escape(printable(record['path']))}[/]  [{'green' if complete else 'red'}]{record['state']}[/]",
            soft_wrap=True,
        )
        if not complete:
            console.print(f"  {escape(printable(record.get('cause', 'segment it again to go on')))}", soft_wrap=True)
        else:
            _show_figures(record, console)
        table = Table("array", "shape", "type", "shard", "MB", "blocks")
        for array in record["arrays"]:
            if "damaged" in array:
                table.add_row(array["path"], f"[red]{escape(printable(array['damaged']))}[/]", "", "", "", "")
                continue
            done = f"{array['blocks_done']} / {array['blocks']}"
            megabytes = f"{array['bytes'] / 1e6:.2f}"
            table.add_row(
                array["path"], _times(array["shape"]), array["dtype"], _times(array["shard"]), megabytes, done
            )
        console.print(table)


def _show_figures(record: dict[str, Any], console: Console) -> None:
    plan = record["plan"]
    height, width = plan["image"]["shape_yx"]
    mpp = plan["image"]["mpp"]
    lines = [
        f"{width} x {height} px at {mpp:g} um/px = {width * mpp / 1000:.2f} x {height * mpp / 1000:.2f} mm",
        f"{record['objects']} objects on {record['tissue_mm2']} mm2 of tissue = {record['objects_per_mm2']} per mm2",
        f"model {record['model']} in {plan['compute']['precision']} on {plan['compute']['device']}, "
        f"threshold {plan['threshold']:g}, smallest object {plan['min_area_um2']:g} um2",
        "seconds: " + ", ".join(f"{name} {stage['seconds']}" for name, stage in record["stages"].items()),
        *(f"dropped once complete: {path}, the full resolution" for path in record["dropped"]),
        *(f"warning: {warning}" for warning in record["warnings"]),
    ]
    for line in lines:
        console.print(f"  {escape(printable(line))}", soft_wrap=True, highlight=False)


def _times(lengths: list[int]) -> str:
    return " x ".join(map(str, lengths))
