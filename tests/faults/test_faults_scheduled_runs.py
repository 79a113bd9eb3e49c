"""Unattended scheduled runs.

Growing files wait, repeated failures are quarantined, and runs that reach their deadline are resumed. Runs of the
installed command on real files. A killed scheduled run is made up for in unit/flows/test_schedule.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import Command, Ran, files_of, is_complete
from tests.support.faults.pictures import draw, red_and_blue, write

YOUNG = "input.settle_s=3600"


@dataclass(frozen=True, slots=True)
class ScheduledRuns:
    """Four runs over a new slide and a broken one, and the output of ``status`` after each."""

    out: Path
    ran: tuple[Ran, ...]
    states: tuple[dict[str, str], ...]
    status: tuple[dict[str, str], ...]


def repeat_last_run(out: Path) -> None:
    """Append the last run to the history once more."""
    lines = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    with (out / "history.jsonl").open("a") as file:
        for line in lines[-2:]:
            file.write(json.dumps({**line, "run": f"{line['run']} again"}) + "\n")


@pytest.fixture(scope="module")
def scheduled(overtile: Command, overtile_alone: Command, tmp_path_factory: pytest.TempPathFactory) -> ScheduledRuns:
    folder = tmp_path_factory.mktemp("scheduled")
    slides, out = folder / "slides", folder / "out"
    write(slides / "young.tif", draw((64, 64), red_and_blue((64, 64))))
    (slides / "broken.tif").write_bytes(b"II*\0")
    (slides / "broken.tif").touch()
    ran, states, status = [], [], []

    def look() -> None:
        report = json.loads(overtile_alone.run("status", out, "--json").stdout)
        status.append({slide["key"]: slide["state"] for slide in report["slides"]})

    for settings in ([YOUNG], ["input.settle_s=0.001", "input.pattern=['broken.tif']"]):
        ran.append(overtile_alone.segment(slides, out, *settings))
        states.append(ran[-1].states())
        look()
    for _ in range(2):
        repeat_last_run(out)
    look()
    ran.append(overtile.segment(slides, out, "input.settle_s=0.001"))
    states.append(ran[-1].states())
    look()
    assert overtile_alone.run("retry", out, "broken").code == 0
    look()
    return ScheduledRuns(out, tuple(ran), tuple(states), tuple(status))


@pytest.mark.long
def test_fault_24_what_still_grows_is_deferred_with_a_notice(scheduled: ScheduledRuns) -> None:
    first = scheduled.ran[0]
    assert first.code == 3, first.transcript
    assert set(scheduled.states[0].values()) == {"deferred"}, (
        "not even the broken one is opened before it is old enough"
    )
    assert "note: young: deferred at plan: " in first.stdout
    assert "young.tif: still being written?" in first.stdout
    assert first.stderr == ""
    assert scheduled.status[0] == {"broken": "deferred", "young": "deferred"}


@pytest.mark.long
def test_fault_24_deferred_slide_is_segmented_once_unchanged(scheduled: ScheduledRuns) -> None:
    last = scheduled.ran[-1]
    assert scheduled.states[-1]["young"] == "complete", last.transcript
    assert is_complete(scheduled.out / "young")


@pytest.mark.long
def test_a_slide_that_failed_three_times_is_named_and_not_tried(scheduled: ScheduledRuns) -> None:
    second, last = scheduled.ran[1:]
    assert (second.code, scheduled.states[1]) == (4, {"broken": "failed"})
    assert scheduled.status[2]["broken"] == "quarantined"
    assert last.code == 3
    assert scheduled.states[2]["broken"] == "quarantined", last.transcript
    assert f"To try again: overtile retry {scheduled.out} broken" in last.error_of("broken")
    assert "1 of 2 slides complete**, 1 quarantined" in (scheduled.out / "summary.md").read_text()
    assert scheduled.status[3] == {"broken": "quarantined", "young": "complete"}
    assert scheduled.status[4] == {"broken": "waiting", "young": "complete"}


@pytest.mark.long
def test_fault_10_run_stopped_by_until_is_resumed_by_the_next(overtile: Command, tmp_path: Path) -> None:
    """``--until`` is a few seconds from now, whatever the run is doing then."""
    slide = write(tmp_path / "slide.tif", draw((5000, 3500), red_and_blue((5000, 3500))))
    soon = (datetime.now() + timedelta(seconds=15)).strftime("%H:%M:%S")
    slow = ["tiles.tile=64", "input.order=newest"]
    stopped = overtile.segment(slide, tmp_path / "out", *slow, "--until", soon)
    assert stopped.code == 3, stopped.transcript
    assert stopped.states() == {"slide": "resumable"}
    assert soon in (tmp_path / "out" / "summary.md").read_text()
    assert not is_complete(tmp_path / "out" / "slide")

    def shards() -> dict[str, Any]:
        return {name: state for name, state in files_of(tmp_path / "out" / "slide").items() if "/0/c/" in name}

    before = shards()
    again = overtile.segment(slide, tmp_path / "out", *slow)
    assert again.code == 0, again.transcript
    after = shards()
    assert {name: after[name] for name in before} == before
