"""Write small slides for tests: good ones in every supported layout, and damaged ones with a name for each damage.

The one decision made here: damage is done to the bytes of a file that was good, at a place computed from its own
tags, so that each damaged slide differs from a sound one in exactly the thing its name says.
"""

from __future__ import annotations

import gzip
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile
from numpy.typing import NDArray

CANARIES = ("CANARY-USER", "CANARY-FILE", "CANARY-DATE", "CANARY-LABEL")
SEED = 20261120
_TILE = (64, 64)
_TILE_OFFSETS, _TILE_COUNTS = 324, 325


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to store an image: ``levels`` in all, as "pages" or "subifds"; strips when ``tile`` is None."""

    compression: str | int | None = "deflate"
    tile: tuple[int, int] | None = _TILE
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
    """(y, x, 3) picture of pink tissue with dark spots on white glass, smooth enough for JPEG, same every time."""
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
    """Seeded noise: every pixel different from its neighbours, so that a shift by one is seen."""
    shape = (height, width) if samples == 1 else (height, width, samples)
    return np.random.default_rng(SEED).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def halved(image: NDArray[Any]) -> NDArray[Any]:
    """Every second pixel, the odd last one dropped, as scanners make levels."""
    return image[: image.shape[0] // 2 * 2 : 2, : image.shape[1] // 2 * 2 : 2]


def write_tiff(path: Path, image: NDArray[Any], recipe: Recipe = Recipe()) -> Path:
    """A generic TIFF of ``image`` ((y, x) or (y, x, s)) stored as ``recipe`` says."""
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
    """An Aperio-like slide: tiled JPEG levels, and a thumbnail, label and macro in strips; with personal canaries."""
    stated = "" if mpp is None else f"|MPP = {mpp}"
    about = f"|AppMag = 20|User = {CANARIES[0]}|Filename = {CANARIES[1]}|Date = {CANARIES[2]}{stated}"
    text = f"Aperio Image Library v11.2.1\r\n{image.shape[1]}x{image.shape[0]} (64x64) JPEG/RGB Q=90{about}"
    options: dict[str, Any] = {"photometric": "rgb", "metadata": None, "software": False}
    jpeg: dict[str, Any] = {"compression": "jpeg", "compressionargs": {"level": 90, "outcolorspace": "rgb"}}
    with tifffile.TiffWriter(path) as writer:
        writer.write(image, tile=_TILE, description=text, **jpeg, **options)
        writer.write(halved(halved(image)), rowsperstrip=16, description=text, **jpeg, **options)
        for level in range(1, levels):
            writer.write(image[:: 2**level, :: 2**level].copy(), tile=_TILE, description=text, **jpeg, **options)
        label = f"Aperio Image Library v11.2.1\r\nlabel {CANARIES[3]}"
        writer.write(image[:40, :30].copy(), rowsperstrip=8, description=label, subfiletype=1, **options)
        writer.write(image[:40, :90].copy(), rowsperstrip=8, description=label, subfiletype=9, **options)
    return path


def write_ome(path: Path, planes_CYX: NDArray[Any], mpp: float = 0.5, levels: int = 1) -> Path:
    """An OME-TIFF with one image a channel, and ``levels - 1`` sub-images each."""
    metadata = {"axes": "CYX", "PhysicalSizeX": mpp, "PhysicalSizeY": mpp}
    options: dict[str, Any] = {"photometric": "minisblack", "tile": _TILE, "compression": "deflate"}
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(planes_CYX, subifds=levels - 1, metadata=metadata, **options)
        for level in range(1, levels):
            smaller = np.stack([plane[:: 2**level, :: 2**level] for plane in planes_CYX])
            writer.write(smaller, subfiletype=1, **options)
    return path


def overwrite_tag(path: Path, code: int, value: Any, page: int = 0) -> None:
    """Give a tag another value in place."""
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[page].tags[code].overwrite(value)  # type: ignore[union-attr]


def hide_tag(path: Path, code: int) -> None:
    """Take a tag away by giving it a private code."""
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages.first.tags[code].offset
    overwrite_bytes(path, offset, struct.pack("<H", 65001))


def overwrite_bytes(path: Path, offset: int, data: bytes) -> None:
    """Replace bytes in place."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def tile_span(path: Path, index: int) -> tuple[int, int]:
    """Offset and byte count of a tile of the first image."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        return page.dataoffsets[index], page.databytecounts[index]


def damaged_slides(folder: Path) -> dict[str, tuple[Path, str]]:
    """Write one slide for each damage; by name its path and a phrase the error about it must hold."""
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, tuple[Path, str]] = {}
    for maker, phrase in _DAMAGES:
        name = maker.__name__.lstrip("_")
        path = folder / f"{name}.tif"
        maker(path)
        made[name] = (path, phrase)
    return made


def _good(path: Path, **changes: Any) -> Path:
    return write_tiff(path, stained_image(200, 300), Recipe(**changes))


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _six_bytes(path: Path) -> None:
    path.write_bytes(b"II\x2a\x00\x08\x00")


def _html(path: Path) -> None:
    path.write_bytes(b"\n<!DOCTYPE html><html><body>404 not found</body></html>")


def _gzipped(path: Path) -> None:
    path.write_bytes(gzip.compress(b"II\x2a\x00" * 100, mtime=0))


def _zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("slide.tif", b"II\x2a\x00")


def _pdf(path: Path) -> None:
    path.write_bytes(b"%PDF-1.7\n" + bytes(100))


def _folder(path: Path) -> None:
    path.mkdir()


def _dangling_link(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere.tif")


def _link_loop(path: Path) -> None:
    path.symlink_to(path)


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _cut_in_last_tile(path: Path) -> None:
    offset, count = tile_span(_good(path), 19)
    os.truncate(path, offset + count // 2)


def _cut_in_directory(path: Path) -> None:
    os.truncate(_good(path), 30)


def _directory_past_end(path: Path) -> None:
    overwrite_bytes(_good(path), 4, struct.pack("<I", 1 << 30))


def _jpeg_scan_damaged(path: Path) -> None:
    offset, count = tile_span(_good(path, compression="jpeg"), 7)
    overwrite_bytes(path, offset + count - 40, bytes(30))


def _jpeg_of_another_size(path: Path) -> None:
    offset, count = tile_span(_good(path, compression="jpeg"), 7)
    data = path.read_bytes()[offset : offset + count]
    frame = data.index(b"\xff\xc0")
    overwrite_bytes(path, offset + frame + 5, struct.pack(">HH", 32, 32))


def _random_tile(path: Path) -> None:
    offset, count = tile_span(_good(path, compression="jpeg"), 7)
    overwrite_bytes(path, offset, np.random.default_rng(SEED).bytes(count))


def _jpeg2000_cut(path: Path) -> None:
    offset, count = tile_span(_good(path, compression="jpeg2000"), 7)
    overwrite_bytes(path, offset + count // 3, bytes(count - count // 3))


def _deflate_tail_damaged(path: Path) -> None:
    offset, count = tile_span(_good(path), 7)
    overwrite_bytes(path, offset + count - 3, b"\x5a\xa5\x5a")


def _lzw_damaged(path: Path) -> None:
    offset, count = tile_span(_good(path, compression="lzw"), 7)
    overwrite_bytes(path, offset + count // 2, b"\xff" * (count // 2))


def _count_zero(path: Path) -> None:
    counts = [tile_span(_good(path), index)[1] for index in range(20)]
    overwrite_tag(path, _TILE_COUNTS, [*counts[:7], 0, *counts[8:]])


def _table_missing(path: Path) -> None:
    hide_tag(_good(path), _TILE_OFFSETS)


def _table_short(path: Path) -> None:
    offsets = [tile_span(_good(path), index)[0] for index in range(20)]
    overwrite_tag(path, _TILE_OFFSETS, offsets[:12])


def _offset_past_end(path: Path) -> None:
    offsets = [tile_span(_good(path), index)[0] for index in range(20)]
    overwrite_tag(path, _TILE_OFFSETS, [*offsets[:7], 1 << 30, *offsets[8:]])


def _tiles_overlap(path: Path) -> None:
    offsets = [tile_span(_good(path), index)[0] for index in range(20)]
    overwrite_tag(path, _TILE_OFFSETS, [*offsets[:7], offsets[6] + 5, *offsets[8:]])


def _plain_tile_short(path: Path) -> None:
    counts = [tile_span(_good(path, compression=None), index)[1] for index in range(20)]
    overwrite_tag(path, _TILE_COUNTS, [*counts[:7], 100, *counts[8:]])


def _width_zero(path: Path) -> None:
    overwrite_tag(_good(path), 256, 0)


def _height_zero(path: Path) -> None:
    overwrite_tag(_good(path), 257, 0)


def _tile_zero(path: Path) -> None:
    overwrite_tag(_good(path), 322, 0)


def _huge(path: Path) -> None:
    overwrite_tag(_good(path), 256, 2**31 - 1)
    overwrite_tag(path, 257, 2**31 - 1)


def _tile_width_huge(path: Path) -> None:
    overwrite_tag(_good(path), 322, 1 << 30)


def _bits_missing(path: Path) -> None:
    hide_tag(_good(path), 258)


def _bits_12(path: Path) -> None:
    overwrite_tag(_good(path), 258, (12, 12, 12))


def _bits_32(path: Path) -> None:
    write_tiff(path, np.zeros((200, 300), np.uint32), Recipe())


def _floating_point(path: Path) -> None:
    write_tiff(path, np.full((200, 300), np.nan, np.float32), Recipe())


def _signed(path: Path) -> None:
    write_tiff(path, np.zeros((200, 300), np.int16), Recipe())


def _seven_samples(path: Path) -> None:
    tifffile.imwrite(
        path, np.zeros((200, 300, 7), np.uint8), photometric="rgb", tile=_TILE, metadata=None, extrasamples=(0,) * 4
    )


def _palette(path: Path) -> None:
    table = np.zeros((3, 256), np.uint16)
    image = np.zeros((200, 300), np.uint8)
    tifffile.imwrite(path, image, photometric="palette", colormap=table, tile=_TILE, metadata=None)


def _cmyk(path: Path) -> None:
    tifffile.imwrite(path, np.zeros((200, 300, 4), np.uint8), photometric="separated", tile=_TILE, metadata=None)


def _unknown_compression(path: Path) -> None:
    overwrite_tag(_good(path), 259, 4711)


def _directory_loop(path: Path) -> None:
    _good(path)
    data = path.read_bytes()
    first = struct.unpack("<I", data[4:8])[0]
    n_tags = struct.unpack("<H", data[first : first + 2])[0]
    overwrite_bytes(path, first + 2 + 12 * n_tags, struct.pack("<I", first))


def _directories_100000(path: Path) -> None:
    links = (struct.pack("<HHHIII", 1, 254, 4, 1, 0, 8 + 18 * (k + 1)) for k in range(100_000))
    path.write_bytes(b"II\x2a\x00\x08\x00\x00\x00" + b"".join(links) + bytes(18))


def _bomb_tile(path: Path) -> None:
    _good(path)
    bomb = zlib.compress(bytes(64 << 20), 9)
    offset = path.stat().st_size
    with path.open("ab") as file:
        file.write(bomb)
    offsets, counts = zip(*(tile_span(path, index) for index in range(20)), strict=True)
    overwrite_tag(path, _TILE_OFFSETS, [*offsets[:7], offset, *offsets[8:]])
    overwrite_tag(path, _TILE_COUNTS, [*counts[:7], len(bomb), *counts[8:]])


def _xml_bomb(path: Path) -> None:
    entities = '<!ENTITY a "aaaaaaaaaa">' + "".join(
        f'<!ENTITY {chr(98 + k)} "{("&" + chr(97 + k) + ";") * 10}">' for k in range(9)
    )
    _good(path, description=f'<?xml version="1.0"?><!DOCTYPE OME [{entities}]><OME><Image>&j;</Image></OME>')


def _twin_images(path: Path) -> None:
    with tifffile.TiffWriter(path) as writer:
        for _ in range(2):
            writer.write(stained_image(200, 300), tile=_TILE, photometric="rgb", metadata=None)


_DAMAGES: tuple[tuple[Callable[[Path], None], str], ...] = (
    (_empty, "an empty file"),
    (_six_bytes, "cut short"),
    (_html, "a web page"),
    (_gzipped, "gzip"),
    (_zipped, "a zip archive"),
    (_pdf, "a PDF"),
    (_folder, "a folder"),
    (_dangling_link, "a link to nothing"),
    (_link_loop, "cannot be looked at"),
    (_fifo, "a FIFO"),
    (_device, "a character device"),
    (_cut_in_last_tile, "behind the end of the file"),
    (_cut_in_directory, "did not finish"),
    (_directory_past_end, "did not finish"),
    (_jpeg_scan_damaged, "tile (1, 2)"),
    (_jpeg_of_another_size, "64 x 64 px of 3 components expected, the stream holds 32 x 32 px"),
    (_random_tile, "tile (1, 2)"),
    (_jpeg2000_cut, "tile (1, 2)"),
    (_deflate_tail_damaged, "tile (1, 2)"),
    (_lzw_damaged, "tile (1, 2)"),
    (_count_zero, "tile (1, 2)"),
    (_table_missing, "the tile table is missing or short"),
    (_table_short, "the tile table is missing or short"),
    (_offset_past_end, "tile (1, 2)"),
    (_tiles_overlap, "tile (1, 2)"),
    (_plain_tile_short, "fewer bytes than its uncompressed pixels need"),
    (_width_zero, "a side is missing or 0"),
    (_height_zero, "a side is missing or 0"),
    (_tile_zero, "expected sides of 16 to 8192"),
    (_huge, "the budget is"),
    (_tile_width_huge, "expected sides of 16 to 8192"),
    (_bits_missing, "BitsPerSample is missing"),
    (_bits_12, "12 bits"),
    (_bits_32, "32 bits"),
    (_floating_point, "floating point"),
    (_signed, "signed integers"),
    (_seven_samples, "7 samples"),
    (_palette, "palette"),
    (_cmyk, "CMYK"),
    (_unknown_compression, "compression 4711"),
    (_directory_loop, "loop"),
    (_directories_100000, "more than 1000 image directories"),
    (_bomb_tile, "tile (1, 2)"),
    (_xml_bomb, "declares entities"),
    (_twin_images, "2 images of 300 x 200"),
)
