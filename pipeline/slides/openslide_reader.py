"""Slides that only OpenSlide reads: MRXS, DICOM, VMS, Sakura, TIFF with overlapping tiles.

Only levels that OpenSlide reads exactly are used. Its positions are level-0 pixels, divided by the downsample of the
level; with a fractional downsample it interpolates, and a pixel then depends on the box that it is read in. A level is
used when its downsample is a whole number, which is always true of level 0.

OpenSlide is a C library that may abort on a damaged file. So every slide is first opened and read at a corner of each
level in a child process: an abort there becomes an error about the slide. After an error every call on an OpenSlide
handle fails, so the handle is replaced. Areas without pixels are transparent; they get the background that the slide
states, or white, never black.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import openslide
from openslide import OpenSlide, OpenSlideError

from pipeline.errors import SlideError
from pipeline.geometry import Box
from pipeline.slide_reader import Level, Pixels, TileError, TileIndex, downsample_yx, hashed_levels, name_channels
from pipeline.slides.checks.file import sampled_digest
from pipeline.slides.checks.image import MAX_PIXELS, MAX_SIDE_PX
from pipeline.slides.dicom import FrameTable, frame_tables
from pipeline.slides.format_detection import DetectedSlide

FORMATS = {
    "mirax": "3DHISTECH MRXS", "dicom": "DICOM", "leica": "Leica SCN", "ventana": "Ventana BIF",
    "philips": "Philips TIFF", "trestle": "Trestle TIFF", "hamamatsu": "Hamamatsu VMS", "sakura": "Sakura SVSLIDE",
    "aperio": "Aperio SVS", "generic-tiff": "TIFF",
}  # fmt: skip
UINT8: np.dtype[Any] = np.dtype(np.uint8)
_WHITE = (255, 255, 255)
_PIECE_PX = 256
_PROBE_S, _PROBE_BYTES = 60, 1 << 32
_PROBE = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({_PROBE_BYTES}, {_PROBE_BYTES}))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
import openslide
try:
    slide = openslide.OpenSlide(sys.argv[1])
    for level in range(slide.level_count):
        slide.read_region((0, 0), level, (16, 16))
except (openslide.OpenSlideError, MemoryError) as error:
    sys.exit(str(error) or type(error).__name__)
"""
_ADVICE = "Copy the slide again from its source, or convert it, for example with bioformats2raw."


@dataclass(slots=True)
class Handle:
    """An open OpenSlide handle, replaced after an error. Reads may come from any number of threads."""

    path: Path
    slide: OpenSlide
    lock: Lock = field(default_factory=Lock)

    def read(self, place_yx: tuple[int, int], level: int, shape_yx: tuple[int, int]) -> Pixels:
        """Read RGBA pixels.

        Args:
            place_yx: Upper left corner in pixels of level 0.
            level: OpenSlide's number of the level.
            shape_yx: Shape in pixels of the level.

        Returns:
            (y, x, 4) pixels; colours are not multiplied by alpha.

        Raises:
            OpenSlideError: If the pixels cannot be read.
        """
        slide = self.slide
        try:
            return np.asarray(slide.read_region(place_yx[::-1], level, shape_yx[::-1]))
        except OpenSlideError:
            with self.lock:
                if self.slide is slide:
                    self.slide = OpenSlide(self.path)
            raise


