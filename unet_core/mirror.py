"""Reads beyond an image's border: the image mirrored repeatedly.

Indices are mirrored, pixels are not padded: one contiguous read of the needed pixels, then a lookup along each axis
that leaves the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class ArrayLike(Protocol):
    """An array that slices to something numpy accepts; the last two axes are (y, x)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Pixels along each axis."""

    def __getitem__(self, key: tuple[slice, ...], /) -> Any: ...


class BoxLike(Protocol):
    """A half-open rectangle of pixels; it may lie outside the image."""

    @property
    def y0(self) -> int:
        """First row."""

    @property
    def x0(self) -> int:
        """First column."""

    @property
    def y1(self) -> int:
        """Last row + 1."""

    @property
    def x1(self) -> int:
        """Last column + 1."""


@dataclass(frozen=True, slots=True)
class Square:
    """A half-open rectangle of pixels, y0 <= y < y1 and x0 <= x < x1."""

    y0: int
    x0: int
    y1: int
    x1: int


def mirrored_indices(start: int, stop: int, length: int) -> NDArray[np.intp]:
    """Return the indices in an axis of `length` pixels of pixels start..stop-1 of the repeatedly mirrored axis.

    As numpy's "reflect": the edge pixel is not repeated, so the pattern has period 2 * (length - 1).
    """
    return mirrored(np.arange(start, stop, dtype=np.intp), length)


def mirrored(positions: NDArray[Any], length: int) -> NDArray[Any]:
    """Return the positions in an axis of `length` pixels of positions on the repeatedly mirrored axis."""
    if length == 1:
        return np.zeros_like(positions)
    period = 2 * (length - 1)
    inside = positions % period
    return np.asarray(np.minimum(inside, period - inside))


def read_mirrored(array: ArrayLike, box: BoxLike) -> NDArray[Any]:
    """Return the pixels of a box of the repeatedly mirrored image.

    Equal to a slice of np.pad(array, mode="reflect").

    Args:
        array: Image (..., y, x). It is sliced once, by at most the size of the box.
        box: Rectangle to read.

    Returns:
        Array (..., y1 - y0, x1 - x0).

    Raises:
        ValueError: The image has no pixels, or the box ends before it starts.
    """
    height, width = array.shape[-2:]
    if height < 1 or width < 1:
        raise ValueError(f"image of {height} x {width} px: expected at least 1 x 1 to mirror")
    if box.y1 < box.y0 or box.x1 < box.x0:
        raise ValueError(f"box y {box.y0}..{box.y1}, x {box.x0}..{box.x1}: expected stop not before start")
    y = mirrored_indices(box.y0, box.y1, height)
    x = mirrored_indices(box.x0, box.x1, width)
    leading = (slice(None),) * (len(array.shape) - 2)
    pixels: NDArray[Any] = np.asarray(array[(*leading, _span(y), _span(x))])
    if box.y0 < 0 or box.y1 > height:
        pixels = np.take(pixels, y - y.min(initial=height), axis=-2)
    if box.x0 < 0 or box.x1 > width:
        pixels = np.take(pixels, x - x.min(initial=width), axis=-1)
    return pixels


def _span(indices: NDArray[np.intp]) -> slice:
    """Return the smallest slice that holds every index."""
    return slice(int(indices.min()), int(indices.max()) + 1) if indices.size else slice(0, 0)
