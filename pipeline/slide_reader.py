"""The interface of an open slide: levels of pixels, a resolution, a fingerprint.

No file is opened here. A level's downsample is the integer with which the level was made whenever its size allows that
integer, not the quotient of two rounded sizes. Writers crop the last column, they do not stretch the image, so 2967 px
halved to 1483 px is 2, not 2.0007 (an error of 30 px at the far end of a slide).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SlideError
from pipeline.geometry import Box

Pixels = NDArray[Any]

_NAME_CHARS = 60


@dataclass(frozen=True, slots=True)
class Level:
    """One level of the pyramid: its (y, x) shape, and the level-0 pixels along one of its pixels."""

    shape_yx: tuple[int, int]
    downsample_yx: tuple[float, float]

    @property
    def hashed_text(self) -> str:
        """Text that enters fingerprints. It must not change, whatever the class and its fields are called."""
        return f"Level(shape_yx={self.shape_yx!r}, downsample_yx={self.downsample_yx!r})"


def hashed_levels(levels: Sequence[Level]) -> str:
    """Text of all levels that enters fingerprints: that of a tuple of them."""
    texts = [level.hashed_text for level in levels]
    return f"({', '.join(texts)}{',' if len(texts) == 1 else ''})"


@dataclass(frozen=True, slots=True)
class TileIndex:
    """Position of a tile or strip: its level, its (row, col) there and the pixels of the level that it covers."""

    level: int
    row: int
    col: int
    box: Box

    def __str__(self) -> str:
        return f"level {self.level}, tile ({self.row}, {self.col})"


class TileError(SlideError):
    """One tile, at ``place``, cannot be decoded. The rest of the slide may be intact."""

    def __init__(self, message: str, place: TileIndex) -> None:
        super().__init__(message, place)
        self.place = place

    def __str__(self) -> str:
        return str(self.args[0])


class SlideReader(Protocol):
    """An open slide. Safe to use from several threads; not picklable (send the path)."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def format(self) -> str:
        """Name of the file format, such as "Aperio SVS"."""

    @property
    def levels(self) -> tuple[Level, ...]:
        """The pyramid, largest level first."""

    @property
    def channels(self) -> int:
        """Number of channels that ``read`` returns."""

    @property
    def channel_names(self) -> tuple[str, ...]:
        """A distinct name for each channel, as the file states them; see ``name_channels``."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8 or uint16, in native byte order."""

    @property
    def mpp_yx(self) -> tuple[float, float] | None:
        """Micrometres per pixel of level 0 as the file states them, unchecked; None when it does not."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Remarks for the user about a file that can be read; usually none."""

    def read(self, level: int, box: Box) -> Pixels:
        """Read pixels as a new (c, y, x) array.

        Args:
            level: Index of the level.
            box: Box in pixels of the level, inside it.

        Raises:
            TileError: A tile that covers part of the box is damaged.
        """

    def fingerprint(self) -> str:
        """Digest of the file's size, tile tables and samples of its bytes; its name and date do not enter."""

    def describe(self) -> dict[str, Any]:
        """Facts about the file without personal data: no label, user, date or name. JSON types only."""


def name_channels(stated: Sequence[str], channels: int) -> tuple[str, ...]:
    """Name each channel.

    Stated names are used when the file names all channels, else colours or numbers. A stated name is shortened to one
    line of 60 characters; an empty or repeated one is replaced by its number.
    """
    numbered = tuple(f"channel {number}" for number in range(1, channels + 1))
    if len(stated) != channels or not any(stated):
        return {1: ("grey",), 3: ("red", "green", "blue")}.get(channels, numbered)
    short = [" ".join(name.split())[:_NAME_CHARS] for name in stated]
    return tuple(
        name if name and short.count(name) == 1 else number for name, number in zip(short, numbered, strict=True)
    )


def downsample_yx(base_yx: tuple[int, int], shape_yx: tuple[int, int]) -> tuple[float, float]:
    """Pixels of ``base_yx`` along one pixel of ``shape_yx``, as (y, x).

    Returns:
        The integer k for both axes when ``shape_yx`` is ``base_yx / k`` rounded up or down, else the quotients.
    """
    whole = round(max(base / side for base, side in zip(base_yx, shape_yx, strict=True)))
    for k in (whole, whole - 1, whole + 1):
        if k >= 1 and all(abs(base - k * side) < k for base, side in zip(base_yx, shape_yx, strict=True)):
            return float(k), float(k)
    return base_yx[0] / shape_yx[0], base_yx[1] / shape_yx[1]


def is_reduction(base_yx: tuple[int, int], shape_yx: tuple[int, int]) -> bool:
    """Whether ``shape_yx`` is ``base_yx`` made smaller: no side longer, same proportions up to a pixel of rounding."""
    (base_y, base_x), (y, x) = base_yx, shape_yx
    return (
        (y, x) != (base_y, base_x) and y <= base_y and x <= base_x and abs(y * base_x - x * base_y) <= base_x + base_y
    )
