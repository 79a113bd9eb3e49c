"""Directories of a TIFF file, parsed and checked before any library interprets them.

Every directory, tag and table is checked to lie inside the file before memory is allocated for it. So a cut file, a
loop of directories, 100,000 directories or a table of a billion entries is reported in one sentence within a second.
tifffile's parser does not replace this one: it looks for a loop at the 100th directory only, does not limit the number
of directories or the sum of table sizes, and reports damage as log messages, mixed with those on harmless private tags.

TIFF 6.0 (Adobe 1992) section 2, BigTIFF, and Hamamatsu's NDPI: classic TIFF with 64-bit offsets, whose upper halves
follow each directory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SlideError
from pipeline.slides.checks.file import DAMAGED, RawFile

MAX_DIRECTORIES = 1000
MAX_TAGS = 4096
MAX_TABLE_BYTES = 1 << 30

LAST_BASELINE_TAG = 400
SUB_IFDS = 330
NDPI_TAG = 65420
_TYPE_CODES = {
    1: "u1", 2: "S1", 3: "u2", 4: "u4", 5: "u4", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 10: "i4", 11: "f4", 12: "f8",
    13: "u4", 16: "u8", 17: "i8", 18: "u8",
}  # fmt: skip
_PAIRS = frozenset({5, 10})


@dataclass(frozen=True, slots=True)
class Layout:
    """Number format of a file: byte order, and the widths of counts, entries and offsets in bytes."""

    order: str
    count_bytes: int
    entry_bytes: int
    offset_bytes: int
    ndpi: bool = False

    @property
    def value_bytes(self) -> int:
        """Width of the value field of an entry."""
        return 8 if self.entry_bytes == 20 else 4


@dataclass(frozen=True, slots=True)
class Entry:
    """One tag: its type code, number of values, and their position and size in the file."""

    type_code: int
    count: int
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Directory:
    """One image of the file: its position and index, its tags and its sub-images."""

    offset: int
    index: int
    tags: Mapping[int, Entry]
    children: tuple[Directory, ...]


def read_layout(file: RawFile) -> tuple[Layout, int]:
    """Number format of the file, and the offset of its first directory."""
    head = file.read(0, 8, "the TIFF header")
    order = "<" if head[:2] == b"II" else ">"
    if head[2:4] in (b"\x2b\x00", b"\x00\x2b"):
        layout = Layout(order, count_bytes=8, entry_bytes=20, offset_bytes=8)
        return layout, file.number(layout.order, 8, 8, "the offset of the first directory")
    layout = Layout(order, count_bytes=2, entry_bytes=12, offset_bytes=4)
    wide = Layout(order, count_bytes=2, entry_bytes=12, offset_bytes=8, ndpi=True)
    if order == "<" and _begins_ndpi(file, wide):
        return wide, file.number(wide.order, 4, 8, "the offset of the first directory")
    return layout, file.number(layout.order, 4, 4, "the offset of the first directory")


def walk(file: RawFile) -> tuple[Layout, tuple[Directory, ...]]:
    """Parse all directories of the main chain, each with its sub-images.

    Raises:
        SlideError: If the chain is empty, loops, leaves the file, or has more than MAX_DIRECTORIES directories.
    """
    layout, first = read_layout(file)
    walker = _Walk(file, layout, set(), [0])
    directories = tuple(walker.chain(first, deep=True))
    if not directories:
        raise SlideError(f"{file.name}: the TIFF holds no image directory. {DAMAGED}")
    return layout, directories


def values(file: RawFile, layout: Layout, entry: Entry, what: str) -> NDArray[Any]:
    """The values of a tag as an array; a rational is a row of two integers."""
    code = _TYPE_CODES[entry.type_code]
    flat = np.frombuffer(file.read(entry.offset, entry.size_bytes, what), np.dtype(layout.order + code))
    return flat.reshape(-1, 2) if entry.type_code in _PAIRS else flat


def text(file: RawFile, entry: Entry | None) -> str:
    """A text tag up to its first NUL; "" when it is missing."""
    if entry is None:
        return ""
    return file.read(entry.offset, entry.size_bytes, "a text tag").split(b"\0")[0].decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class _Walk:
    file: RawFile
    layout: Layout
    seen: set[int]
    table_bytes: list[int]

    def chain(self, offset: int, *, deep: bool) -> Iterator[Directory]:
        """Directories from ``offset`` on, until the next offset is 0."""
        index = 0
        while offset:
            self._enter(offset)
            directory, offset = self._directory(offset, index, deep=deep)
            yield directory
            index += 1

    def _enter(self, offset: int) -> None:
        if offset in self.seen:
            raise SlideError(
                f"{self.file.name}: the directories of the TIFF form a loop: the one at byte {offset} comes twice. "
                f"{DAMAGED}"
            )
        self.seen.add(offset)
        if len(self.seen) > MAX_DIRECTORIES:
            raise SlideError(
                f"{self.file.name}: more than {MAX_DIRECTORIES} image directories; a slide has a few dozen. "
                "Export the one image to segment as a TIFF of its own."
            )

    def _directory(self, offset: int, index: int, *, deep: bool) -> tuple[Directory, int]:
        layout, what = self.layout, f"image directory {index}"
        n_tags = self.file.number(layout.order, offset, layout.count_bytes, what)
        if not 1 <= n_tags <= MAX_TAGS:
            raise SlideError(f"{self.file.name}: {what} at byte {offset} claims {n_tags} tags. {DAMAGED}")
        body = offset + layout.count_bytes
        end = body + n_tags * layout.entry_bytes
        raw = self.file.read(body, n_tags * layout.entry_bytes, what)
        high = self.file.read(end + 8, 4 * n_tags, what) if layout.ndpi else b""
        tags = {code: entry for code, entry in (self._entry(raw, high, body, i) for i in range(n_tags)) if entry}
        children = tuple(self._children(tags)) if deep else ()
        return Directory(offset, index, tags, children), self.file.number(layout.order, end, layout.offset_bytes, what)

    def _entry(self, raw: bytes, high: bytes, body: int, i: int) -> tuple[int, Entry | None]:
        layout, start = self.layout, i * self.layout.entry_bytes
        order: Literal["little", "big"] = "little" if layout.order == "<" else "big"
        fields = raw[start : start + layout.entry_bytes]
        code, type_code = (int.from_bytes(fields[k : k + 2], order) for k in (0, 2))
        count = int.from_bytes(fields[4 : 4 + layout.value_bytes], order)
        offset = int.from_bytes(fields[-layout.value_bytes :], order)
        size = count * _size_of(type_code)
        if size <= layout.value_bytes:
            offset = body + start + layout.entry_bytes - layout.value_bytes
        elif layout.ndpi:
            offset += int.from_bytes(high[4 * i : 4 * i + 4], "little") << 32
        usable = type_code in _TYPE_CODES and self._inside(code, offset, size)
        return code, Entry(type_code, count, offset, size) if usable else None

    def _inside(self, code: int, offset: int, size: int) -> bool:
        """False for a private tag outside the file, which is not needed; SlideError for a tag of the image."""
        self.table_bytes[0] += size
        if offset + size > self.file.size_bytes:
            if code > LAST_BASELINE_TAG:
                return False
            raise SlideError(
                f"{self.file.name}: the table of tag {code} should lie at bytes {offset} to {offset + size}, but the "
                f"file has {self.file.size_bytes} bytes. {DAMAGED}"
            )
        if self.table_bytes[0] > MAX_TABLE_BYTES:
            raise SlideError(f"{self.file.name}: its tags hold more than {MAX_TABLE_BYTES} bytes. {DAMAGED}")
        return True

    def _children(self, tags: Mapping[int, Entry]) -> Iterator[Directory]:
        entry = tags.get(SUB_IFDS)
        if entry is None or entry.type_code not in (4, 13, 16, 18):
            return
        for i, offset in enumerate(values(self.file, self.layout, entry, "the sub-image table")[:MAX_DIRECTORIES]):
            self._enter(int(offset))
            yield self._directory(int(offset), i, deep=False)[0]


def _size_of(type_code: int) -> int:
    width = np.dtype(_TYPE_CODES.get(type_code, "u1")).itemsize
    return 2 * width if type_code in _PAIRS else width


def _begins_ndpi(file: RawFile, wide: Layout) -> bool:
    """Whether the first directory, read with 64-bit offsets, has Hamamatsu's private tag."""
    try:
        offset = file.number(wide.order, 4, 8, "")
        n_tags = file.number(wide.order, offset, 2, "")
        codes = np.frombuffer(file.read(offset + 2, 12 * n_tags, ""), "<u2").reshape(n_tags, 6)[:, 0]
    except SlideError:
        return False
    return bool(np.isin(NDPI_TAG, codes))
