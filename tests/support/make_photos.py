"""Write photos and OME-Zarr images for tests.

The libraries differ from those of the readers under test. PNG and JPEG are written by Pillow or imagecodecs, OME-Zarr
chunks by zarr with metadata spelt out as printed in the specification.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import zarr
from numpy.typing import NDArray
from PIL import Image


def write_png(path: Path, image: NDArray[Any], mpp: float | None = 0.5) -> Path:
    """Write ``image`` ((y, x) or (y, x, s)) as PNG; 8 bits with pHYs, 16 bits without."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if image.dtype == np.uint16:
        path.write_bytes(imagecodecs.png_encode(image))
    else:
        Image.fromarray(image).save(path, **({} if mpp is None else {"dpi": (25400 / mpp, 25400 / mpp)}))
    return path


def write_jpeg(path: Path, image: NDArray[np.uint8], mpp: float | None = 0.5, **options: Any) -> Path:
    """Write ``image`` as JPEG with a JFIF density (an integer number of dots per inch)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    density = {} if mpp is None else {"dpi": (round(25400 / mpp), round(25400 / mpp))}
    Image.fromarray(image).save(path, quality=92, **density, **options)
    return path


def write_zarr(
    path: Path,
    image: NDArray[Any],
    version: str = "0.4",
    axes: str = "cyx",
    mpp: float | None = 0.5,
    levels: int = 2,
    names: Sequence[str] = (),
    chunk: int = 64,
) -> Path:
    """Write ``image`` with these ``axes`` as OME-Zarr; every level is every second pixel of the one before."""
    group = zarr.open_group(str(path), mode="w", zarr_format=2 if version == "0.4" else 3)
    datasets = []
    for level in range(levels):
        smaller = image[..., :: 2**level, :: 2**level]
        chunks = (*(1 for _ in smaller.shape[:-2]), chunk, chunk)
        array = group.create_array(
            str(level), shape=smaller.shape, chunks=chunks, dtype=smaller.dtype, **_keys(version)
        )
        array.with_config({"write_empty_chunks": True})[:] = smaller
        scale = [1.0] * (len(axes) - 2) + [(mpp or 1.0) * 2**level] * 2
        datasets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    stated = {"version": version} if version == "0.4" else {}
    multiscales = [{**stated, "axes": [_axis(axis, mpp) for axis in axes], "datasets": datasets}]
    described: dict[str, Any] = {"multiscales": multiscales}
    if names:
        described["omero"] = {"channels": [{"label": name, "color": "FFFFFF"} for name in names]}
    group.attrs.update(described if version == "0.4" else {"ome": {"version": version, **described}})
    return path


def _keys(version: str) -> dict[str, Any]:
    return {"chunk_key_encoding": {"name": "v2", "separator": "/"}} if version == "0.4" else {}


def _axis(name: str, mpp: float | None) -> dict[str, str]:
    kind = {"t": "time", "c": "channel"}.get(name, "space")
    unit = {"unit": "micrometer"} if kind == "space" and mpp is not None else {}
    return {"name": name, "type": kind, **unit}


def edit_json(path: Path, change: Any) -> None:
    """Call ``change`` on a JSON document and write it back."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
