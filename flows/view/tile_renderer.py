"""What a tile of a layer shows: arrays of one tile in, a picture out. Nothing is read here.

The one decision made here: every layer but the image is a tile of small numbers and a palette. The numbers are what was
stored or counted (a probability's byte, a class), so a tile can be compared with the result itself; colour and
transparency come last, in the palette, and a tile of zeros is one transparent pixel.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.geometry import Box
from pipeline.rendering.contrast import Rgb

Indices = NDArray[np.uint8]
Palette = NDArray[np.uint8]
Labels = NDArray[np.uint32]

SKIPPED, MASKED = 1, 2
"""What the layer of what was left out tells apart."""

HEAT: tuple[Rgb, ...] = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""Of probability 0 to 1: viridis, which those who tell few colours apart can read too."""
THRESHOLD: Rgb = (0, 190, 255)
TISSUE: Rgb = (0, 110, 200)
LINES: Rgb = (32, 36, 44)
LEFT_OUT: tuple[Rgb, ...] = ((120, 126, 138), (200, 30, 30))
DAMAGED: Rgb = (200, 30, 30)
_HATCH_PX = 16
_EFFORT = 1  # of compression: a tile travels to this very machine, time is dearer than bytes


@dataclass(frozen=True, slots=True)
class TilePosition:
    """Which tile: its box in pixels of pyramid level ``level``, one of which spans 2 ** level pixels of the image."""

    level: int
    box: Box

    def first(self, axis: int) -> NDArray[np.int64]:
        """Along an axis, the first pixel of the image that each of its pixels spans."""
        start, stop = (self.box.y0, self.box.y1) if axis == 0 else (self.box.x0, self.box.x1)
        return np.arange(start, stop, dtype=np.int64) << self.level


# ---- numbers ---------------------------------------------------------------------------------------------------------


def heat(probability_KYX: NDArray[np.uint8]) -> Indices:
    """The stored byte of the likeliest class."""
    return np.asarray(probability_KYX.max(axis=0))


def over(probability_KYX: NDArray[np.uint8], threshold: float) -> Indices:
    """1 where a class reaches the threshold as ``label`` decides it: stored byte >= ceil(255 * threshold)."""
    return np.asarray(probability_KYX.max(axis=0) >= ceil(255 * threshold), np.uint8)


@dataclass(frozen=True, slots=True)
class Beside:
    """The line of labels next to each side of a tile; None at the slide's border, or where nothing is known yet."""

    above: Labels | None = None
    below: Labels | None = None
    left: Labels | None = None
    right: Labels | None = None


def rim(labels_YX: Labels, beside: Beside) -> NDArray[np.bool_]:
    """The inner boundary of every object: its pixels with another value above, below, left or right of them.

    The slide's border is none, as scikit-image has it.
    """
    found = np.zeros(labels_YX.shape, bool)
    down, across = labels_YX[1:] != labels_YX[:-1], labels_YX[:, 1:] != labels_YX[:, :-1]
    found[1:] |= down
    found[:-1] |= down
    found[:, 1:] |= across
    found[:, :-1] |= across
    if beside.above is not None:
        found[0] |= labels_YX[0] != beside.above
    if beside.below is not None:
        found[-1] |= labels_YX[-1] != beside.below
    if beside.left is not None:
        found[:, 0] |= labels_YX[:, 0] != beside.left
    if beside.right is not None:
        found[:, -1] |= labels_YX[:, -1] != beside.right
    return found & (labels_YX > 0)


def codes_of(labels_YX: Labels, codes: NDArray[np.uint8] | None) -> Indices:
    """The code of the object at each pixel, 0 beside objects; where no codes are given, all objects have the first."""
    if codes is None:
        return np.asarray(labels_YX > 0, np.uint8)
    of_id = np.concatenate((np.zeros(1, np.uint8), codes))
    return np.asarray(of_id[np.where(labels_YX < len(of_id), labels_YX, 0)], np.uint8)


def enlarged(low_YX: NDArray[Any], place: TilePosition, factor: int) -> Indices:
    """What a coarse map, one of whose pixels spans ``factor`` pixels of the image, says of each pixel of a tile.

    ``low_YX`` begins with the map's pixel that the tile's first pixel lies in.
    """
    rows, cols = (np.minimum(at - at[0], low - 1) for at, low in zip(_in_map(place, factor), low_YX.shape, strict=True))
    return np.asarray(low_YX[np.ix_(rows, cols)], np.uint8)


def map_box(place: TilePosition, factor: int) -> Box:
    """Which pixels of such a map a tile needs."""
    rows, cols = _in_map(place, factor)
    return Box(int(rows[0]), int(cols[0]), int(rows[-1]) + 1, int(cols[-1]) + 1)


def _in_map(place: TilePosition, factor: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return place.first(0) // factor, place.first(1) // factor


def left_out(skipped: Indices, masked: Sequence[Box], place: TilePosition) -> Indices:
    """What was not computed: ``skipped`` is 1 where no tissue is, and boxes of the image that could not be read."""
    found = skipped * np.uint8(SKIPPED)
    side = 2**place.level
    for box in masked:
        here = Box(box.y0 // side, box.x0 // side, -(-box.y1 // side), -(-box.x1 // side)).intersect(place.box)
        if here is not None:
            found[here.shift(-place.box.y0, -place.box.x0).slices] = MASKED
    return found


def grid(place: TilePosition, block_px: int) -> Indices:
    """1 on the first line of every block."""
    rows, cols = (place.first(axis) % block_px < 2**place.level for axis in (0, 1))
    return np.asarray(rows[:, None] | cols[None, :], np.uint8)


def hatched(shape_yx: tuple[int, int]) -> Indices:
    """Stripes: what is here cannot be read."""
    y, x = np.ogrid[: shape_yx[0], : shape_yx[1]]
    return np.asarray((y + x) % _HATCH_PX < _HATCH_PX // 2, np.uint8)


# ---- colours ---------------------------------------------------------------------------------------------------------


def palette(colours: Sequence[Rgb]) -> Palette:
    """(n + 1, 4): number 0 transparent, then these, opaque."""
    return np.array([(0, 0, 0, 0), *((*colour, 255) for colour in colours)], np.uint8)


def heat_palette() -> Palette:
    """(256, 4): a byte's colour; the less likely, the more transparent, and 0 is."""
    at, stops = np.linspace(0, len(HEAT) - 1, 256), np.arange(len(HEAT))
    rgb = np.stack([np.interp(at, stops, [colour[c] for colour in HEAT]) for c in range(3)], axis=1).round()
    alpha = np.minimum(255, 3 * np.arange(256))
    return np.concatenate((rgb, alpha[:, None]), axis=1).astype(np.uint8)


def indexed_png(indices: Indices, colours: Palette) -> bytes:
    """A tile of numbers in the colours of a palette (n, 4)."""
    if not indices.any():
        indices = np.zeros((1, 1), np.uint8)
    picture, content = Image.fromarray(indices), io.BytesIO()  # grey, then told what its levels mean
    picture.putpalette(colours[:, :3].tobytes())
    picture.save(content, "PNG", compress_level=_EFFORT, transparency=colours[:, 3].tobytes())
    return content.getvalue()


def rgb_bmp(rgb_YXC: NDArray[np.uint8]) -> bytes:
    """A tile of colours. Tissue hardly compresses, and as a PNG takes ten times as long at both ends of the line."""
    content = io.BytesIO()
    Image.fromarray(rgb_YXC).save(content, "BMP")
    return content.getvalue()


def media_type(picture: bytes) -> str:
    """Of a tile."""
    return "image/bmp" if picture.startswith(b"BM") else "image/png"
