"""The tags of one image of a TIFF file, without interpretation or repair.

Defaults come from the TIFF specification (6.0, Adobe 1992) except for BitsPerSample: its default of 1 bit is never
right for a slide, so a missing one stays 0 and is refused later.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SlideError
from pipeline.slides.checks.file import RawFile
from pipeline.slides.checks.image import ImageFacts, Segments
from pipeline.slides.tiff.ifd import Directory, Entry, Layout, text, values, walk

SUBFILE, WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, DESCRIPTION = 254, 256, 257, 258, 259, 262, 270
STRIP_OFFSETS, SAMPLES, STRIP_ROWS, STRIP_COUNTS, X_RESOLUTION, Y_RESOLUTION = 273, 277, 278, 279, 282, 283
PLANAR, UNIT, SOFTWARE, PREDICTOR, TILE_WIDTH, TILE_LENGTH = 284, 296, 305, 317, 322, 323
TILE_OFFSETS, TILE_COUNTS, EXTRA_SAMPLES, SAMPLE_FORMAT, JPEG_TABLES = 324, 325, 338, 339, 347
_MAX_SIZE = 1 << 40
_SHORT_TAG = 4096
_INTEGERS = frozenset({3, 4, 13, 16, 18})
_SINGLE = (
    WIDTH,
    LENGTH,
    COMPRESSION,
    PHOTOMETRIC,
    SAMPLES,
    STRIP_ROWS,
    PLANAR,
    UNIT,
    PREDICTOR,
    TILE_WIDTH,
    TILE_LENGTH,
)
_TABLES = (STRIP_OFFSETS, STRIP_COUNTS, TILE_OFFSETS, TILE_COUNTS)
_PER_SAMPLE = (BITS, SAMPLE_FORMAT)
_REFUSED = {
    266: ((1,), "its bits run from the lowest up (FillOrder"),
    274: ((0, 1), "it is stored rotated or mirrored (Orientation"),
    32997: ((0, 1), "it is a stack (ImageDepth"),
}


@dataclass(frozen=True, slots=True)
class ImageTags:
    """The tags of one image; values are read from the file on access."""

    file: RawFile
    layout: Layout
    directory: Directory

    def entry(self, code: int) -> Entry | None:
        """The tag's entry, or None."""
        return self.directory.tags.get(code)

    def table(self, code: int) -> NDArray[np.int64]:
        """A tag of integers, of any length; empty when it is missing."""
        entry = self.entry(code)
        if entry is None or entry.count == 0:
            return np.zeros(0, np.int64)
        array = values(self.file, self.layout, entry, f"tag {code}")
        if array.dtype.kind not in "iu" or array.ndim != 1:
            raise SlideError(
                f"{self.file.name}: tag {code} holds {array.dtype}; expected integers. The file is damaged."
            )
        return array.astype(np.int64) if array.dtype.itemsize < 8 else _clip(array)

    def numbers(self, code: int) -> tuple[int, ...]:
        """At most the first 4096 values of a tag of integers; empty when it is missing."""
        return tuple(int(value) for value in self.table(code)[:_SHORT_TAG])

    def number(self, code: int, default: int) -> int:
        """The first value of a tag of integers."""
        numbers = self.numbers(code)
        return numbers[0] if numbers else default

    def ratio(self, code: int) -> float | None:
        """The first value of a tag of rationals or floats; None when it is missing or divides by 0."""
        entry = self.entry(code)
        if entry is None or entry.count == 0:
            return None
        first = values(self.file, self.layout, entry, f"tag {code}")[0]
        if np.ndim(first) == 0:
            return float(first)
        return float(first[0]) / float(first[1]) if first[1] else None

    def text(self, code: int) -> str:
        """A text tag; "" when it is missing."""
        return text(self.file, self.entry(code))

    @property
    def shape_yx(self) -> tuple[int, int]:
        """(length, width) in pixels; 0 where the tag is missing."""
        return self.number(LENGTH, 0), self.number(WIDTH, 0)

    @property
    def area_px(self) -> int:
        """Number of pixels."""
        return self.shape_yx[0] * self.shape_yx[1]

    @property
    def tiled(self) -> bool:
        """Whether the image is stored as tiles, not as strips."""
        return self.entry(TILE_WIDTH) is not None

    @property
    def kind(self) -> tuple[int, int]:
        """(samples a pixel, bits a sample): the same for all levels of a pyramid."""
        return self.number(SAMPLES, 1), self.number(BITS, 0)

    def children(self) -> tuple[ImageTags, ...]:
        """The sub-images."""
        return tuple(ImageTags(self.file, self.layout, child) for child in self.directory.children)


