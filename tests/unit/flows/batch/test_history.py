"""The history: one line when a run starts and one when it ends; failure counts follow from them alone."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from flows.batch.history import MOST_FAILURES, NAME, BatchHistory, note

WRITERS, LINES = 4, 200


def ended(run: str, *, complete: tuple[str, ...] = (), exit_code: int = 3, **failed: str) -> dict[str, Any]:
    """The end of a run in which these slides failed; attempts by key."""
    slides = {
        key: {"state": "failed", "stage": "ingest", "cause": "x", "slide": key, "attempt": attempt}
        for key, attempt in failed.items()
    }
    return {"run": run, "exit_code": exit_code, "not_complete": slides, "recovered": list(complete)}


def began(run: str, force: bool | list[str] = False) -> dict[str, Any]:
    return {"run": run, "force": force or [], "command": ["overtile", "segment"], "who": "x", "host": "y"}


def nights(out: Path, *ends: dict[str, Any]) -> None:
    for end in ends:
        note(out, "began", began(end["run"]))
        note(out, "ended", end)


def count(out: Path, key: str) -> int:
    found = BatchHistory.read(out).failures().get(key)
    return found.count if found else 0


def test_killed_run_has_no_end(tmp_path: Path) -> None:
    note(tmp_path, "began", began("killed"))
    nights(tmp_path, ended("a", exit_code=0), ended("b"))
    assert [run.exit_code for run in BatchHistory.read(tmp_path).runs()] == [None, 0, 3]


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_torn_last_line_is_tolerated_by_reader_and_writer(tmp_path: Path, cut: int) -> None:
    nights(tmp_path, ended("a", slide="p"), ended("b", slide="p"))
    whole = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(whole[:-cut])
    assert [run.exit_code for run in BatchHistory.read(tmp_path).runs()] == [3, 3 if cut == 1 else None]
    nights(tmp_path, ended("c", slide="p"))
    assert BatchHistory.read(tmp_path).runs()[-1].exit_code == 3
    assert count(tmp_path, "slide") == (3 if cut == 1 else 2)


def test_invalid_line_is_ignored(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b'[]\n"x"\n{"event": "ended"}\n{"when": "from version 0.1.0"}\n\xff\n')
    nights(tmp_path, ended("a", slide="p"))
    assert [run.exit_code for run in BatchHistory.read(tmp_path).runs()] == [3]
    assert count(tmp_path, "slide") == 1


def _write(out: Path, writer: int, start: Any) -> None:
    start.wait()
    for number in range(LINES):
        note(out, "ended", {"run": f"{writer}.{number}", "filler": "x" * 9000})


def test_lines_of_concurrent_writers_never_mix(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    start = fork.Barrier(WRITERS)
    writers = [fork.Process(target=_write, args=(tmp_path, number, start)) for number in range(WRITERS)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = {line["run"] for line in BatchHistory.read(tmp_path).lines if len(line["filler"]) == 9000}
    assert found == {f"{writer}.{number}" for writer in range(WRITERS) for number in range(LINES)}


def test_failures_are_counted_consecutively_and_per_attempt(tmp_path: Path) -> None:
    nights(tmp_path, ended("a", slide="p", other="q"), ended("b", slide="p"))
    assert (count(tmp_path, "slide"), count(tmp_path, "other")) == (2, 1)
    nights(tmp_path, ended("c", slide="changed"))
    assert count(tmp_path, "slide") == 1
    nights(tmp_path, ended("d", slide="changed"), ended("e", slide="changed"))
    assert count(tmp_path, "slide") == MOST_FAILURES == 3


def test_success_force_and_retry_reset_the_failure_count(tmp_path: Path) -> None:
    failing = [ended("a", slide="p"), ended("b", slide="p")]
    nights(tmp_path, *failing, ended("c", complete=("slide",)))
    assert count(tmp_path, "slide") == 0
    nights(tmp_path, *failing)
    note(tmp_path, "retry", {"keys": ["slide"]})
    assert count(tmp_path, "slide") == 0
    for force in (True, ["slide"]):
        nights(tmp_path, *failing)
        note(tmp_path, "began", began("forced", force))
        assert count(tmp_path, "slide") == 0
    nights(tmp_path, *failing)
    note(tmp_path, "began", began("forced", ["other"]))
    assert count(tmp_path, "slide") == 2


def test_disk_errors_and_locks_count_no_failure(tmp_path: Path) -> None:
    """They are not caused by the slide: a disk error has no attempt, and a lock is no failure."""
    end = ended("a", full="", locked="p")
    end["not_complete"]["locked"]["state"] = "locked"
    nights(tmp_path, end)
    assert BatchHistory.read(tmp_path).failures() == {}