@dataclass(frozen=True, slots=True, eq=False)
class OpenSlideReader:
    """A slide read by OpenSlide, as a SlideReader. ``numbers`` are OpenSlide's numbers of the levels used."""

    path: Path
    found: DetectedSlide
    handle: Handle
    levels: tuple[Level, ...]
    numbers: tuple[int, ...]
    properties: Mapping[str, str]
    frames: Mapping[tuple[int, int], FrameTable]

    @property
    def format(self) -> str:
        """Name of the file format."""
        vendor = self.properties.get(openslide.PROPERTY_NAME_VENDOR, "")
        return FORMATS.get(vendor, vendor)

    @property
    def channels(self) -> int:
        """3: OpenSlide converts all pixels to RGB."""
        return 3

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Red, green and blue."""
        return name_channels((), self.channels)

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8: OpenSlide converts all pixels to 8 bits."""
        return UINT8

    @property
    def warnings(self) -> tuple[str, ...]:
        """Empty: every problem is an error."""
        return ()

    @property
    def mpp_yx(self) -> tuple[float, float] | None:
        """Micrometres per pixel of level 0 as stated."""
        names = openslide.PROPERTY_NAME_MPP_Y, openslide.PROPERTY_NAME_MPP_X
        try:
            y, x = (float(self.properties[name]) for name in names)
        except (KeyError, ValueError):
            return None
        return y, x

    @property
    def background(self) -> tuple[int, ...]:
        """(red, green, blue) of areas without pixels."""
        stated = self.properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "")
        try:
            return tuple(bytes.fromhex(stated)) if len(stated) == 6 else _WHITE
        except ValueError:
            return _WHITE

    def read(self, level: int, box: Box) -> Pixels:
        """Read a box of a level.

        Args:
            level: Level to read.
            box: Box inside the level, in its pixels.

        Returns:
            A new (3, y, x) uint8 array, composited over the background.

        Raises:
            ValueError: If the box is not inside the level.
            TileError: If OpenSlide fails, or a JPEG frame of a DICOM is damaged.
        """
        if Box.of_shape(self.levels[level].shape_yx).intersect(box) != box:
            raise ValueError(f"{self.path}: box {box} is not inside level {level}, {self.levels[level].shape_yx}")
        table = self.frames.get(self.levels[level].shape_yx)
        if table is not None and (found := table.problem(box)):
            (row, col), tile, fault = found
            raise self._tile_error(TileIndex(level, row, col, tile), fault)
        try:
            rgba_YXC = self._rgba(level, box)
        except OpenSlideError as error:
            raise self._damage(level, box, error) from None  # the library's error holds C data and does not pickle
        return composite_over(rgba_YXC, self.background)

    def _rgba(self, level: int, box: Box) -> Pixels:
        downsample = round(self.levels[level].downsample_yx[0])
        return self.handle.read((box.y0 * downsample, box.x0 * downsample), self.numbers[level], box.shape)

    def _damage(self, level: int, box: Box, error: OpenSlideError) -> TileError:
        """Error for a box, placed at its first piece that cannot be read."""
        for piece in _pieces(box):
            try:
                self._rgba(level, piece)
            except OpenSlideError as piece_error:
                return self._tile_error(_placed(level, piece), str(piece_error))
        return self._tile_error(_placed(level, box), str(error))

    def _tile_error(self, place: TileIndex, fault: str) -> TileError:
        where = f"level {place.level}, {place.box} ({self.format})"
        return TileError(f"{self.path}: {where} is damaged: {fault}. {_ADVICE}", place)

    def fingerprint(self) -> str:
        """SHA-256 of the levels, the size of every file of the slide, and 256 samples of 4 KiB of them."""
        facts = f"openslide 1 {self.format} {hashed_levels(self.levels)} {self.mpp_yx} {self.background}"
        return sampled_digest(self.found.files, facts)

    def describe(self) -> dict[str, Any]:
        """Format, size and levels. Properties are left out: they hold names of people, sites and dates."""
        return {
            "format": self.format,
            "vendor": None,
            "bytes": sum(file.stat().st_size for file in self.found.files),
            "files": len(self.found.files),
            "channels": self.channels,
            "dtype": str(self.dtype),
            "mpp_yx": list(self.mpp_yx) if self.mpp_yx else None,
            "levels": [
                {"shape_yx": list(level.shape_yx), "downsample_yx": list(level.downsample_yx)} for level in self.levels
            ],
        }


def load_openslide(path: Path, found: DetectedSlide) -> OpenSlideReader:
    """Open a slide with OpenSlide after a probe in a child process.

    Raises:
        SlideError: If OpenSlide crashes on the file, takes longer than 60 s, or cannot read it.
    """
    _probe(path, found.path)
    try:
        slide = OpenSlide(found.path)
    except OpenSlideError as error:
        raise SlideError(f"{path}: OpenSlide cannot open it: {error}. {_ADVICE}") from None
    if slide.properties.get(openslide.PROPERTY_NAME_VENDOR) == "generic-tiff":
        raise SlideError(
            f"{path}: its tags say Ventana BIF, Leica SCN, Philips TIFF or Trestle, but OpenSlide, which reads those, "
            f"does not recognise it. {_ADVICE}"
        )
    shapes = [(height, width) for width, height in slide.level_dimensions]
    _check_shape(path, shapes[0])
    numbers, levels = zip(*exact_levels(shapes, slide.level_downsamples), strict=True)
    frames = frame_tables(found.files) if OpenSlide.detect_format(found.path) == "dicom" else {}
    return OpenSlideReader(path, found, Handle(found.path, slide), levels, numbers, dict(slide.properties), frames)


