"""Deadline (`--until HH:MM`): no new block starts after it.

The moment is determined once, when the run starts, as the next moment with that local time. If the clock is set forward
over it, the deadline moves by the same amount. Blocks that have started are completed and kept.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from datetime import time as Clock  # noqa: N812  a time of day; ``time`` is the module
from typing import TypeVar
from zoneinfo import ZoneInfo

from pipeline.errors import ConfigError, OvertileError

T = TypeVar("T")


class TimeUpError(OvertileError):
    """The deadline has passed. Completed blocks are kept; the next run resumes."""


def read_clock(text: str) -> Clock:
    """Parse a time of day such as 07:00.

    Raises:
        ConfigError: The text is no time of day.
    """
    try:
        return datetime.strptime(text, "%H:%M:%S" if text.count(":") == 2 else "%H:%M").time()
    except ValueError as error:
        raise ConfigError(f"--until {text}: expected a time of day such as 07:00") from error


def read_zone(name: str) -> ZoneInfo:
    """The time zone of a name.

    Raises:
        ConfigError: There is no time zone of that name.
    """
    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError) as error:
        raise ConfigError(f"--timezone {name}: expected a name such as Europe/Berlin or UTC") from error


def next_moment(clock: Clock, now: float, zone: ZoneInfo | None) -> float:
    """The first moment after ``now`` (seconds since 1970) with this local time in ``zone``; None is the machine's."""
    today = datetime.fromtimestamp(now, zone).date()
    days = (today + timedelta(days=ahead) for ahead in (0, 1, 2))
    return min(moment for day in days for moment in _moments(day, clock, zone) if moment > now)


def _moments(day: date, clock: Clock, zone: ZoneInfo | None) -> Iterator[float]:
    """The moments of a local time on a day: one, or two when the clock is set back over it."""
    local = datetime.combine(day, clock)
    for fold in (0, 1):
        moment = local.replace(tzinfo=zone, fold=fold).timestamp()
        if datetime.fromtimestamp(moment, zone).replace(tzinfo=None) >= local:  # else before a clock set forward
            yield moment


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a run stops; ``moment`` is None for a run without deadline."""

    moment: float | None = None
    clock: Clock | None = None

    @classmethod
    def of(cls, clock: Clock | None, zone: str | None) -> Deadline:
        """The next moment with this local time."""
        if clock is None:
            return cls()
        return cls(next_moment(clock, time.time(), None if zone is None else read_zone(zone)), clock)

    def is_over(self) -> bool:
        """Whether no new block may start."""
        return self.moment is not None and time.time() >= self.moment

    def error(self) -> TimeUpError:
        """The error of a slide that was stopped."""
        return TimeUpError(f"stopped at {self}; completed blocks are kept, and the next run resumes")

    def __str__(self) -> str:
        return "" if self.clock is None else self.clock.isoformat("seconds" if self.clock.second else "minutes")


@dataclass(slots=True)
class Taken(Iterable[T]):
    """The items before the deadline; ``cut`` is set when there were more."""

    items: Iterable[T]
    deadline: Deadline
    cut: bool = False

    def __iter__(self) -> Iterator[T]:
        for item in self.items:
            if self.deadline.is_over():
                self.cut = True
                return
            yield item
