"""Rendering of viewer tiles: arrays of one tile in, a picture out. This module reads no files.

Every layer but the image is a tile of small integers and a palette. The integers are what was stored or counted (the
byte of a probability, a class), so a tile can be compared with the result itself. Colour and transparency are applied
last, by the palette. A tile of zeros is encoded as one transparent pixel.
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
"""Indices of the layer ``left-out``: no tissue, and not readable."""

HEAT: tuple[Rgb, ...] = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""Colours of probability 0 to 1: viridis, which is readable with colour vision deficiency."""
THRESHOLD: Rgb = (0, 190, 255)
TISSUE: Rgb = (0, 110, 200)
LINES: Rgb = (32, 36, 44)
LEFT_OUT: tuple[Rgb, ...] = ((120, 126, 138), (200, 30, 30))
DAMAGED: Rgb = (200, 30, 30)
_HATCH_PX = 16
_PNG_LEVEL = 1  # compression level: tiles stay on this machine, so time matters more than size


@dataclass(frozen=True, slots=True)
class PyramidTile:
    """A tile: its box in pixels of pyramid level ``level``, each 2 ** level full-resolution pixels wide."""

    level: int
    box: Box

    def first(self, axis: int) -> NDArray[np.int64]:
        """Return, along an axis, the first full-resolution pixel that each pixel of the tile spans."""
        start, stop = (self.box.y0, self.box.y1) if axis == 0 else (self.box.x0, self.box.x1)
        return np.arange(start, stop, dtype=np.int64) << self.level


# ---- palette indices -------------------------------------------------------------------------------------------------


def max_probability(probability_KYX: NDArray[np.uint8]) -> Indices:
    """Return the stored byte of the most probable class."""
    return np.asarray(probability_KYX.max(axis=0))


def above_threshold(probability_KYX: NDArray[np.uint8], threshold: float) -> Indices:
    """Return 1 where a class reaches the threshold, as in the label stage: stored byte >= ceil(255 * threshold)."""
    return np.asarray(probability_KYX.max(axis=0) >= ceil(255 * threshold), np.uint8)


@dataclass(frozen=True, slots=True)
class NeighbourLabels:
    """The line of labels next to each side of a tile; None at the border of the slide or where it is unknown."""

    above: Labels | None = None
    below: Labels | None = None
    left: Labels | None = None
    right: Labels | None = None


def inner_boundary(labels_YX: Labels, neighbours: NeighbourLabels) -> NDArray[np.bool_]:
    """Return the inner boundary of every object: pixels with a different value above, below, left or right of them.

    The border of the slide is not a boundary, as in scikit-image.
    """
    result = np.zeros(labels_YX.shape, bool)
    down, across = labels_YX[1:] != labels_YX[:-1], labels_YX[:, 1:] != labels_YX[:, :-1]
    result[1:] |= down
    result[:-1] |= down
    result[:, 1:] |= across
    result[:, :-1] |= across
    if neighbours.above is not None:
        result[0] |= labels_YX[0] != neighbours.above
    if neighbours.below is not None:
        result[-1] |= labels_YX[-1] != neighbours.below
    if neighbours.left is not None:
        result[:, 0] |= labels_YX[:, 0] != neighbours.left
    if neighbours.right is not None:
        result[:, -1] |= labels_YX[:, -1] != neighbours.right
    return result & (labels_YX > 0)


def colour_indices(labels_YX: Labels, codes: NDArray[np.uint8] | None) -> Indices:
    """Return the palette index of the object at each pixel, 0 between objects.

    Args:
        labels_YX: Object ids.
        codes: Palette index by object (id - 1); None gives all objects index 1.
    """
    if codes is None:
        return np.asarray(labels_YX > 0, np.uint8)
    of_id = np.concatenate((np.zeros(1, np.uint8), codes))
    return np.asarray(of_id[np.where(labels_YX < len(of_id), labels_YX, 0)], np.uint8)


