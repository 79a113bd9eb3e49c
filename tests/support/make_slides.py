"""Write small slides in every supported layout, and edit their bytes and tags."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile
from numpy.typing import NDArray

CANARIES = ("CANARY-USER", "CANARY-FILE", "CANARY-DATE", "CANARY-LABEL")
SEED = 20261120
TILE = (64, 64)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to store an image: ``levels`` in total, as "pages" or "subifds"; strips if ``tile`` is None."""

    compression: str | int | None = "deflate"
    tile: tuple[int, int] | None = TILE
    rows_per_strip: int | None = None
    levels: int = 1
    layout: str = "pages"
    mpp: float | None = 0.5
    planar: bool = False
    predictor: bool = False
    bigtiff: bool = False
    byteorder: Literal["<", ">"] = "<"
    extrasamples: tuple[int, ...] | None = None
    description: str | None = None


def stained_image(height: int, width: int, dtype: type = np.uint8) -> NDArray[Any]:
    """Return a fixed picture (y, x, 3) of pink tissue with dark spots on white glass, smooth enough for JPEG."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    waves = np.sin(x / 9) * np.cos(y / 7) + np.sin((x + 2 * y) / 23)
    tissue = np.hypot(y - height / 2, x - width / 2) < 0.45 * max(height, width)
    spots = waves > 1.1
    rgb = np.stack([225 + 8 * waves, 150 + 20 * waves, 195 + 12 * waves], axis=-1)
    rgb[spots] = (90, 60, 140)
    rgb[~tissue] = (243, 242, 244)
    scale = np.iinfo(dtype).max // 255
    image: NDArray[Any] = np.clip(rgb, 0, 255).astype(dtype) * dtype(scale)
    return image


def noise_image(height: int, width: int, samples: int = 1, dtype: type = np.uint8) -> NDArray[Any]:
    """Return seeded noise: every pixel differs from its neighbours, so that a shift by one pixel is detected."""
    shape = (height, width) if samples == 1 else (height, width, samples)
    return np.random.default_rng(SEED).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def halved(image: NDArray[Any]) -> NDArray[Any]:
    """Return every second pixel, without an odd last one, as scanners make levels."""
    return image[: image.shape[0] // 2 * 2 : 2, : image.shape[1] // 2 * 2 : 2]


def write_tiff(path: Path, image: NDArray[Any], recipe: Recipe = Recipe()) -> Path:
    """Write ``image`` ((y, x) or (y, x, s)) as a generic TIFF stored as in ``recipe``."""
    subifds = recipe.levels - 1 if recipe.layout == "subifds" else 0
    with tifffile.TiffWriter(path, bigtiff=recipe.bigtiff, byteorder=recipe.byteorder) as writer:
        for level in range(recipe.levels):
            options = _options(image, recipe, level)
            writer.write(_stored(image, recipe), subifds=subifds if level == 0 else None, **options)
            image = halved(image)
    return path


def _stored(image: NDArray[Any], recipe: Recipe) -> NDArray[Any]:
    return np.moveaxis(image, -1, 0).copy() if recipe.planar and image.ndim == 3 else image.copy()


def _options(image: NDArray[Any], recipe: Recipe, level: int) -> dict[str, Any]:
    samples = 1 if image.ndim == 2 else image.shape[-1]
    resolution = None if recipe.mpp is None else (1e4 / recipe.mpp / 2**level,) * 2
    return {
        "photometric": "rgb" if samples in (3, 4) else "minisblack",
        "planarconfig": None if samples == 1 else "separate" if recipe.planar else "contig",
        "extrasamples": recipe.extrasamples,
        "compression": recipe.compression,
        "predictor": recipe.predictor or None,
        "tile": recipe.tile,
        "rowsperstrip": recipe.rows_per_strip,
        "resolution": resolution,
        "resolutionunit": "NONE" if resolution is None else "CENTIMETER",
        "subfiletype": 1 if level and recipe.layout == "pages" else 0,
        "description": recipe.description if level == 0 else None,
        "metadata": None,
        "software": False,
    }


def write_svs(path: Path, image: NDArray[Any], mpp: float | None = 0.25, levels: int = 2) -> Path:
    """Write an Aperio-like slide: tiled JPEG levels, thumbnail, label and macro in strips, and personal canaries."""
    stated = "" if mpp is None else f"|MPP = {mpp}"
    about = f"|AppMag = 20|User = {CANARIES[0]}|Filename = {CANARIES[1]}|Date = {CANARIES[2]}{stated}"
    text = f"Aperio Image Library v11.2.1\r\n{image.shape[1]}x{image.shape[0]} (64x64) JPEG/RGB Q=90{about}"
    options: dict[str, Any] = {"photometric": "rgb", "metadata": None, "software": False}
    jpeg: dict[str, Any] = {"compression": "jpeg", "compressionargs": {"level": 90, "outcolorspace": "rgb"}}
    with tifffile.TiffWriter(path) as writer:
        writer.write(image, tile=TILE, description=text, **jpeg, **options)
        writer.write(halved(halved(image)), rowsperstrip=16, description=text, **jpeg, **options)
        for level in range(1, levels):
            writer.write(image[:: 2**level, :: 2**level].copy(), tile=TILE, description=text, **jpeg, **options)
        label = f"Aperio Image Library v11.2.1\r\nlabel {CANARIES[3]}"
        writer.write(image[:40, :30].copy(), rowsperstrip=8, description=label, subfiletype=1, **options)
        writer.write(image[:40, :90].copy(), rowsperstrip=8, description=label, subfiletype=9, **options)
    return path


def write_ome(
    path: Path, planes_CYX: NDArray[Any], mpp: float = 0.5, levels: int = 1, names: tuple[str, ...] = ()
) -> Path:
    """Write an OME-TIFF with one image a channel, and ``levels - 1`` sub-images each."""
    metadata: dict[str, Any] = {"axes": "CYX", "PhysicalSizeX": mpp, "PhysicalSizeY": mpp}
    if names:
        metadata["Channel"] = {"Name": list(names)}
    options: dict[str, Any] = {"photometric": "minisblack", "tile": TILE, "compression": "deflate"}
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(planes_CYX, subifds=levels - 1, metadata=metadata, **options)
        for level in range(1, levels):
            smaller = np.stack([plane[:: 2**level, :: 2**level] for plane in planes_CYX])
            writer.write(smaller, subfiletype=1, **options)
    return path


def overwrite_tag(path: Path, code: int, value: Any, page: int = 0) -> None:
    """Overwrite the value of a tag in place."""
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[page].tags[code].overwrite(value)  # type: ignore[union-attr]


def hide_tag(path: Path, code: int) -> None:
    """Hide a tag by giving it a private code."""
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages.first.tags[code].offset
    overwrite_bytes(path, offset, struct.pack("<H", 65001))


def overwrite_bytes(path: Path, offset: int, data: bytes) -> None:
    """Overwrite bytes in place."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def tile_span(path: Path, index: int) -> tuple[int, int]:
    """Return offset and byte count of a tile of the first image."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        return page.dataoffsets[index], page.databytecounts[index]
