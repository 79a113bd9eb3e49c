"""Images and masks as arrays that are read when they are sliced.

An array is a path and a function that reads a box. Nothing is held except what the readers keep open, so images may be
larger than memory, and pixels do not depend on the window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.label_image import open_labels
from pipeline.annotations.lazy_components import CONNECTIVITY
from pipeline.errors import SlideError
from pipeline.geometry import Box, TileGrid
from pipeline.objects.components import label_pieces
from pipeline.slides.opening import open_slide
from unet_core.class_map import IGNORED
from unet_core.data.mask_encoding import Content, Meaning, packed

WINDOW_PX = 1024
MOST_COLOURS = 4096
"""A mask with more colours is a photograph, and counting stops."""

ReadBox = Callable[[Box], NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Windows:
    """Lazy array (y, x), or (c, y, x) with ``channels``; slices must have a step of 1.

    Attributes:
        read: Reads a box in the coordinates of ``area``.
        area: The part of the source that the array covers.
        dtype: Type of the pixels.
        channels: Number of channels; None for an array without a channel axis.
    """

    read: ReadBox
    area: Box
    dtype: np.dtype[Any]
    channels: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""
        return self.area.shape if self.channels is None else (self.channels, *self.area.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all pixels."""
        return self.area.area_px * (self.channels or 1) * self.dtype.itemsize

    def __getitem__(self, key: tuple[slice, ...] | slice) -> NDArray[Any]:
        slices = key if isinstance(key, tuple) else (key,)
        spans = [one.indices(length) for one, length in zip((*slices, *[slice(None)] * 3), self.shape, strict=False)]
        if len(slices) > len(self.shape) or any(step != 1 for _, _, step in spans):
            raise IndexError(f"{key}: expected at most {len(self.shape)} slices without steps")
        (y0, y1, _), (x0, x1, _) = spans[-2:]
        box = Box(y0, x0, max(y0, y1), max(x0, x1))
        if not box.area_px:
            pixels = np.zeros((*self.shape[:-2], *box.shape), self.dtype)
        else:
            pixels = self.read(box.shift(self.area.y0, self.area.x0)).astype(self.dtype, copy=False)
        return np.asarray(pixels if self.channels is None else pixels[slice(*spans[0])])


def windows(shape_yx: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    """Slices (y, x) of squares of at most 1024 px that cover an image."""
    return (tile.core.slices for tile in TileGrid(Box(0, 0, shape_yx[-2], shape_yx[-1]), WINDOW_PX))


@dataclass(frozen=True, slots=True)
class SlidePixels:
    """Reads level 0 of a slide."""

    path: Path

    def __call__(self, box: Box) -> NDArray[Any]:
        """Pixels (c, y, x) of a box."""
        return open_slide(self.path).read(0, box)


def no_objects(box: Box) -> NDArray[np.int32]:
    """Numbers (y, x) of a box without objects."""
    return np.zeros(box.shape, np.int32)


@dataclass(frozen=True, slots=True)
class MaskValues:
    """Reads the numbers of a mask.

    Attributes:
        path: The mask.
        by_colour: Whether a palette's colours are used instead of its numbers. Colours are packed into numbers.
        ignore: Number of ignored pixels, which read as ``blank``.
        blank: Number that replaces ``ignore``.
    """

    path: Path
    by_colour: bool = False
    ignore: int | None = None
    blank: int = 0

    def __call__(self, box: Box) -> NDArray[Any]:
        """Numbers (y, x) of a box."""
        numbers_YX = self._stored(box)
        return numbers_YX if self.ignore is None else np.where(numbers_YX == self.ignore, self.blank, numbers_YX)

    def ignored(self, box: Box) -> NDArray[np.bool_]:
        """Mask (y, x) of the ignored pixels of a box."""
        return np.asarray(self._stored(box) == self.ignore)

    def _stored(self, box: Box) -> NDArray[Any]:
        mask = open_labels(self.path)
        pixels_CYX = mask.read(box)
        if mask.coloured:
            return packed(pixels_CYX)
        if not (self.by_colour and mask.palette):
            return np.asarray(pixels_CYX[0])
        if int(pixels_CYX.max(initial=0)) >= len(mask.palette):
            raise SlideError(
                f"{self.path}: number {pixels_CYX.max()} in a palette of {len(mask.palette)} colours. Save it again"
            )
        colours: NDArray[np.int32] = packed(np.array(mask.palette).T)
        return np.asarray(colours[pixels_CYX[0]])


@dataclass(frozen=True, slots=True)
class MaskClasses:
    """Reads the class of each pixel of a mask."""

    values: MaskValues
    meaning: Meaning

    def __call__(self, box: Box) -> NDArray[np.uint8]:
        """Classes (y, x) of a box."""
        return self.meaning.classes_of(self.values(box))


@dataclass(frozen=True, slots=True)
class KnownClasses:
    """Reads the class of each pixel (1 without ``classes``), ``IGNORED`` where ``ignored`` is True."""

    classes: ReadBox | None
    ignored: ReadBox

    def __call__(self, box: Box) -> NDArray[np.uint8]:
        """Classes (y, x) of a box."""
        classes_YX = np.ones(box.shape, np.uint8) if self.classes is None else self.classes(box)
        return np.where(self.ignored(box), np.uint8(IGNORED), classes_YX)


@dataclass(frozen=True, slots=True)
class ClassOfObject:
    """Reads the class of each pixel by the number of its object; ``classes[0]`` is that of background."""

    objects: ReadBox
    classes: tuple[int, ...]

    def __call__(self, box: Box) -> NDArray[np.uint8]:
        """Classes (y, x) of a box."""
        return np.array(self.classes, np.uint8)[self.objects(box)]


def content_of(values: MaskValues) -> Content:
    """Distinct values of a mask, read window by window.

    Raises:
        SlideError: The file is not a mask.
    """
    mask = open_labels(values.path)
    coloured = mask.coloured or (values.by_colour and bool(mask.palette))
    content = Content(str(values.path), coloured, mask.palette[0] if mask.palette and not coloured else None)
    for tile in TileGrid(Box.of_shape(mask.shape_yx), WINDOW_PX):
        numbers_YX = values(tile.core)
        distinct = np.unique(numbers_YX).tolist()
        content.values.update(distinct)
        if coloured and len(content.values) > MOST_COLOURS:
            break
        if not coloured:
            content.seen += len(distinct) - (0 in distinct)
            content.pieces += int(label_pieces(numbers_YX, CONNECTIVITY).label.max(initial=0))
    return content