def upsampled(low_YX: NDArray[Any], position: PyramidTile, factor: int) -> Indices:
    """Return the value of a coarse map at each pixel of a tile.

    Args:
        low_YX: Part of the map that begins at the map pixel containing the first pixel of the tile.
        position: The tile.
        factor: Full-resolution pixels per map pixel.
    """
    rows, cols = (
        np.minimum(index - index[0], low - 1)
        for index, low in zip(_map_pixels(position, factor), low_YX.shape, strict=True)
    )
    return np.asarray(low_YX[np.ix_(rows, cols)], np.uint8)


def map_box(position: PyramidTile, factor: int) -> Box:
    """Return the box of a coarse map that a tile needs."""
    rows, cols = _map_pixels(position, factor)
    return Box(int(rows[0]), int(cols[0]), int(rows[-1]) + 1, int(cols[-1]) + 1)


def _map_pixels(position: PyramidTile, factor: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return position.first(0) // factor, position.first(1) // factor


def left_out(skipped: Indices, masked: Sequence[Box], position: PyramidTile) -> Indices:
    """Mark what was not computed.

    Args:
        skipped: 1 where there is no tissue.
        masked: Boxes of the full resolution that could not be read.
        position: The tile.
    """
    result = skipped * np.uint8(SKIPPED)
    side = 2**position.level
    for box in masked:
        overlap = Box(box.y0 // side, box.x0 // side, -(-box.y1 // side), -(-box.x1 // side)).intersect(position.box)
        if overlap is not None:
            result[overlap.shift(-position.box.y0, -position.box.x0).slices] = MASKED
    return result


def grid(position: PyramidTile, block_px: int) -> Indices:
    """Return 1 on the first row and column of every block."""
    rows, cols = (position.first(axis) % block_px < 2**position.level for axis in (0, 1))
    return np.asarray(rows[:, None] | cols[None, :], np.uint8)


def hatched(shape_yx: tuple[int, int]) -> Indices:
    """Return diagonal stripes, which mark a tile that cannot be read."""
    y, x = np.ogrid[: shape_yx[0], : shape_yx[1]]
    return np.asarray((y + x) % _HATCH_PX < _HATCH_PX // 2, np.uint8)


# ---- colours ---------------------------------------------------------------------------------------------------------


def palette(colours: Sequence[Rgb]) -> Palette:
    """Return an RGBA palette (n + 1, 4): index 0 transparent, then the given opaque colours."""
    return np.array([(0, 0, 0, 0), *((*colour, 255) for colour in colours)], np.uint8)


def heat_palette() -> Palette:
    """Return the RGBA palette (256, 4) of a probability byte; low probabilities are more transparent."""
    positions, stops = np.linspace(0, len(HEAT) - 1, 256), np.arange(len(HEAT))
    rgb = np.stack([np.interp(positions, stops, [colour[c] for colour in HEAT]) for c in range(3)], axis=1).round()
    alpha = np.minimum(255, 3 * np.arange(256))
    return np.concatenate((rgb, alpha[:, None]), axis=1).astype(np.uint8)


def indexed_png(indices: Indices, colours: Palette) -> bytes:
    """Encode a tile of indices as a PNG with an RGBA palette (n, 4)."""
    if not indices.any():
        indices = np.zeros((1, 1), np.uint8)
    picture, content = Image.fromarray(indices), io.BytesIO()  # grey, then indexed by the palette
    picture.putpalette(colours[:, :3].tobytes())
    picture.save(content, "PNG", compress_level=_PNG_LEVEL, transparency=colours[:, 3].tobytes())
    return content.getvalue()


def rgb_bmp(rgb_YXC: NDArray[np.uint8]) -> bytes:
    """Encode an RGB tile as BMP. Tissue hardly compresses, and PNG takes ten times as long to encode and decode."""
    content = io.BytesIO()
    Image.fromarray(rgb_YXC).save(content, "BMP")
    return content.getvalue()


def media_type(picture: bytes) -> str:
    """Return the media type of an encoded tile."""
    return "image/bmp" if picture.startswith(b"BM") else "image/png"
