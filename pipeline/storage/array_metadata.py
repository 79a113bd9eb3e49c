"""The metadata file of a stored array, and what its damage looks like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.errors import DamagedError
from pipeline.storage.atomic_files import read_json
from pipeline.storage.shard import ShardLayout

DAMAGE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError)
"""Errors that decoders raise for changed bytes. Not OSError: a read error may be transient and is retried."""


def array_metadata(location: Path) -> dict[str, Any]:
    """The content of an array's zarr.json.

    Raises:
        DamagedError: It is not what was written.
    """
    path = location / "zarr.json"
    match content := read_json(path):
        case {"shape": list(), "attributes": {"overtile": {"plan": str()}}}:
            return dict(content)
    raise DamagedError(f"{path} is not the array metadata that was written: it is damaged. Delete it and rerun")


def stored_plan(location: Path) -> str | None:
    """Plan hash of the array at a folder; None when there is no array."""
    if not (location / "zarr.json").exists():
        return None
    return str(array_metadata(location)["attributes"]["overtile"]["plan"])


def shard_layout(location: Path, metadata: dict[str, Any]) -> ShardLayout:
    """Layout of an array's shards; raises DamagedError when the metadata describe no array of this package."""
    try:
        return ShardLayout.read(metadata)
    except DAMAGE as error:
        raise damaged_metadata(location, error) from error


def damaged_metadata(location: Path, error: Exception) -> DamagedError:
    """The error for an array whose metadata cannot be used."""
    return DamagedError(
        f"{location / 'zarr.json'} is not the array metadata that was written ({error}): it is damaged. "
        f"Delete it and rerun"
    )
