"""Nights that nobody watches: what still grows waits, what always fails is left alone, what stops in time goes on.

Runs of the installed command on real files. That a night which is killed is made up for is in flows/test_schedule.py.
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
class Nights:
    """Four nights over a slide that was just written, and one that is broken; what was said of OUT after each."""

    out: Path
    ran: tuple[Ran, ...]
    states: tuple[dict[str, str], ...]
    status: tuple[dict[str, str], ...]


def repeat_night(out: Path) -> None:
    """The last run once more, as the history would tell it."""
    lines = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    with (out / "history.jsonl").open("a") as file:
        for line in lines[-2:]:
            file.write(json.dumps({**line, "run": f"{line['run']} again"}) + "\n")


@pytest.fixture(scope="module")
def nights(overtile: Command, overtile_alone: Command, tmp_path_factory: pytest.TempPathFactory) -> Nights:
    folder = tmp_path_factory.mktemp("nights")
    slides, out = folder / "slides", folder / "out"
    write(slides / "young.tif", draw((64, 64), red_and_blue((64, 64))))
    (slides / "broken.tif").write_bytes(b"II*\0")
    (slides / "broken.tif").touch()
    ran, states, status = [], [], []

    def look() -> None:
        told = json.loads(overtile_alone.run("status", out, "--json").stdout)
        status.append({slide["key"]: slide["state"] for slide in told["slides"]})

    for settings in ([YOUNG], ["input.settle_s=0.001", "input.pattern=['broken.tif']"]):
        ran.append(overtile_alone.segment(slides, out, *settings))
        states.append(ran[-1].states())
        look()
    for _ in range(2):
        repeat_night(out)
    look()
    ran.append(overtile.segment(slides, out, "input.settle_s=0.001"))
    states.append(ran[-1].states())
    look()
    assert overtile_alone.run("retry", out, "broken").code == 0
    look()
    return Nights(out, tuple(ran), tuple(states), tuple(status))


@pytest.mark.long
def test_fault_24_what_still_grows_is_deferred_with_a_notice(nights: Nights) -> None:
    first = nights.ran[0]
    assert first.code == 3, first.said
    assert set(nights.states[0].values()) == {"deferred"}, "broken or not: nobody knows before it has rested"
    assert "note: young: deferred at plan: " in first.stdout
    assert "young.tif: still being written?" in first.stdout
    assert first.stderr == ""
    assert nights.status[0] == {"broken": "deferred", "young": "deferred"}


@pytest.mark.long
def test_fault_24_it_is_taken_when_it_has_rested(nights: Nights) -> None:
    last = nights.ran[-1]
    assert nights.states[-1]["young"] == "complete", last.said
    assert is_complete(nights.out / "young")


@pytest.mark.long
def test_a_slide_that_failed_three_times_is_named_and_not_tried(nights: Nights) -> None:
    second, last = nights.ran[1:]
    assert (second.code, nights.states[1]) == (4, {"broken": "failed"})
    assert nights.status[2]["broken"] == "quarantined"
    assert last.code == 3
    assert nights.states[2]["broken"] == "quarantined", last.said
    assert f"To try again: overtile retry {nights.out} broken" in last.error_of("broken")
    assert "1 of 2 slides complete**, 1 quarantined" in (nights.out / "summary.md").read_text()
    assert nights.status[3] == {"broken": "quarantined", "young": "complete"}
    assert nights.status[4] == {"broken": "waiting", "young": "complete"}


@pytest.mark.long
def test_fault_10_a_night_that_is_over_is_resumable_and_the_next_one_ends_it(overtile: Command, tmp_path: Path) -> None:
    """--until, by a real clock: seconds from now, whatever the run is doing then."""
    slide = write(tmp_path / "slide.tif", draw((5000, 3500), red_and_blue((5000, 3500))))
    soon = (datetime.now() + timedelta(seconds=15)).strftime("%H:%M:%S")
    slow = ["tiles.tile=64", "input.order=newest"]
    stopped = overtile.segment(slide, tmp_path / "out", *slow, "--until", soon)
    assert stopped.code == 3, stopped.said
    assert stopped.states() == {"slide": "resumable"}
    assert soon in (tmp_path / "out" / "summary.md").read_text()
    assert not is_complete(tmp_path / "out" / "slide")

    def shards() -> dict[str, Any]:
        return {name: state for name, state in files_of(tmp_path / "out" / "slide").items() if "/0/c/" in name}

    before = shards()
    again = overtile.segment(slide, tmp_path / "out", *slow)
    assert again.code == 0, again.said
    after = shards()
    assert {name: after[name] for name in before} == before
