"""A PNG or JPEG image as a slide of one level.

Both formats can only be decoded as a whole, so a process keeps one decoded photo at a time. The decoded size is
computed from the header and limited to MAX_PHOTO_BYTES before any pixel is decoded. A stated density above 10 um a
pixel (72, 96 or 300 dots an inch) is a setting for screens and printers, and counts as no resolution.

The headers are parsed here, not by Pillow: Pillow refuses a PNG with more than 1 MiB of text or colour profile, or
with a wrong checksum in a chunk of text, stops at the first pixels (it misses a cut end, and orientation after them),
and reports a forged size as a wrong checksum.

PNG: ISO/IEC 15948 (chunks, pHYs, eXIf); JPEG: ITU-T T.81 and T.871 (JFIF density); orientation: Exif 2.32 tag 274.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import imagecodecs
import numpy as np

from pipeline.errors import SlideError
from pipeline.geometry import Box
from pipeline.slide_reader import Level, Pixels, TileError, TileIndex, name_channels
from pipeline.slides.checks.file import sampled_digest
from pipeline.slides.checks.image import UNASSOCIATED
from pipeline.slides.checks.jpeg import SOS, Frame, read_frame, scan_problem
from pipeline.slides.checks.pixels import over_white

MAX_PHOTO_BYTES = 1 << 29
COARSEST_CREDIBLE_UM = 10.0

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_SAMPLES = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
_UM_PER_JFIF_UNIT = {1: 25400.0, 2: 10000.0}
_ORIENTATION = 274
_BYTE_ORDERS: dict[bytes, Literal["little", "big"]] = {b"II": "little", b"MM": "big"}
_CUT = "The file is cut short or damaged: copy it again from its source."


@dataclass(frozen=True, slots=True)
class PhotoHeader:
    """Facts from the header of a photo.

    Attributes:
        format: ``PNG`` or ``JPEG``.
        shape_yx: Height and width in pixels.
        samples: Samples a pixel, an alpha sample included.
        bits: Bits a sample, 8 or 16.
        mpp_yx: Micrometres per pixel, or None when the header states no plausible density.
        orientation: Exif orientation; 1 is upright.
    """

    format: str
    shape_yx: tuple[int, int]
    samples: int
    bits: int
    mpp_yx: tuple[float, float] | None
    orientation: int

    @property
    def hashed_text(self) -> str:
        """Text that enters the fingerprint. It must not change, whatever the class and its fields are called."""
        return (
            f"Header(format={self.format!r}, shape_yx={self.shape_yx!r}, samples={self.samples!r}, "
            f"bits={self.bits!r}, mpp_yx={self.mpp_yx!r}, orientation={self.orientation!r})"
        )


@dataclass(frozen=True, slots=True, eq=False)
class PhotoSlide:
    """A photo as a SlideReader. It holds no pixels itself."""

    path: Path
    header: PhotoHeader
    channels: int
    dtype: np.dtype[Any]
    state: tuple[int, int]

    @property
    def format(self) -> str:
        """``PNG`` or ``JPEG``."""
        return self.header.format

    @property
    def levels(self) -> tuple[Level, ...]:
        """The single level."""
        return (Level(self.header.shape_yx, (1.0, 1.0)),)

    @property
    def mpp_yx(self) -> tuple[float, float] | None:
        """Micrometres per pixel, or None when the density is that of a screen or printer."""
        return self.header.mpp_yx

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names by colour: photos do not name their channels."""
        return name_channels((), self.channels)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Empty: every problem of a photo is an error."""
        return ()

    def read(self, level: int, box: Box) -> Pixels:
        """Read a box of pixels.

        Args:
            level: 0.
            box: Box inside the photo, in pixels.

        Returns:
            A new (c, y, x) array; an alpha is composited over white.

        Raises:
            ValueError: If the box is not inside the photo.
            TileError: If the photo is damaged.
        """
        if level != 0 or Box.of_shape(self.header.shape_yx).intersect(box) != box:
            raise ValueError(f"{self.path}: box {box} is not inside level {level} of {self.header.shape_yx}")
        with _DECODING:
            pixels_YXS = _decoded(self.path, self.header, self.state)
        planes_CYX = pixels_YXS[box.slices].transpose(2, 0, 1).copy()
        return planes_CYX if self.channels == len(planes_CYX) else over_white(planes_CYX, UNASSOCIATED)

    def fingerprint(self) -> str:
        """SHA-256 of the size, the header's facts and 256 samples of 4 KiB of the file."""
        return sampled_digest([self.path], f"photo 1 {self.header.hashed_text}")

    def describe(self) -> dict[str, Any]:
        """Format, size and channels. No free text of the file is included."""
        return {
            "format": self.format,
            "vendor": None,
            "bytes": self.path.stat().st_size,
            "channels": self.channels,
            "dtype": str(self.dtype),
            "mpp_yx": list(self.mpp_yx) if self.mpp_yx else None,
            "levels": [{"shape_yx": list(self.header.shape_yx), "downsample_yx": [1.0, 1.0]}],
        }


