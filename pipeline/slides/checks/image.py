"""Check an image description of a file before any pixel is decoded.

Pure: facts of a directory in, SlideError out. Everything that the decoding library would repair without an error is
refused. The library decodes a tile of no bytes as black, a missing tile table as a black slide, and pixels without
BitsPerSample as 1-bit pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SlideError
from pipeline.geometry import Box
from pipeline.slide_reader import TileError, TileIndex

MAX_SIDE_PX = 1 << 20
MAX_PIXELS = 1 << 37
TILE_SIDES_PX = (16, 8192)
MAX_SEGMENT_BYTES = 1 << 29
STRIP_BYTES = 1 << 20

COMPRESSIONS = {
    1: "none", 5: "LZW", 7: "JPEG", 8: "deflate", 32773: "PackBits", 32946: "deflate", 33003: "JPEG 2000 YCbCr",
    33004: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000", 34926: "zstd", 50000: "zstd",
}  # fmt: skip
JPEG, JPEG_2000, JPEG_2000_YCC = 7, frozenset({33003, 33004, 33005, 34712}), 33003
_OTHER_COMPRESSIONS = {
    2: "CCITT", 3: "CCITT fax 3", 4: "CCITT fax 4", 6: "old-style JPEG", 34887: "LERC", 34892: "lossy DNG JPEG",
    34925: "LZMA", 34933: "PNG", 34934: "JPEG XR", 50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL",
}  # fmt: skip
_OTHER_PHOTOMETRICS = {
    0: "white is zero", 3: "palette colours", 4: "a transparency mask", 5: "CMYK inks", 8: "CIE L*a*b*",
    32803: "a colour filter array",
}  # fmt: skip
GREY, RGB, YCBCR = 1, 2, 6
_SAMPLE_FORMATS = {2: "signed integers", 3: "floating point", 5: "complex integers", 6: "complex floating point"}
ASSOCIATED, UNASSOCIATED = 1, 2
_CONVERT = "Convert it to a tiled 8- or 16-bit TIFF, for example with vips or bfconvert."
_CUT = "The file is cut short or damaged: copy it again from its source."


@dataclass(frozen=True, slots=True)
class Segments:
    """The tiles or strips of an image.

    Attributes:
        side_yx: (y, x) side of a segment in pixels.
        offsets: Byte offset of each segment, in order of plane, row, column.
        counts: Number of bytes of each segment, in the same order.
        tiled: True for tiles, False for strips.
    """

    side_yx: tuple[int, int]
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    tiled: bool


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """Fields of one image directory, as stored or as defaulted by TIFF 6.0."""

    name: str
    shape_yx: tuple[int, int]
    segments: Segments
    samples: int
    planar: int
    bits: int
    sample_format: int
    compression: int
    photometric: int
    predictor: int
    extra_samples: tuple[int, ...]

    @property
    def grid_yx(self) -> tuple[int, int]:
        """Rows and columns of tiles or strips in one plane."""
        (height, width), (side_y, side_x) = self.shape_yx, self.segments.side_yx
        return -(-height // side_y), -(-width // side_x)

    @property
    def planes(self) -> int:
        """Number of separately stored planes."""
        return self.samples if self.planar == 2 else 1

    @property
    def samples_per_plane(self) -> int:
        """Number of interleaved samples in one segment."""
        return 1 if self.planar == 2 else self.samples

    @property
    def pixel_bytes(self) -> int:
        """Decoded bytes of one pixel of one segment."""
        return self.samples_per_plane * self.bits // 8

    def place(self, level: int, index: int) -> TileIndex:
        """Position of segment ``index``: row, column and the box of pixels it covers."""
        rows, cols = self.grid_yx
        row, col = divmod(index % (rows * cols), cols)
        side_y, side_x = self.segments.side_yx
        box = Box(0, 0, side_y, side_x).shift(row * side_y, col * side_x).intersect(Box.of_shape(self.shape_yx))
        assert box is not None
        return TileIndex(level, row, col, box)


def check_image(facts: ImageFacts, level: int, file_bytes: int) -> None:
    """Check that an image is consistent and can be read exactly.

    Args:
        facts: Fields of its directory.
        level: Level of the pyramid, for messages.
        file_bytes: Size of the file.

    Raises:
        SlideError: If a field is inconsistent or not supported.
        TileError: If a tile has no bytes, lies outside the file, or shares bytes with another.
    """
    for problem in _problems(facts):
        raise SlideError(f"{facts.name}: level {level}: {problem}")
    check_table(facts, level, file_bytes)


def check_size(facts: ImageFacts, level: int) -> None:
    """Check the sides of an image and of its tiles only, for files that another library decodes."""
    for problem in _size_problems(facts):
        raise SlideError(f"{facts.name}: level {level}: {problem}")


def _problems(facts: ImageFacts) -> Iterator[str]:
    yield from _size_problems(facts)
    yield from _coding_problems(facts)
    yield from _sample_problems(facts)


def _size_problems(facts: ImageFacts) -> Iterator[str]:
    height, width = facts.shape_yx
    side_y, side_x = facts.segments.side_yx
    low, high = TILE_SIDES_PX
    if not (height > 0 and width > 0):
        yield f"the image is {width} x {height} px: a side is missing or 0. {_CUT}"
    if height > MAX_SIDE_PX or width > MAX_SIDE_PX or height * width > MAX_PIXELS:
        yield (
            f"the image claims {width} x {height} px; the budget is {MAX_SIDE_PX} px a side and {MAX_PIXELS} px in "
            f"all. {_CUT}"
        )
    if facts.segments.tiled and not (low <= side_y <= high and low <= side_x <= high):
        yield f"tiles of {side_x} x {side_y} px; expected sides of {low} to {high} px. {_CONVERT}"
    if side_y < 1 or side_x < 1:
        yield f"strips of {side_y} rows; expected at least 1. {_CUT}"


def _coding_problems(facts: ImageFacts) -> Iterator[str]:
    if facts.compression not in COMPRESSIONS:
        name = _OTHER_COMPRESSIONS.get(facts.compression, "unknown")
        known = ", ".join(sorted(set(COMPRESSIONS.values())))
        yield f"compression {facts.compression} ({name}) is not supported; supported: {known}. {_CONVERT}"
    if facts.photometric not in (GREY, RGB, YCBCR):
        name = _OTHER_PHOTOMETRICS.get(facts.photometric, f"photometric interpretation {facts.photometric}")
        yield f"pixels stored as {name} are not supported; expected grey, RGB or YCbCr. {_CONVERT}"
    if facts.photometric == YCBCR and facts.compression != JPEG and facts.compression not in JPEG_2000:
        yield f"YCbCr pixels under {COMPRESSIONS[facts.compression]} are not supported; expected JPEG. {_CONVERT}"
    if facts.compression not in (1, JPEG, *JPEG_2000) and facts.predictor not in (1, 2):
        yield f"predictor {facts.predictor} is not supported; expected 1 (none) or 2 (horizontal). {_CONVERT}"
    if facts.compression == 1 and facts.predictor != 1:
        yield f"predictor {facts.predictor} on uncompressed pixels; expected 1. {_CUT}"


def _sample_problems(facts: ImageFacts) -> Iterator[str]:
    bits = facts.bits
    if facts.sample_format != 1:
        name = _SAMPLE_FORMATS.get(facts.sample_format, f"sample format {facts.sample_format}")
        yield f"pixels of {bits}-bit {name} are not supported; expected 8- or 16-bit unsigned integers. {_CONVERT}"
    if bits == 0:
        yield f"BitsPerSample is missing; expected 8 or 16. {_CUT}"
    if bits not in (8, 16) or (facts.compression == JPEG and bits != 8):
        yield f"pixels of {bits} bits are not supported; expected 8 or 16 (8 in JPEG). {_CONVERT}"
    if facts.planar not in (1, 2):
        yield f"planar configuration {facts.planar}; expected 1 or 2. {_CUT}"
    colours = 1 if facts.photometric == GREY else 3
    extra = facts.samples - colours
    if facts.samples < 1 or extra < 0:
        yield f"{facts.samples} samples a pixel; expected at least {colours} for its colours. {_CUT}"
    if colours == 3 and extra and (extra > 1 or has_alpha(facts) is None):
        yield (
            f"{facts.samples} samples a pixel: RGB and {extra} undeclared; expected RGB, or RGB and one alpha "
            f"(ExtraSamples 1 or 2). {_CONVERT}"
        )
    if facts.compression == JPEG and facts.samples_per_plane not in (1, 3):
        yield f"JPEG tiles of {facts.samples_per_plane} samples are not supported; expected 1 or 3. {_CONVERT}"


def check_segment_size(facts: ImageFacts, level: int) -> None:
    """Refuse an image with a tile or strip above MAX_SEGMENT_BYTES, before one is decoded."""
    side_y, side_x = facts.segments.side_yx
    if (size := side_y * side_x * facts.pixel_bytes) > MAX_SEGMENT_BYTES:
        raise SlideError(
            f"{facts.name}: level {level}: one strip of {side_y} rows holds {size} bytes; expected at most "
            f"{MAX_SEGMENT_BYTES}. {_CONVERT}"
        )


def has_alpha(facts: ImageFacts) -> int | None:
    """Kind of alpha of the last sample (ASSOCIATED or UNASSOCIATED), or None when it is a colour."""
    kind = facts.extra_samples[0] if len(facts.extra_samples) == 1 and facts.samples in (2, 4) else 0
    return kind if kind in (ASSOCIATED, UNASSOCIATED) else None


def check_table(facts: ImageFacts, level: int, file_bytes: int) -> None:
    """Check that every tile is listed once, has bytes, lies inside the file and shares none with another."""
    offsets, counts = facts.segments.offsets, facts.segments.counts
    rows, cols = facts.grid_yx
    expected = rows * cols * facts.planes
    for table, found in (("offsets", offsets.size), ("byte counts", counts.size)):
        if found != expected:
            raise SlideError(
                f"{facts.name}: level {level}: {expected} tile {table} expected ({rows} x {cols} tiles, "
                f"{facts.planes} planes), {found} found: the tile table is missing or short. {_CUT}"
            )
    ends = offsets + counts
    _refuse_first(facts, level, (counts <= 0) | (offsets <= 0), "holds no bytes; an image part is missing")
    _refuse_first(facts, level, ends > file_bytes, f"ends behind the end of the file, which has {file_bytes} bytes")
    if facts.compression == 1:
        short = counts < _plain_bytes(facts)
        _refuse_first(facts, level, short, "holds fewer bytes than its uncompressed pixels need")
    _check_overlap(facts, level)


def _check_overlap(facts: ImageFacts, level: int) -> None:
    """Refuse overlapping tiles. Identical entries are legal: writers store equal tiles once."""
    offsets, ends = facts.segments.offsets, facts.segments.offsets + facts.segments.counts
    order = np.lexsort((ends, offsets))
    same = (offsets[order][1:] == offsets[order][:-1]) & (ends[order][1:] == ends[order][:-1])
    clash = np.zeros(offsets.size, bool)
    clash[order[1:]] = (offsets[order][1:] < np.maximum.accumulate(ends[order])[:-1]) & ~same
    _refuse_first(facts, level, clash, "shares bytes with another tile")


def _refuse_first(facts: ImageFacts, level: int, bad: NDArray[np.bool_], problem: str) -> None:
    if not bad.any():
        return
    index = int(np.argmax(bad))
    place = facts.place(level, index)
    start, count = int(facts.segments.offsets[index]), int(facts.segments.counts[index])
    others = f" ({int(bad.sum())} tiles like it)" if bad.sum() > 1 else ""
    raise TileError(f"{facts.name}: {place} at byte {start}, {count} bytes: it {problem}{others}. {_CUT}", place)


def _plain_bytes(facts: ImageFacts) -> NDArray[np.int64]:
    """Bytes of each uncompressed segment. The last strip of a plane may be shorter; tiles are always full."""
    (height, _), (side_y, side_x) = facts.shape_yx, facts.segments.side_yx
    rows, cols = facts.grid_yx
    lengths = np.full(rows, side_y, np.int64)
    if not facts.segments.tiled:
        lengths[-1] = height - (rows - 1) * side_y
    return np.tile(np.repeat(lengths, cols), facts.planes) * side_x * facts.pixel_bytes


def split_strips(facts: ImageFacts) -> ImageFacts:
    """Split consecutive uncompressed strips into strips of about 1 MiB.

    Flat files often hold one huge strip; after the split only the strips under a box are read. Other images are
    returned unchanged. Call it after ``check_image``.
    """
    (height, width), (side_y, _) = facts.shape_yx, facts.segments.side_yx
    rows_px = max(1, STRIP_BYTES // (width * facts.pixel_bytes))
    if facts.segments.tiled or facts.compression != 1 or side_y <= rows_px:
        return facts
    offsets = facts.segments.offsets.reshape(facts.planes, -1)
    needed = _plain_bytes(facts).reshape(facts.planes, -1)
    if (offsets[:, :-1] + needed[:, :-1] != offsets[:, 1:]).any():
        return facts
    first_rows = np.arange(0, height, rows_px, dtype=np.int64)
    lengths = np.minimum(rows_px, height - first_rows) * width * facts.pixel_bytes
    starts = offsets[:, :1] + first_rows * width * facts.pixel_bytes
    segments = Segments(
        side_yx=(rows_px, width), tiled=False, offsets=starts.ravel(), counts=np.tile(lengths, facts.planes)
    )
    return replace(facts, segments=segments)
