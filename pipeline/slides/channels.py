"""A selection of a slide's channels, in a given order.

A channel is selected by its number, counted from 1, or by its exact name in the slide. The selection wraps a reader,
so that readers need no knowledge of it.
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
class SelectedChannels:
    """A slide reduced to the channels ``numbers`` (counted from 1), in that order, as a SlideReader."""

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
        """Number of selected channels."""
        return len(self.numbers)

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the selected channels, in their order."""
        return tuple(self.slide.channel_names[number - 1] for number in self.numbers)

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8 or uint16."""
        return self.slide.dtype

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings of the slide."""
        return self.slide.warnings

    @property
    def mpp_yx(self) -> tuple[float, float] | None:
        """Micrometres per pixel of level 0."""
        return self.slide.mpp_yx

    def read(self, level: int, box: Box) -> Pixels:
        """The selected channels of ``box`` as a new (c, y, x) array. Raises what the slide's reader raises."""
        chosen: Pixels = self.slide.read(level, box)[[number - 1 for number in self.numbers]]
        return chosen

    def fingerprint(self) -> str:
        """Fingerprint of the slide. The selection itself is hashed by the plan."""
        return self.slide.fingerprint()

    def describe(self) -> dict[str, Any]:
        """Description of the slide."""
        return self.slide.describe()


def select_channels(slide: SlideReader, numbers: tuple[int, ...] | None) -> SlideReader:
    """Select channels by number (from 1), in the given order; None keeps the slide as it is."""
    return slide if numbers is None else SelectedChannels(slide, numbers)


def channel_numbers(slide: SlideReader, requested: Sequence[int | str] | None) -> tuple[int, ...] | None:
    """Resolve channels given by number or name.

    Args:
        slide: The slide.
        requested: Numbers (from 1) or names; None for all channels.

    Returns:
        Numbers from 1; None for all channels.

    Raises:
        SlideError: If a channel does not exist or is given twice; the message lists the existing channels.
    """
    if requested is None:
        return None
    numbers = tuple(_number(slide, channel) for channel in requested)
    if len(set(numbers)) != len(numbers):
        raise SlideError(f"{slide.path}: input.channels names a channel twice. {_available(slide)}")
    return numbers


def _number(slide: SlideReader, requested: int | str) -> int:
    if isinstance(requested, int) and 1 <= requested <= slide.channels:
        return requested
    if requested in slide.channel_names:
        return slide.channel_names.index(str(requested)) + 1
    raise SlideError(f"{slide.path}: input.channels asks for {requested!r}. {_available(slide)}")


def _available(slide: SlideReader) -> str:
    names = ", ".join(f"{number} ({name})" for number, name in enumerate(slide.channel_names, 1))
    return f"The slide has {names}. Choose among these"
