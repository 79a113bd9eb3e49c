"""What a slide is to the rest of the pipeline: levels of pixels, a resolution, a fingerprint.

Pure: no file is opened here. The one decision made here: a level's downsample is the whole number it was made with
whenever its size allows that number, not the quotient of two rounded sizes. Writers crop the last column, they do
not stretch the image, so 2967 px halved to 1483 is 2, not 2.0007 (which is off by 30 px at the far end of a slide).
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
    """One level of the pyramid: its (y, x) shape and how many level-0 pixels one of its pixels spans."""

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
class TilePlace:
    """Where a tile or strip lies: its level, its (row, col) there and the pixels of the level it covers."""

    level: int
    row: int
    col: int
    box: Box

    def __str__(self) -> str:
        return f"level {self.level}, tile ({self.row}, {self.col})"


class TileError(SlideError):
    """One tile cannot be decoded; ``place`` says which. The rest of the slide may be sound."""

    def __init__(self, message: str, place: TilePlace) -> None:
        super().__init__(message, place)
        self.place = place

    def __str__(self) -> str:
        return str(self.args[0])


class SlideReader(Protocol):
    """An open slide. Safe to use from several threads; never pickled (send the path)."""

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
        """Number of channels ``read`` returns."""

    @property
    def channel_names(self) -> tuple[str, ...]:
        """One distinct name a channel, as the file states them; see ``name_channels``."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8 or uint16, in native byte order."""

    @property
    def mpp_yx(self) -> tuple[float, float] | None:
        """Micrometres per pixel of level 0 as the file states them, however absurd; None when it does not."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know about the file although it can be read; mostly nothing."""

    def read(self, level: int, box: Box) -> Pixels:
        """Pixels of ``box`` (in pixels of ``level``, inside it) as a new (c, y, x) array.

        Raises TileError when a tile it needs is damaged.
        """

    def fingerprint(self) -> str:
        """Digest of what the file holds: its size, its tile tables and samples of its bytes. Not its name or date."""

    def describe(self) -> dict[str, Any]:
        """Facts about the file that say nothing about a person: no label, user, date or name. JSON types only."""


def name_channels(stated: Sequence[str], channels: int) -> tuple[str, ...]:
    """A name for each of ``channels``: as stated when the file names them all, each once; else by colour or number.

    A stated name is shortened to one line of 60 characters; one that is empty or comes twice is its number instead.
    """
    numbered = tuple(f"channel {number}" for number in range(1, channels + 1))
    if len(stated) != channels or not any(stated):
        return {1: ("grey",), 3: ("red", "green", "blue")}.get(channels, numbered)
    short = [" ".join(name.split())[:_NAME_CHARS] for name in stated]
    return tuple(
        name if name and short.count(name) == 1 else number for name, number in zip(short, numbered, strict=True)
    )


def downsample_yx(base_yx: tuple[int, int], shape_yx: tuple[int, int]) -> tuple[float, float]:
    """How many pixels of ``base_yx`` one pixel of ``shape_yx`` spans, as (y, x).

    The whole number k, the same for both axes, when ``shape_yx`` is ``base_yx / k`` rounded either way;
    else the quotients.
    """
    whole = round(max(base / side for base, side in zip(base_yx, shape_yx, strict=True)))
    for k in (whole, whole - 1, whole + 1):
        if k >= 1 and all(abs(base - k * side) < k for base, side in zip(base_yx, shape_yx, strict=True)):
            return float(k), float(k)
    return base_yx[0] / shape_yx[0], base_yx[1] / shape_yx[1]


def is_reduction(base_yx: tuple[int, int], shape_yx: tuple[int, int]) -> bool:
    """True when ``shape_yx`` is ``base_yx`` made smaller: no side longer, same proportions to a pixel of rounding."""
    (base_y, base_x), (y, x) = base_yx, shape_yx
    return (
        (y, x) != (base_y, base_x) and y <= base_y and x <= base_x and abs(y * base_x - x * base_y) <= base_x + base_y
    )
