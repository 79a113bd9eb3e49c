"""Label images and masks: files whose pixel values are numbers, read window by window without any change.

Conversions that readers of slides make for display (expanding a palette, blending transparency with white, lossy
codecs) would change numbers and are rejected. Formats that no scanner writes but label images have (32 and 64 bits,
signed integers, palettes) are accepted. TIFF uses the checks and the tile decoder of slides. PNG, and TIFF of one bit a
pixel, are decoded as a whole, because the format or its reader has no other way.
"""

from __future__ import annotations

import os
import struct
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tifffile import TiffFile

from pipeline.errors import SlideError
from pipeline.geometry import Box
from pipeline.slide_reader import Pixels
from pipeline.slides.checks.file import RawFile, open_file, read_head, stat_file
from pipeline.slides.checks.image import COMPRESSIONS, GREY, JPEG, JPEG_2000, RGB, ImageFacts, check_size, check_table
from pipeline.slides.tiff.pyramid import find_pyramid
from pipeline.slides.tiff.tags import ImageTags, image_facts, read_images
from pipeline.slides.tiff.tile_decoder import StoredImage, stored_image, tiff_of

MAX_WHOLE_PX = 1 << 28
"""Largest mask that is decoded as a whole."""

_PNG_MAGIC, _JPEG_MAGIC = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_PALETTE, _COLOR_MAP = 3, 320
_BITS = {1: (8, 16, 32, 64), 2: (8, 16, 32, 64)}  # by sample format: unsigned, signed
_OPEN = 8
_SAVE = "Save it as an 8-, 16- or 32-bit PNG or TIFF of one channel, or as RGB, without lossy compression."

Rgb = tuple[int, int, int]


