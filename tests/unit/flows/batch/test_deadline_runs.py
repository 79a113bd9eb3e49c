"""Deadlines: the moment of a local time of day across time zones and clock changes, and items before it."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from datetime import time as Clock  # noqa: N812
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.batch.deadline import Deadline, Taken, next_moment, read_clock, read_zone
from pipeline.errors import ConfigError

BERLIN = ZoneInfo("Europe/Berlin")
ZONES = [BERLIN, ZoneInfo("UTC"), ZoneInfo("Australia/Lord_Howe"), ZoneInfo("America/Havana"), ZoneInfo("Asia/Kolkata")]


CHANGES = [datetime(2026, 3, 8), datetime(2026, 3, 29), datetime(2026, 10, 25), datetime(2026, 11, 1)]
"""Days on which clocks change somewhere."""


def around(day: datetime) -> st.SearchStrategy[datetime]:
    return st.datetimes(day - timedelta(1), day + timedelta(1))


def watched(clock: Clock, now: float, zone: ZoneInfo) -> float | None:
    """The moment found by checking every minute; None when the clock is set forward over the time first."""
    minute = (int(now) // 60 + 1) * 60
    before = datetime.fromtimestamp(minute - 60, zone).replace(tzinfo=None)
    while True:
        shown = datetime.fromtimestamp(minute, zone).replace(tzinfo=None)
        if shown.time() == clock:
            return float(minute)
        wanted = datetime.combine(shown.date(), clock)
        if shown - before > timedelta(minutes=1) and before < wanted < shown:
            return None
        minute, before = minute + 60, shown


@settings(deadline=None)
@given(
    st.sampled_from(ZONES),
    st.times(),
    st.one_of(st.datetimes(datetime(2026, 1, 1), datetime(2027, 12, 31)), *map(around, CHANGES)),
)
def test_deadline_is_the_next_moment_with_that_local_time(zone: ZoneInfo, clock: Clock, start: datetime) -> None:
    clock, now = clock.replace(second=0, microsecond=0), start.replace(tzinfo=UTC).timestamp()
    expected = watched(clock, now, zone)
    if expected is not None:
        assert next_moment(clock, now, zone) == expected


@pytest.mark.parametrize(
    ("now", "clock", "expected"),
    [
        ("2026-03-28 22:00+01:00", "07:00", "2026-03-29 07:00+02:00"),  # an hour less in the night
        ("2026-10-24 22:00+02:00", "07:00", "2026-10-25 07:00+01:00"),  # an hour more
        ("2026-03-29 01:00+01:00", "02:30", "2026-03-29 03:30+02:00"),  # there is no 02:30
        ("2026-10-25 02:00+02:00", "02:30", "2026-10-25 02:30+02:00"),  # the first of two
        ("2026-10-25 02:45+02:00", "02:30", "2026-10-25 02:30+01:00"),  # the second
        ("2026-11-21 07:00+01:00", "07:00", "2026-11-22 07:00+01:00"),
        ("2026-12-31 23:59+01:00", "00:00", "2027-01-01 00:00+01:00"),
    ],
)
def test_deadline_across_midnight_and_clock_changes(now: str, clock: str, expected: str) -> None:
    moment = next_moment(read_clock(clock), datetime.fromisoformat(now).timestamp(), BERLIN)
    assert datetime.fromtimestamp(moment, UTC) == datetime.fromisoformat(expected)


def test_default_time_zone_is_that_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime(2026, 10, 24, 20, tzinfo=UTC).timestamp()
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("TZ", "Europe/Berlin")
        time.tzset()
        found = next_moment(Clock(7), now, None)
    time.tzset()
    assert found == next_moment(Clock(7), now, BERLIN)


@pytest.mark.parametrize("text", ["7", "25:00", "07:00:61", "", "07:0x", "7 am"])
def test_invalid_time_of_day_is_rejected(text: str) -> None:
    with pytest.raises(ConfigError, match=r"such as 07:00"):
        read_clock(text)


@pytest.mark.parametrize("name", ["Europe/Berln", "", "../etc/passwd", "/etc/localtime"])
def test_invalid_time_zone_is_rejected(name: str) -> None:
    with pytest.raises(ConfigError, match="Europe/Berlin"):
        read_zone(name)


def test_items_end_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10))
    monkeypatch.setattr("flows.batch.deadline.time.time", lambda: next(clock))
    taken = Taken(range(100), Deadline(3.0, Clock(7)))
    assert (list(taken), taken.cut) == ([0, 1, 2], True)
    whole = Taken(range(4), Deadline())
    assert (list(whole), whole.cut) == ([0, 1, 2, 3], False)
