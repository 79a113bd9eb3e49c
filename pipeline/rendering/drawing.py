"""Scale bars, frames, outlines and tints drawn on pictures in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage
from skimage.segmentation import find_boundaries

from pipeline.rendering.contrast import Rgb
from pipeline.rendering.text import draw_text, text_width

INK: Rgb = (32, 36, 44)
PALE: Rgb = (112, 118, 128)
WHITE: Rgb = (255, 255, 255)
_COVER = 0.6  # opacity of a full tint; the tissue remains visible


# ---- lengths --------------------------------------------------------------------------------------------------------


def nice_length(at_most: float) -> float:
    """The largest 1, 2 or 5 times a power of ten that is at most ``at_most``."""
    power = 10.0 ** math.floor(math.log10(at_most))
    return next(step * power for step in (5, 2, 1) if step * power <= at_most * (1 + 1e-9))


def length_label(length_um: float) -> str:
    """Label of a length: in mm from 1 mm, else in um."""
    return f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} \u00b5m"


def scale_bar(picture: Image.Image, um_per_px: float, *, part: float, size_px: int) -> None:
    """Draw a scale bar in the lower left corner, on a pale plate; nothing where the picture is too small.

    Args:
        picture: Changed in place.
        um_per_px: Size of a pixel.
        part: Largest length of the bar as a part of the picture's width.
        size_px: Size of the text.
    """
    length_um = nice_length(picture.width * um_per_px * part)
    bar_px, label = round(length_um / um_per_px), length_label(length_um)
    pad, thick = size_px // 2, max(3, size_px // 5)
    wide = max(bar_px, text_width(label, size_px)) + 2 * pad
    high = size_px + thick + 2 * pad
    if wide > picture.width - 2 * pad or high > picture.height - 2 * pad:
        return
    left, top = pad, picture.height - pad - high
    picture.paste(Image.blend(picture.crop(box := (left, top, left + wide, top + high)), _plate(box), 0.8), box)
    draw = ImageDraw.Draw(picture)
    middle = left + wide / 2
    draw_text(draw, (middle - text_width(label, size_px) / 2, top + pad + size_px * 0.8), label, size_px, INK)
    bottom = top + high - pad
    draw.rectangle((middle - bar_px / 2, bottom - thick, middle + bar_px / 2 - 1, bottom - 1), fill=INK)


def _plate(box: tuple[int, int, int, int]) -> Image.Image:
    return Image.new("RGB", (box[2] - box[0], box[3] - box[1]), WHITE)


# ---- frames ---------------------------------------------------------------------------------------------------------


def badge(picture: Image.Image, at_xy: tuple[float, float], letter: str, size_px: int) -> None:
    """Draw a letter on a dark square with its upper left corner at ``at_xy``, moved inside the picture."""
    side = round(size_px * 1.5)
    x = min(max(0, round(at_xy[0])), max(0, picture.width - side))
    y = min(max(0, round(at_xy[1])), max(0, picture.height - side))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((x, y, x + side - 1, y + side - 1), fill=INK)
    start = x + (side - text_width(letter, size_px)) / 2
    draw_text(draw, (start, y + side / 2 + size_px * 0.36), letter, size_px, WHITE)


def frame(picture: Image.Image, box_xyxy: tuple[float, float, float, float], *, least_px: int = 16) -> None:
    """Draw a dark frame with a white line inside around a box, enlarged about its centre to at least ``least_px``."""
    x0, y0, x1, y1 = box_xyxy
    grow_x, grow_y = max(0.0, least_px - (x1 - x0)) / 2, max(0.0, least_px - (y1 - y0)) / 2
    corners = [round(edge) for edge in (x0 - grow_x, y0 - grow_y, x1 + grow_x, y1 + grow_y)]
    draw = ImageDraw.Draw(picture)
    draw.rectangle((corners[0] - 2, corners[1] - 2, corners[2] + 1, corners[3] + 1), outline=INK, width=4)
    draw.rectangle((corners[0] - 1, corners[1] - 1, corners[2], corners[3]), outline=WHITE, width=2)


# ---- pixels ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours of objects.

    Attributes:
        classes: Class of object id at index id - 1 (n,).
        colours: RGB of each class (k, 3).
    """

    classes: NDArray[np.uint8]
    colours: NDArray[np.uint8]

    def of(self, ids: NDArray[Any]) -> NDArray[np.uint8]:
        """Colours (n, 3) of ids (n,), none of which is 0."""
        return np.asarray(self.colours[self.classes[ids.astype(np.int64) - 1]])


def outline_objects(rgb_YXC: NDArray[np.uint8], labels_YX: NDArray[np.uint32], palette: Palette, width_px: int) -> None:
    """Draw the inner boundary of every object in the colour of its class, in place.

    Args:
        rgb_YXC: Picture (y, x, 3).
        labels_YX: Object ids, 0 = background.
        palette: Colours of objects.
        width_px: Width of the line, which lies inside the object.
    """
    edge = find_boundaries(labels_YX, connectivity=1, mode="inner")
    if width_px > 1:
        edge = ndimage.binary_dilation(edge, iterations=width_px - 1) & (labels_YX > 0)
    rgb_YXC[edge] = palette.of(labels_YX[edge])


def lighter(colours: Sequence[Rgb]) -> NDArray[np.uint8]:
    """Colours (k, 3) half way to white, visible on dark pictures and distinct from the colours of channels."""
    return np.asarray((np.asarray(colours, np.uint16) + 255) // 2, np.uint8)


def outline_mask(rgb_YXC: NDArray[np.uint8], mask_YX: NDArray[np.bool_], colour: Rgb) -> None:
    """Draw the boundary of a mask, two pixels wide, in place."""
    rgb_YXC[find_boundaries(mask_YX, mode="thick")] = colour


@dataclass(slots=True)
class Tint:
    """Colour overlay of a picture, accumulated class by class: any number of classes takes four planes.

    Attributes:
        total: Sum of the strengths of all classes (y, x).
        colour: Sum of their colours weighted by strength (y, x, 3).
    """

    total: NDArray[np.float32]
    colour: NDArray[np.float32]

    @classmethod
    def empty(cls, shape_yx: tuple[int, int]) -> Tint:
        """An overlay of strength 0."""
        return cls(np.zeros(shape_yx, np.float32), np.zeros((*shape_yx, 3), np.float32))

    def add(self, strength_YX: NDArray[np.float32], colour: Sequence[int] | NDArray[np.uint8]) -> None:
        """Add one class with a strength for each pixel (y, x)."""
        self.total += strength_YX
        self.colour += strength_YX[..., None] * np.asarray(colour, np.float32)

    def lay_over(self, rgb_YXC: NDArray[np.uint8], full: float) -> None:
        """Blend into a picture (y, x, 3) in place; a strength of ``full`` or more has full opacity."""
        colour = self.colour / np.where(self.total > 0, self.total, 1)[..., None]
        cover = (self.total / full).clip(0, 1)[..., None] * np.float32(_COVER)
        rgb_YXC[:] = (rgb_YXC * (1 - cover) + colour * cover).round().astype(np.uint8)


def ramp(colour: Rgb, width_px: int, height_px: int) -> Image.Image:
    """Colour scale of ``Tint`` on white, from strength 0 on the left to full on the right."""
    cover = np.linspace(0, _COVER, width_px)[None, :, None]
    row = (255 * (1 - cover) + np.array(colour) * cover).round().astype(np.uint8)
    return Image.fromarray(np.repeat(row, height_px, axis=0))