class LabelImage(Protocol):
    """An open label image or mask."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def shape_yx(self) -> tuple[int, int]:
        """Shape in pixels."""

    @property
    def palette(self) -> tuple[Rgb, ...]:
        """Colour of each number, or empty without a palette."""

    @property
    def coloured(self) -> bool:
        """Whether pixels are colours (3, y, x) rather than numbers (1, y, x)."""

    def read(self, box: Box) -> Pixels:
        """Read the numbers (1, y, x) or colours (3, y, x) of a box inside the image.

        Raises:
            SlideError: The file is damaged.
        """


def open_labels(path: Path) -> LabelImage:
    """Open and check a label image without decoding it.

    Raises:
        SlideError: The format does not store labels exactly, or the file is damaged.
    """
    found = stat_file(path)
    return _open(path, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))


@lru_cache(maxsize=_OPEN)
def _open(path: Path, state: tuple[int, ...]) -> LabelImage:
    head = read_head(path)
    if head.startswith(_JPEG_MAGIC):
        raise SlideError(f"{path}: a JPEG changes numbers, it cannot hold labels. {_SAVE}")
    if head.startswith(_PNG_MAGIC):
        return _png(path, head, state)
    file = open_file(path)
    try:
        labels = _tiff(file, state)
    except BaseException:
        os.close(file.fd)
        raise
    if isinstance(labels, TiffLabels):
        weakref.finalize(labels, os.close, file.fd)
    else:
        os.close(file.fd)
    return labels


# ---- TIFF -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class TiffLabels:
    """A TIFF of numbers or colours (see ``LabelImage``). Holds one file descriptor until it is collected."""

    file: RawFile
    image: StoredImage
    palette: tuple[Rgb, ...]

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.file.name)

    @property
    def shape_yx(self) -> tuple[int, int]:
        """Shape in pixels."""
        return self.image.facts.shape_yx

    @property
    def coloured(self) -> bool:
        """Whether there are several samples a pixel."""
        return self.image.facts.samples > 1

    def read(self, box: Box) -> Pixels:
        """The pixels of a box. Only tiles that it touches are decoded."""
        out_CYX = np.empty((self.image.facts.samples, *box.shape), self.image.dtype)
        self.image.fill(out_CYX, box)
        return _opaque(self.path, out_CYX)


def _tiff(file: RawFile, state: tuple[int, ...]) -> TiffLabels | PictureLabels:
    """The largest image of the file."""
    images = read_images(file)
    stack = find_pyramid(images).levels[0]
    if len(stack) > 1:
        raise SlideError(f"{file.name}: expected one image of labels, found {len(stack)} channels. {_SAVE}")
    tags, facts = stack[0], image_facts(stack[0])
    if facts.bits == 0:
        facts = replace(facts, bits=1)  # TIFF 6.0: the default, on which writers of 1-bit masks rely
    _check_tiff(facts, file.size_bytes)
    if facts.bits == 1:
        _check_whole(Path(file.name), facts.shape_yx)
        return PictureLabels(Path(file.name), facts.shape_yx, (), coloured=False, state=state)
    with tiff_of(file, images[0].layout) as tiff:
        stored = stored_image(tiff, tags, facts, 0)
    return TiffLabels(file, replace(stored, dtype=np.dtype(stored.page.dtype)), _color_map(tags, facts))


def _check_tiff(facts: ImageFacts, file_bytes: int) -> None:
    check_size(facts, 0)
    if facts.compression in (JPEG, *JPEG_2000) or facts.compression not in COMPRESSIONS:
        name = COMPRESSIONS.get(facts.compression, f"compression {facts.compression}")
        raise SlideError(f"{facts.name}: {name} is lossy or unknown, it cannot hold labels. {_SAVE}")
    if facts.bits == 1 and facts.samples == 1 and facts.photometric in (0, GREY):
        check_table(facts, 0, file_bytes)
        return
    if facts.bits not in _BITS.get(facts.sample_format, ()):
        kind = {3: "floating point"}.get(facts.sample_format, "integers")
        raise SlideError(
            f"{facts.name}: expected whole numbers of 8 to 64 bits, found {facts.bits}-bit {kind}. {_SAVE}"
        )
    if (facts.samples, facts.photometric) not in ((1, GREY), (1, _PALETTE), (3, RGB), (4, RGB)):
        raise SlideError(
            f"{facts.name}: expected one number a pixel, or RGB, found {facts.samples} samples "
            f"(photometric interpretation {facts.photometric}). {_SAVE}"
        )
    if facts.samples > 1 and facts.bits != 8:
        raise SlideError(f"{facts.name}: colours of {facts.bits} bits; expected 8. {_SAVE}")
    check_table(facts, 0, file_bytes)


def _color_map(tags: ImageTags, facts: ImageFacts) -> tuple[Rgb, ...]:
    """Palette of a TIFF (TIFF 6.0, section 5): all reds, then greens, then blues, 16 bits each."""
    if facts.photometric != _PALETTE:
        return ()
    values = np.array(tags.numbers(_COLOR_MAP), np.int64)
    if values.size != 3 << facts.bits:
        raise SlideError(f"{facts.name}: a palette of {values.size} values; expected {3 << facts.bits}. {_SAVE}")
    return tuple((int(r), int(g), int(b)) for r, g, b in (values.reshape(3, -1) >> 8).T)


# ---- PNG, and TIFF of one bit ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PictureLabels:
    """A picture of numbers or colours (see ``LabelImage``). Holds no pixels."""

    path: Path
    shape_yx: tuple[int, int]
    palette: tuple[Rgb, ...]
    coloured: bool
    state: tuple[int, ...]

    def read(self, box: Box) -> Pixels:
        """The pixels of a box. The file is decoded as a whole; the last one stays decoded."""
        pixels_CYX = _decoded(self.path, self.state)
        return _opaque(self.path, pixels_CYX[(slice(None), *box.slices)].copy())


def _png(path: Path, head: bytes, state: tuple[int, ...]) -> PictureLabels:
    """Check bits and colour type in the first chunk (ISO/IEC 15948). Pillow would rescale rejected ones."""
    bits, colour = head[24], head[25]
    if (colour == 0 and bits in (2, 4)) or (colour in (2, 4, 6) and bits == 16) or colour == 4:
        raise SlideError(f"{path}: a PNG of {bits} bits and colour type {colour} cannot hold labels. {_SAVE}")
    with _picture(path) as picture:
        shape_yx = picture.height, picture.width
        _check_whole(path, shape_yx)
        colours = np.array(picture.getpalette("RGB") or [], np.int64).reshape(-1, 3)
    palette = tuple((int(r), int(g), int(b)) for r, g, b in colours)
    return PictureLabels(path, shape_yx, palette, colour in (2, 6), state)


def _check_whole(path: Path, shape_yx: tuple[int, int]) -> None:
    if shape_yx[0] * shape_yx[1] > MAX_WHOLE_PX:
        raise SlideError(
            f"{path}: expected at most {MAX_WHOLE_PX >> 20} million pixels in a mask that can only be decoded as a "
            f"whole, found {shape_yx[1]} x {shape_yx[0]}. Save it as a tiled 8-bit TIFF"
        )


@lru_cache(maxsize=1)
def _decoded(path: Path, _state: tuple[int, ...]) -> NDArray[Any]:
    """All pixels (c, y, x)."""
    if read_head(path).startswith(_PNG_MAGIC):
        with _picture(path) as picture:
            pixels = np.asarray(picture)
    else:
        try:
            with TiffFile(path) as tiff:
                pixels = np.asarray(tiff.pages[0].asarray())
        except (ValueError, RuntimeError, OSError) as error:
            raise SlideError(f"{path}: the mask is damaged: {error}. Copy it again from its source") from error
    return np.ascontiguousarray(np.atleast_3d(pixels).transpose(2, 0, 1))


@contextmanager
def _picture(path: Path) -> Iterator[Image.Image]:
    """An open picture; errors of Pillow are raised as SlideError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_WHOLE_PX is the limit
            picture = Image.open(path, formats=("PNG",))
        with picture:
            yield picture
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        if isinstance(error, SlideError):
            raise
        raise SlideError(f"{path}: the mask is damaged: {error}. Copy it again from its source") from error


def _opaque(path: Path, pixels_CYX: Pixels) -> Pixels:
    """Drop an alpha channel that is opaque throughout; raise SlideError for any other."""
    if len(pixels_CYX) != 4:
        return pixels_CYX
    if (pixels_CYX[3] != 255).any():
        raise SlideError(f"{path}: the mask is transparent in places. Save it without transparency.")
    return pixels_CYX[:3]
