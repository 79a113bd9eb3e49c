"""Display of stored pixels: channel and class colours, contrast windows, composition of channels to RGB.

A bright colour slide (three 8-bit channels named red, green and blue) is displayed unchanged, a dark one is brightened
as a whole. The channels of any other image are stretched between two percentiles of the slide's pixels and added in
their colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rgb = tuple[int, int, int]
Window = tuple[float, float]

CHANNEL_COLOURS: tuple[Rgb, ...] = (
    (0, 92, 255),  # the first channel of a fluorescence slide is usually the nuclear stain
    (0, 255, 0),
    (255, 0, 0),
    (255, 0, 255),
    (255, 255, 0),
    (0, 255, 255),
    (255, 255, 255),
)
CLASS_COLOURS: tuple[Rgb, ...] = (
    (0, 190, 60),
    (255, 140, 0),
    (0, 130, 255),
    (230, 40, 40),
    (160, 70, 230),
    (0, 190, 190),
    (225, 190, 0),
)
"""Distinct from the pink and violet of haematoxylin and eosin, and from each other."""

_RGB_NAMES = {("red", "green", "blue"), ("r", "g", "b")}
_LOW_PERCENT, _HIGH_PERCENT = 1.0, 99.7
_DARK = 64  # mean grey level below which a colour slide is fluorescence, not stained tissue on glass


def is_colour(channel_names: Sequence[str], dtype: np.dtype[Any]) -> bool:
    """Whether the channels are the red, green and blue of a colour camera with 8 bits each."""
    return dtype == np.uint8 and tuple(name.lower() for name in channel_names) in _RGB_NAMES


def channel_colours(channel_names: Sequence[str], dtype: np.dtype[Any]) -> tuple[Rgb, ...]:
    """One colour a channel: red, green, blue for a colour slide, white for a single channel, else a fixed palette."""
    if is_colour(channel_names, dtype):
        return (255, 0, 0), (0, 255, 0), (0, 0, 255)
    if len(channel_names) == 1:
        return ((255, 255, 255),)
    return tuple(CHANNEL_COLOURS[index % len(CHANNEL_COLOURS)] for index in range(len(channel_names)))


def class_colours(number: int) -> tuple[Rgb, ...]:
    """Default colours of ``number`` classes, for models that define none."""
    return tuple(CLASS_COLOURS[index % len(CLASS_COLOURS)] for index in range(number))


def contrast(pixels_YX: NDArray[Any]) -> Window:
    """Contrast window (low, high) of one channel: its 1st and 99.7th percentile, never an empty interval.

    Pixels of value 0 are left out when others exist, because scanners fill unscanned areas with 0.
    """
    scanned = pixels_YX[pixels_YX > 0]
    sample = scanned if scanned.size else pixels_YX.ravel()
    low, high = (float(np.percentile(sample, percent, method="nearest")) for percent in (_LOW_PERCENT, _HIGH_PERCENT))
    if low == high:
        low = max(0.0, low - 1)
    return low, max(high, low + 1)


def windows(pixels_CYX: NDArray[Any], channel_names: Sequence[str]) -> tuple[Window, ...]:
    """Contrast window of each channel, measured on a low-resolution image of the whole slide.

    Args:
        pixels_CYX: Image (c, y, x).
        channel_names: Name of each channel.
    """
    if not is_colour(channel_names, pixels_CYX.dtype):
        return tuple(contrast(channel) for channel in pixels_CYX)
    high = 255.0 if pixels_CYX.mean() >= _DARK else max(contrast(channel)[1] for channel in pixels_CYX)
    return ((0.0, high),) * 3


def compose(pixels_CYX: NDArray[Any], channel_names: Sequence[str], limits: Sequence[Window]) -> NDArray[np.uint8]:
    """Compose an image to RGB.

    Args:
        pixels_CYX: Image (c, y, x).
        channel_names: Name of each channel.
        limits: Contrast window of each channel.

    Returns:
        RGB (y, x, 3): the channels stretched to their windows and added in their colours.
    """
    if is_colour(channel_names, pixels_CYX.dtype) and set(limits) == {(0.0, 255.0)}:
        return np.ascontiguousarray(np.moveaxis(pixels_CYX, 0, -1))
    mixed = np.zeros((*pixels_CYX.shape[1:], 3), np.float32)
    colours = channel_colours(channel_names, pixels_CYX.dtype)
    for channel, (low, high), colour in zip(pixels_CYX, limits, colours, strict=True):
        bright = ((channel.astype(np.float32) - low) / (high - low)).clip(0, 1)
        mixed += bright[..., None] * np.asarray(colour, np.float32)
    return np.asarray(mixed.clip(0, 255).round(), np.uint8)
