"""Until when: a time of day, as the clock on the wall shows it, and the blocks that may still be taken before it.

The one decision made here: the moment is found once, when the run begins, as the first one after it at which the clock
shows that time; where the clock is set forward over it, as much later as it was set forward. What was begun before it
is ended and kept, nothing is begun after it.
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
    """The time to stop has come. What is done is kept, the next run goes on."""


def read_clock(text: str) -> Clock:
    """A time of day such as 07:00. Raises ConfigError for anything else."""
    try:
        return datetime.strptime(text, "%H:%M:%S" if text.count(":") == 2 else "%H:%M").time()
    except ValueError as error:
        raise ConfigError(f"--until {text}: expected a time of day such as 07:00") from error


def read_zone(name: str) -> ZoneInfo:
    """A time zone by its name. Raises ConfigError when there is none of that name."""
    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError) as error:
        raise ConfigError(f"--timezone {name}: expected a name such as Europe/Berlin or UTC") from error


def next_moment(clock: Clock, now: float, zone: ZoneInfo | None) -> float:
    """The first moment after ``now`` (seconds since 1970) when clocks in the zone, or this machine's, show it."""
    today = datetime.fromtimestamp(now, zone).date()
    days = (today + timedelta(days=ahead) for ahead in (0, 1, 2))
    return min(moment for day in days for moment in _moments(day, clock, zone) if moment > now)


def _moments(day: date, clock: Clock, zone: ZoneInfo | None) -> Iterator[float]:
    """When it is shown on that day: once, twice when the clock is set back over it."""
    wanted = datetime.combine(day, clock)
    for fold in (0, 1):
        moment = wanted.replace(tzinfo=zone, fold=fold).timestamp()
        if datetime.fromtimestamp(moment, zone).replace(tzinfo=None) >= wanted:  # else before a clock set forward
            yield moment


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a run stops; ``moment`` is None for one that goes on to its end."""

    moment: float | None = None
    clock: Clock | None = None

    @classmethod
    def of(cls, clock: Clock | None, zone: str | None) -> Deadline:
        """The next time that the clock shows it, counted from now."""
        if clock is None:
            return cls()
        return cls(next_moment(clock, time.time(), None if zone is None else read_zone(zone)), clock)

    def is_over(self) -> bool:
        """Whether nothing may be begun any more."""
        return self.moment is not None and time.time() >= self.moment

    def error(self) -> TimeUpError:
        """What is said of a slide that was stopped."""
        return TimeUpError(f"stopped at {self}; the blocks done are kept, and the next run goes on")

    def __str__(self) -> str:
        return "" if self.clock is None else self.clock.isoformat("seconds" if self.clock.second else "minutes")


@dataclass(slots=True)
class Taken(Iterable[T]):
    """What may be taken before the deadline; ``cut`` when there was more."""

    items: Iterable[T]
    deadline: Deadline
    cut: bool = False

    def __iter__(self) -> Iterator[T]:
        for item in self.items:
            if self.deadline.is_over():
                self.cut = True
                return
            yield item