def load_photo(path: Path) -> PhotoSlide:
    """Read and check the header of a photo.

    Raises:
        SlideError: If the header is damaged, the photo is stored rotated or mirrored, or its decoded size is above
            MAX_PHOTO_BYTES.
    """
    data = path.read_bytes()
    header = _png_header(path, data) if data.startswith(_PNG) else _jpeg_header(path, data)
    height, width = header.shape_yx
    needed = height * width * header.samples * header.bits // 8
    if needed > MAX_PHOTO_BYTES:
        tiff = f"vips tiffsave {shlex.quote(path.name)} {shlex.quote(path.stem)}.tif --tile --pyramid --bigtiff"
        raise SlideError(
            f"{path}: a {header.format} of {width} x {height} px takes {needed} bytes when it is decoded, which this "
            f"format only allows as a whole; expected at most {MAX_PHOTO_BYTES}. Convert it with '{tiff} --compression "
            "deflate'."
        )
    if header.orientation not in (0, 1):
        raise SlideError(
            f"{path}: expected Exif orientation 1, found orientation {header.orientation}: it is stored rotated or "
            "mirrored. Rotate its pixels, for example with 'mogrify -auto-orient'."
        )
    status, channels = path.stat(), {2: 1, 4: 3}.get(header.samples, header.samples)
    return PhotoSlide(path, header, channels, np.dtype(f"u{header.bits // 8}"), (status.st_ino, status.st_mtime_ns))


# ---- pixels ----------------------------------------------------------------------------------------------------------

_DECODING = Lock()


@lru_cache(maxsize=1)
def _decoded(path: Path, header: PhotoHeader, _state: tuple[int, int]) -> Pixels:
    """The decoded photo (y, x, samples). A process caches one: a second would double the stated memory."""
    data = path.read_bytes()
    problem = scan_problem(data) if header.format == "JPEG" else None
    if problem is None:
        decode = imagecodecs.jpeg8_decode if header.format == "JPEG" else imagecodecs.png_decode
        try:
            return _checked(decode(data), header)
        except (RuntimeError, ValueError) as error:
            problem = f"{type(error).__name__}: {error}"
    place = TileIndex(0, 0, 0, Box.of_shape(header.shape_yx))
    raise TileError(f"{path}: the {header.format} is damaged: {problem}. Copy it again from its source.", place)


def _checked(pixels: Pixels, header: PhotoHeader) -> Pixels:
    """Check pixels against the header. A palette may hold an alpha that the header does not declare."""
    pixels_YXS = pixels[..., None] if pixels.ndim == 2 else pixels
    height, width = header.shape_yx
    expected = (height, width, header.samples)
    if pixels_YXS.shape != expected or pixels_YXS.dtype.itemsize * 8 != header.bits:
        raise ValueError(f"{expected} samples of {header.bits} bits expected, {pixels_YXS.shape} {pixels.dtype} found")
    return pixels_YXS


# ---- PNG -------------------------------------------------------------------------------------------------------------


