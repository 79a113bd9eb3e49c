"""Some channels of a slide, in an order of one's own: what a model of that many inputs is to see.

The one decision made here: a channel is asked for by its number, counted from 1, or by the name the slide states;
never by its wavelength or by what looks like it. Choosing wraps a reader, so no reader knows of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import SlideError
from pipeline.geometry import Box
from pipeline.slide_reader import Level, Pixels, SlideReader


@dataclass(frozen=True, slots=True, eq=False)
class ChosenChannels:
    """A slide with only the channels ``numbers`` (counted from 1), in that order: see SlideReader."""

    slide: SlideReader
    numbers: tuple[int, ...]

    @property
    def path(self) -> Path:
        """The file."""
        return self.slide.path

    @property
    def format(self) -> str:
        """Name of the file format."""
        return self.slide.format

    @property
    def levels(self) -> tuple[Level, ...]:
        """The pyramid, largest level first."""
        return self.slide.levels

    @property
    def channels(self) -> int:
        """How many are chosen."""
        return len(self.numbers)

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the chosen ones, in their order."""
        return tuple(self.slide.channel_names[number - 1] for number in self.numbers)

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8 or uint16."""
        return self.slide.dtype

    @property
    def warnings(self) -> tuple[str, ...]:
        """The slide's."""
        return self.slide.warnings

    @property
    def mpp_yx(self) -> tuple[float, float] | None:
        """Micrometres per pixel of level 0."""
        return self.slide.mpp_yx

    def read(self, level: int, box: Box) -> Pixels:
        """The chosen channels of ``box`` as a new (c, y, x) array."""
        chosen: Pixels = self.slide.read(level, box)[[number - 1 for number in self.numbers]]
        return chosen

    def fingerprint(self) -> str:
        """The slide's: which channels are chosen is for the plan to hash."""
        return self.slide.fingerprint()

    def describe(self) -> dict[str, Any]:
        """The slide's facts."""
        return self.slide.describe()


def choose_channels(slide: SlideReader, numbers: tuple[int, ...] | None) -> SlideReader:
    """The slide with only the channels of these numbers (from 1), in this order; as it is for None."""
    return slide if numbers is None else ChosenChannels(slide, numbers)


def channel_numbers(slide: SlideReader, asked: Sequence[int | str] | None) -> tuple[int, ...] | None:
    """Numbers (from 1) of the channels asked for by number or by name; None, for all, stays None.

    Raises SlideError, naming the channels there are, for one that is not there or asked for twice.
    """
    if asked is None:
        return None
    numbers = tuple(_number(slide, one) for one in asked)
    if len(set(numbers)) != len(numbers):
        raise SlideError(f"{slide.path}: input.channels names a channel twice. {_there(slide)}")
    return numbers


def _number(slide: SlideReader, asked: int | str) -> int:
    if isinstance(asked, int) and 1 <= asked <= slide.channels:
        return asked
    if asked in slide.channel_names:
        return slide.channel_names.index(str(asked)) + 1
    raise SlideError(f"{slide.path}: input.channels asks for {asked!r}. {_there(slide)}")


def _there(slide: SlideReader) -> str:
    names = ", ".join(f"{number} ({name})" for number, name in enumerate(slide.channel_names, 1))
    return f"The slide has {names}. Choose among these"