def exact_levels(shapes_yx: Sequence[tuple[int, int]], downsamples: Sequence[float]) -> Iterator[tuple[int, Level]]:
    """Levels whose downsample is a whole number that agrees with the size of the level.

    Levels that are padded to whole tiles (Philips) are cropped to the extent of level 0.

    Args:
        shapes_yx: (y, x) shape of each level.
        downsamples: Downsample of each level, as OpenSlide states it.

    Returns:
        OpenSlide's number and the Level of each usable level.
    """
    base_yx = shapes_yx[0]
    for number, (shape_yx, down) in enumerate(zip(shapes_yx, downsamples, strict=True)):
        seen_y, seen_x = (min(side, math.ceil(base / down)) for side, base in zip(shape_yx, base_yx, strict=True))
        if down == round(down) and downsample_yx(base_yx, (seen_y, seen_x)) == (down, down):
            yield number, Level((seen_y, seen_x), (down, down))


def _check_shape(path: Path, shape_yx: tuple[int, int]) -> None:
    height, width = shape_yx
    if max(shape_yx) > MAX_SIDE_PX or height * width > MAX_PIXELS:
        raise SlideError(
            f"{path}: the slide claims {width} x {height} px; the budget is {MAX_SIDE_PX} px a side and {MAX_PIXELS} "
            f"px in all. {_ADVICE}"
        )


def _probe(path: Path, opened: Path) -> None:
    """Read a corner of each level in a child process of bounded memory and time."""
    command = [sys.executable, "-I", "-c", _PROBE, str(opened.absolute())]
    try:
        result = subprocess.run(command, capture_output=True, timeout=_PROBE_S, check=False)  # noqa: S603  our own words
    except subprocess.TimeoutExpired:
        raise SlideError(f"{path}: OpenSlide did not open it within {_PROBE_S} s. {_ADVICE}") from None
    if result.returncode < 0:
        raise SlideError(f"{path}: it made OpenSlide crash (signal {-result.returncode}): it is damaged. {_ADVICE}")
    if result.returncode:
        messages = result.stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason given"]
        raise SlideError(f"{path}: OpenSlide cannot read it: {messages[-1]}. {_ADVICE}")


def _placed(level: int, piece: Box) -> TileIndex:
    """Place of a piece of a box: OpenSlide does not report which tile failed."""
    return TileIndex(level, piece.y0 // _PIECE_PX, piece.x0 // _PIECE_PX, piece)


def _pieces(box: Box) -> Iterator[Box]:
    """The box cut at multiples of _PIECE_PX, row by row."""
    for y0 in range(box.y0 // _PIECE_PX * _PIECE_PX, box.y1, _PIECE_PX):
        for x0 in range(box.x0 // _PIECE_PX * _PIECE_PX, box.x1, _PIECE_PX):
            piece = Box(y0, x0, y0 + _PIECE_PX, x0 + _PIECE_PX).intersect(box)
            assert piece is not None
            yield piece


def composite_over(rgba_YXC: Pixels, background: tuple[int, ...]) -> Pixels:
    """Composite colours over a background: c*a + background*(1 - a), rounded half up.

    Args:
        rgba_YXC: (y, x, 4) uint8 pixels.
        background: Red, green and blue.

    Returns:
        (3, y, x) uint8 pixels.
    """
    planes_CYX = rgba_YXC.transpose(2, 0, 1)
    alpha_YX = planes_CYX[3]
    if (alpha_YX == 255).all():
        return planes_CYX[:3].copy()
    ground_CYX = np.array(background, np.uint32)[:, None, None]
    mixed = (planes_CYX[:3] * alpha_YX.astype(np.uint32) + ground_CYX * (255 - alpha_YX.astype(np.uint32)) + 127) // 255
    result: Pixels = mixed.astype(np.uint8)
    return result
