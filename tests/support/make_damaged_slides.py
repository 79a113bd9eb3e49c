"""Write damaged slides, each named by its damage.

Each comes with a phrase that its error must contain. Bytes of a sound file are changed at a position computed from its
own tags, so that each damaged slide differs from a sound one only in what its name states.
"""

from __future__ import annotations

import gzip
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from tests.support.make_slides import (
    SEED,
    TILE,
    Recipe,
    hide_tag,
    overwrite_bytes,
    overwrite_tag,
    stained_image,
    tile_span,
    write_tiff,
)

_TILE_OFFSETS, _TILE_COUNTS = 324, 325


def damaged_slides(folder: Path) -> dict[str, tuple[Path, str]]:
    """Write one slide for each kind of damage; return path and required phrase of the error by name."""
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
        path, np.zeros((200, 300, 7), np.uint8), photometric="rgb", tile=TILE, metadata=None, extrasamples=(0,) * 4
    )


def _palette(path: Path) -> None:
    table = np.zeros((3, 256), np.uint16)
    image = np.zeros((200, 300), np.uint8)
    tifffile.imwrite(path, image, photometric="palette", colormap=table, tile=TILE, metadata=None)


def _cmyk(path: Path) -> None:
    tifffile.imwrite(path, np.zeros((200, 300, 4), np.uint8), photometric="separated", tile=TILE, metadata=None)


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
            writer.write(stained_image(200, 300), tile=TILE, photometric="rgb", metadata=None)


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
    (_tiles_overlap, "shares bytes with another tile"),
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
