"""A TIFF slide (SVS, NDPI, OME-TIFF, plain TIFF) from our own directory parser and tifffile's decoder.

Tiles are read with ``pread`` and decoded one by one by tifffile's page decoder, without its file position, cache or
repairs. So any number of threads may read at once, a box costs only the tiles it touches, and a tile that does not
decode to exactly what the directory states is an error with a place.
"""

from __future__ import annotations

import hashlib
import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.geometry import Box
from pipeline.slide_reader import Level, Pixels, downsample_yx, name_channels
from pipeline.slides.checks.file import SAMPLE_BYTES, SAMPLES, RawFile
from pipeline.slides.checks.image import COMPRESSIONS, ImageFacts, check_image, check_size, has_alpha
from pipeline.slides.checks.pixels import over_white
from pipeline.slides.tiff.pyramid import Pyramid, find_pyramid, openslide_layout
from pipeline.slides.tiff.tags import ImageTags, check_tags, image_facts, read_images
from pipeline.slides.tiff.tile_decoder import StoredImage, stored_image, tiff_of


def load_tiff(file: RawFile) -> TiffSlide | None:
    """Parse and check an open TIFF; nothing is decoded.

    Args:
        file: The open file. The slide closes it when it is collected.

    Returns:
        The slide, or None for a layout that OpenSlide reads.

    Raises:
        SlideError: If the file is damaged or not supported.
    """
    try:
        images = read_images(file)
        slide = None if _is_for_openslide(images) else _load(file, images)
    except BaseException:
        os.close(file.fd)
        raise
    if slide is None:
        os.close(file.fd)
    else:
        weakref.finalize(slide, os.close, file.fd)
    return slide


def _is_for_openslide(images: tuple[ImageTags, ...]) -> bool:
    """Whether OpenSlide reads the layout. Image sizes are checked first, because OpenSlide allocates them."""
    if openslide_layout(images[0]) is None:
        return False
    for number, image in enumerate(image for image in images if image.tiled):
        check_size(image_facts(image), number)
    return True


def _load(file: RawFile, images: tuple[ImageTags, ...]) -> TiffSlide:
    pyramid = find_pyramid(images)
    checked = [[_checked(tags, level) for tags in stack] for level, stack in enumerate(pyramid.levels)]
    check_tags(images[0])
    with tiff_of(file, images[0].layout) as tiff:
        stored = tuple(
            tuple(stored_image(tiff, tags, facts, level) for tags, facts in zip(stack, checked[level], strict=True))
            for level, stack in enumerate(pyramid.levels)
        )
    shapes = [stack[0].shape_yx for stack in pyramid.levels]
    levels = tuple(Level(shape_yx, downsample_yx(shapes[0], shape_yx)) for shape_yx in shapes)
    return TiffSlide(file, pyramid, stored, levels)


def _checked(tags: ImageTags, level: int) -> ImageFacts:
    facts = image_facts(tags)
    check_image(facts, level, tags.file.size_bytes)
    return facts


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class TiffSlide:
    """A TIFF slide as a SlideReader. It holds one file descriptor until it is collected."""

    file: RawFile
    pyramid: Pyramid
    images: tuple[tuple[StoredImage, ...], ...]
    levels: tuple[Level, ...]

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.file.name)

    @property
    def format(self) -> str:
        """Name of the file format."""
        return self.pyramid.format

    @property
    def mpp_yx(self) -> tuple[float, float] | None:
        """Micrometres per pixel of level 0 as stated."""
        return self.pyramid.mpp_yx

    @property
    def channels(self) -> int:
        """Number of channels that ``read`` returns: those of all images of a level, without alpha."""
        facts = self._facts
        return len(self.images[0]) * facts.samples - (has_alpha(facts) is not None)

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names from the OME-XML, else by colour or number."""
        return name_channels(self.pyramid.channel_names, self.channels)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Empty: every problem of a TIFF is an error."""
        return ()

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8 or uint16."""
        return self.images[0][0].dtype

    @property
    def _facts(self) -> ImageFacts:
        return self.images[0][0].facts

    def read(self, level: int, box: Box) -> Pixels:
        """Read a box of a level.

        Args:
            level: Level to read.
            box: Box inside the level, in its pixels.

        Returns:
            A new (c, y, x) array; an alpha is composited over white.

        Raises:
            ValueError: If the box is not inside the level.
            TileError: If a tile is damaged.
        """
        if Box.of_shape(self.levels[level].shape_yx).intersect(box) != box:
            raise ValueError(f"{self.file.name}: box {box} is not inside level {level}, {self.levels[level].shape_yx}")
        images, samples = self.images[level], self._facts.samples
        out_CYX = np.empty((len(images) * samples, *box.shape), self.dtype)
        for k, image in enumerate(images):
            image.fill(out_CYX[k * samples : (k + 1) * samples], box)
        alpha = has_alpha(self._facts)
        return out_CYX if alpha is None else over_white(out_CYX, alpha)

    def fingerprint(self) -> str:
        """SHA-256 of the size, the shape and tile tables of every level, and 256 samples of 4 KiB."""
        digest = hashlib.sha256(f"slide 1 {self.file.size_bytes} {self.pyramid.mpp_yx}".encode())
        for image in (image for stack in self.images for image in stack):
            segments = image.facts.segments
            digest.update(f"{image.facts.shape_yx} {segments.side_yx} {image.facts.compression}".encode())
            digest.update(segments.offsets.tobytes() + segments.counts.tobytes())
        for offset in np.linspace(0, max(0, self.file.size_bytes - SAMPLE_BYTES), SAMPLES).astype(np.int64):
            length = min(SAMPLE_BYTES, self.file.size_bytes - int(offset))
            digest.update(self.file.read(int(offset), length, "a sample for the fingerprint"))
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Format, vendor, channels and levels. No free text of the file is included."""
        return {
            "format": self.format,
            "vendor": self.pyramid.vendor or None,
            "bytes": self.file.size_bytes,
            "channels": self.channels,
            "dtype": str(self.dtype),
            "mpp_yx": list(self.mpp_yx) if self.mpp_yx else None,
            "levels": [self._describe_level(level) for level in range(len(self.levels))],
        }

    def _describe_level(self, level: int) -> dict[str, Any]:
        facts = self.images[level][0].facts
        return {
            "shape_yx": list(facts.shape_yx),
            "downsample_yx": list(self.levels[level].downsample_yx),
            "tile_yx": list(facts.segments.side_yx),
            "compression": COMPRESSIONS[facts.compression],
        }
