"""history.jsonl: user, time, command and exit code of every change of OUT, and the failure counts of slides.

Lines are only appended, each in one write, when a run starts and when it ends. So a killed run is listed too, without
an end. Failure counts are computed from the lines. No result depends on the history: if it is lost, slides in
quarantine are tried again.

    {"event": "began", "run": id, "when", "who", "host", "pid", "command", "batch": hash of all plans, "force" ..}
    {"event": "ended", "run": id, "exit_code", "states": counts, "not_complete": {key: state, stage, cause, attempt ..}}
    {"event": "retry", "keys": [..]}    {"event": "skipped", "night": when it was due, "why"}
    {"event": "prune", "keys": [..], "keep": [..]}    {"event": "delete", "keys": [..]}    before anything goes
"""

from __future__ import annotations

import getpass
import os
import socket
import sys
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pipeline.storage.atomic_files import append_json, read_json_lines

NAME = "history.jsonl"
MOST_FAILURES = 3
"""A slide that failed in so many consecutive runs with the same plan is not tried again."""

Line = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the history; ``ended`` is None while it runs and after it was killed."""

    began: Line
    ended: Line | None

    @property
    def exit_code(self) -> int | None:
        """The exit code; None without an end."""
        return None if self.ended is None else self.ended.get("exit_code")


@dataclass(frozen=True, slots=True)
class FailureCount:
    """The number of consecutive failures of a slide with one plan, and the last cause."""

    attempt: str
    count: int
    stage: str
    cause: str


@dataclass(frozen=True, slots=True)
class BatchHistory:
    """The lines of a history, oldest first, without torn lines."""

    lines: tuple[Line, ...]

    @classmethod
    def read(cls, out: Path) -> BatchHistory:
        """The history of an output folder; empty where there is none."""
        return cls(tuple(line for line in read_json_lines(out / NAME) if isinstance(line, dict)))

    def runs(self) -> list[Run]:
        """All runs, in the order of their start."""
        ended = {line["run"]: line for line in self._of("ended")}
        return [Run(line, ended.get(line["run"])) for line in self._of("began")]

    def failures(self) -> dict[str, FailureCount]:
        """Failure counts by key, of slides that failed when they were last tried. Forcing or retrying resets them."""
        counts: dict[str, FailureCount] = {}
        for line in self.lines:
            match line:
                case {"event": "began", "force": True}:
                    counts.clear()
                case {"event": "began", "force": list(keys)} | {"event": "retry" | "delete", "keys": list(keys)}:
                    _forget(counts, keys)
                case {"event": "ended", "not_complete": dict(slides), "recovered": list(keys)}:
                    _forget(counts, keys)
                    counts |= {
                        key: _count(counts.get(key), entry) for key, entry in slides.items() if _is_strike(entry)
                    }
        return counts

    def last_words(self) -> dict[str, tuple[Run, Line]]:
        """The last run and entry by key, of slides that were not up to date and were not deleted since."""
        found: dict[str, tuple[Run, Line]] = {}
        runs = {run.began["run"]: run for run in self.runs()}
        for line in sorted((*self._of("ended"), *self._deleted()), key=lambda line: str(line["when"])):
            if line["event"] == "delete":
                _forget(found, line["keys"])
            elif run := runs.get(line["run"]):
                found |= {key: (run, entry) for key, entry in line.get("not_complete", {}).items()}
        return found

    def _deleted(self) -> list[Line]:
        return [line for line in self.lines if line.get("event") == "delete" and isinstance(line.get("keys"), list)]

    def _of(self, event: str) -> list[Line]:
        return [line for line in self.lines if line.get("event") == event and "run" in line]


def _forget(found: dict[str, Any], keys: Iterable[str]) -> None:
    for key in keys:
        found.pop(key, None)


def _is_strike(entry: Line) -> bool:
    return entry.get("state") == "failed" and bool(entry.get("attempt"))


def _count(before: FailureCount | None, entry: Line) -> FailureCount:
    again = before is not None and before.attempt == entry["attempt"]
    return FailureCount(entry["attempt"], before.count + 1 if before and again else 1, entry["stage"], entry["cause"])


def new_run() -> str:
    """A unique id of a run."""
    return uuid.uuid4().hex[:12]


def note(out: Path, event: Literal["began", "ended", "retry", "skipped", "prune", "delete"], facts: Line) -> None:
    """Append a line: event, time and facts."""
    append_json(out / NAME, {"event": event, "when": datetime.now(UTC).isoformat(timespec="milliseconds"), **facts})


def process_facts() -> dict[str, Any]:
    """The user, host, process and command line of this process."""
    return {"who": _user(), "host": socket.gethostname(), "pid": os.getpid(), "command": sys.argv}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