def _png_header(path: Path, data: bytes) -> PhotoHeader:
    chunks = dict(_png_chunks(path, data))
    ihdr = chunks.get(b"IHDR", b"")
    if len(ihdr) != 13 or not min(width_height := _numbers(ihdr[:8])):
        raise SlideError(f"{path}: its PNG header is missing or states 0 px. {_CUT}")
    bits, colour = ihdr[8], ihdr[9]
    if bits not in (8, 16) and colour != 3:
        raise SlideError(f"{path}: a PNG of {bits} bits a sample; expected 8 or 16. Save it as an 8-bit PNG.")
    if colour not in _PNG_SAMPLES:
        raise SlideError(f"{path}: a PNG of colour type {colour}; expected 0, 2, 3, 4 or 6. {_CUT}")
    alpha = b"tRNS" in chunks and colour in (0, 2, 3)
    samples = _PNG_SAMPLES[colour] + alpha
    phys = chunks.get(b"pHYs", b"")
    mpp_yx = _plausible_mpp((1e6, _numbers(phys)[::-1])) if len(phys) == 9 and phys[8] == 1 else None
    shape_yx = width_height[1], width_height[0]
    return PhotoHeader(
        "PNG", shape_yx, samples, 8 if colour == 3 else bits, mpp_yx, _orientation(chunks.get(b"eXIf", b""))
    )


def _png_chunks(path: Path, data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and content of each chunk, without pixel data. Raises SlideError when the end chunk is missing."""
    at = len(_PNG)
    while at + 12 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        yield kind, b"" if kind == b"IDAT" else data[at + 8 : at + 8 + length]
        at += 12 + length
        if kind == b"IEND":
            return
    raise SlideError(f"{path}: the PNG ends after {len(data)} bytes without its end mark. {_CUT}")


def _numbers(data: bytes) -> tuple[int, int]:
    """Two 32-bit integers."""
    return int.from_bytes(data[:4], "big"), int.from_bytes(data[4:8], "big")


# ---- JPEG ------------------------------------------------------------------------------------------------------------


def _jpeg_header(path: Path, data: bytes) -> PhotoHeader:
    frame = read_frame(data)
    if not isinstance(frame, Frame):
        raise SlideError(f"{path}: a damaged JPEG: {frame}. {_CUT}")
    if frame.components not in (1, 3) or not frame.height or not frame.width:
        raise SlideError(f"{path}: a JPEG of {frame}; expected 1 (grey) or 3 (colour). Save it as an RGB JPEG or PNG.")
    density: tuple[float, tuple[int, int]] | None = None
    exif = b""
    for marker, content in _jpeg_segments(data):
        if marker == 0xE0 and content.startswith(b"JFIF\0") and len(content) >= 12:
            x, y = (int.from_bytes(content[k : k + 2], "big") for k in (8, 10))
            density = (unit, (y, x)) if (unit := _UM_PER_JFIF_UNIT.get(content[7])) else None
        if marker == 0xE1 and content.startswith(b"Exif\0\0"):
            exif = content
    return PhotoHeader(
        "JPEG", (frame.height, frame.width), frame.components, 8, _plausible_mpp(density), _orientation(exif)
    )


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and content of each segment before the first scan of a stream with a valid frame."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != SOS:
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        yield data[at + 1], data[at + 4 : at + 2 + length]
        at += 2 + length


# ---- both ------------------------------------------------------------------------------------------------------------


def _plausible_mpp(density: tuple[float, tuple[int, int]] | None) -> tuple[float, float] | None:
    """(y, x) micrometres per pixel from (unit in um, (y, x) pixels per unit); None above COARSEST_CREDIBLE_UM."""
    if density is None or not min(density[1]):
        return None
    y, x = (density[0] / pixels for pixels in density[1])
    return (y, x) if math.hypot(y, x) / math.sqrt(2) <= COARSEST_CREDIBLE_UM else None


def _orientation(exif_bytes: bytes) -> int:
    """The orientation in an Exif block; 1 when it is absent or unreadable."""
    tiff = exif_bytes.removeprefix(b"Exif\0\0")
    order = _BYTE_ORDERS.get(tiff[:2])
    if order is None:
        return 1
    first = int.from_bytes(tiff[4:8], order) + 2
    for at in range(first, first + 12 * int.from_bytes(tiff[first - 2 : first], order), 12):
        if int.from_bytes(tiff[at : at + 2], order) == _ORIENTATION:
            return int.from_bytes(tiff[at + 8 : at + 10], order)
    return 1