def read_images(file: RawFile) -> tuple[ImageTags, ...]:
    """The images of the main chain, in file order. Raises SlideError for a damaged chain."""
    layout, directories = walk(file)
    return tuple(ImageTags(file, layout, directory) for directory in directories)


def check_tags(tags: ImageTags) -> None:
    """Refuse tags of the image that are not integers or have a wrong number of values."""
    samples = tags.number(SAMPLES, 1) if (entry := tags.entry(SAMPLES)) and entry.type_code in _INTEGERS else 1
    for code in (*_SINGLE, *_TABLES, *_PER_SAMPLE, EXTRA_SAMPLES):
        entry = tags.entry(code)
        if entry is None:
            continue
        counts = (1,) if code in _SINGLE else (1, samples) if code in _PER_SAMPLE else (entry.count,)
        if entry.type_code not in _INTEGERS or entry.count not in counts or entry.count == 0:
            raise SlideError(
                f"{tags.file.name}: tag {code} of image {tags.directory.index} holds {entry.count} values of type "
                f"{entry.type_code}; expected {' or '.join(map(str, counts))} integers. The file is damaged: copy it "
                "again from its source."
            )


def image_facts(tags: ImageTags) -> ImageFacts:
    """Collect the facts that checking and reading an image need.

    Raises:
        SlideError: If a tag is malformed or changes how pixels are stored (FillOrder, Orientation, ImageDepth).
    """
    check_tags(tags)
    for code, (allowed, what) in _REFUSED.items():
        if (value := tags.number(code, 1)) not in allowed and not (code == 266 and tags.number(COMPRESSION, 1) == 7):
            raise SlideError(f"{tags.file.name}: the image is not supported: {what} {value}). Convert it with vips.")
    return ImageFacts(
        name=tags.file.name,
        shape_yx=tags.shape_yx,
        segments=_segments(tags),
        samples=tags.number(SAMPLES, 1),
        planar=tags.number(PLANAR, 1),
        bits=_one_value(tags, BITS, missing=0),
        sample_format=_one_value(tags, SAMPLE_FORMAT, missing=1),
        compression=tags.number(COMPRESSION, 1),
        photometric=tags.number(PHOTOMETRIC, -1),
        predictor=tags.number(PREDICTOR, 1),
        extra_samples=tags.numbers(EXTRA_SAMPLES),
    )


def _segments(tags: ImageTags) -> Segments:
    height, width = tags.shape_yx
    if tags.tiled:
        side_yx = tags.number(TILE_LENGTH, 0), tags.number(TILE_WIDTH, 0)
        return Segments(side_yx, tags.table(TILE_OFFSETS), tags.table(TILE_COUNTS), tiled=True)
    side_yx = min(tags.number(STRIP_ROWS, height), height), width
    return Segments(side_yx, tags.table(STRIP_OFFSETS), tags.table(STRIP_COUNTS), tiled=False)


def _one_value(tags: ImageTags, code: int, missing: int) -> int:
    """The value that all samples share; -1 when they differ."""
    distinct = set(tags.numbers(code))
    return missing if not distinct else distinct.pop() if len(distinct) == 1 else -1


def _clip(values_u64: NDArray[np.integer]) -> NDArray[np.int64]:
    """64-bit values clipped to the largest plausible size, so that their sums cannot overflow."""
    clipped: NDArray[np.int64] = np.clip(values_u64, 0, _MAX_SIZE).astype(np.int64)
    return clipped
