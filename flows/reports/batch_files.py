"""What a batch leaves in OUT for people and scripts: results.csv, summary.md, batch.json, failures.csv, history.jsonl.

The one decision made here: these files but the last are rebuilt from the slide folders and written atomically; nothing
reads them to decide what is done. What people look at in the night is written after each slide too, for which one
manifest is read.
"""

from __future__ import annotations

import csv
import io
import shlex
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flows.batch.array_summary import outcomes_of_all_jobs, write_until_stable
from flows.batch.batch import Batch
from flows.batch.history import doer, new_run, note
from flows.batch.outcome import Outcome
from flows.batch.progress import Meter
from flows.batch.result_records import Record, figures, read_record, slide_stores
from flows.batch.result_rows import Row, inert, results_csv
from flows.reports.summary_markdown import Summary, plain
from pipeline.errors import OvertileError
from pipeline.printable import printable
from pipeline.runs.slide_run import SlideRun, slide_root
from pipeline.storage.atomic_files import digest, write_bytes, write_json
from pipeline.storage.manifest import read_manifest
from pipeline.storage.slide_store import SlideStore

NUMBERED = ("complete", "kept")
"""States of slides whose numbers are in results.csv: all others have empty cells there."""


def write_batch_files(batch: Batch) -> None:
    """Rebuild the files of a batch in which there was nothing to do."""
    with noted(batch):
        Report(batch).finish()
    write_page(batch)


def write_page(batch: Batch) -> None:
    """Write ``report.html``, when the history tells how the batch ended. No result depends on it: trouble is let be."""
    from flows.reports.batch_html import write_report  # jinja2

    with suppress(OSError, OvertileError):
        write_report(batch.request.out)


@dataclass(slots=True)
class Report:
    """Watches a batch and keeps its files up to date."""

    batch: Batch
    records: dict[str, Record] = field(default_factory=dict)
    meter: Meter = field(default_factory=Meter)
    worked: float = 0.0
    began: float = field(default_factory=lambda: time.monotonic())
    guard: threading.Lock = field(default_factory=threading.Lock)
    outcomes: list[Outcome] = field(init=False)

    def __post_init__(self) -> None:
        self.outcomes = self.batch.outcomes

    def batch_planned(self, batch: Batch) -> None:
        """Write the files as they are before anything is done."""
        self.meter.plan(batch)
        if batch.request.share is None:
            self._look()
            self._write(running=True)

    def stage_started(self, key: str, stage: str) -> None:
        """No file tells it."""

    def block_done(self, key: str, stage: str, counts: Mapping[str, int]) -> None:
        """Weigh the block, for the time left."""
        with self.guard:
            before = self.meter.finished
            self.meter.block(key, stage)
            self.worked += self.meter.finished - before

    def slide_done(self, outcome: Outcome) -> None:
        """Write the files with what became of the slide. When the disk refuses, the next slide's end tries again."""
        with self.guard:
            self.meter.end_slide(outcome.key)
        if self.batch.request.share is not None:
            return
        key = outcome.key
        with suppress(OSError):
            self.records[key] = read_record(SlideStore(slide_root(self.batch.request.out, key)), key)
            self._write(running=True)

    def finish(self) -> None:
        """Write the files anew from all folders, those of other runs too. A share's are written after its end."""
        if self.batch.request.share is None:
            self.write()

    def write(self) -> None:
        """Write the files as the folders are now, and the outcomes of all slides."""
        if self.batch.request.share is not None:
            self.outcomes = outcomes_of_all_jobs(self.batch.request.out, self.batch.outcomes, self.batch.everything)
        self._look()
        self._write(running=False)
        write_json(self.batch.request.out / "batch.json", self._content())

    def _look(self) -> None:
        out = self.batch.request.out
        keys = ((store, store.root.relative_to(out).as_posix()) for store in slide_stores(out))
        self.records = {key: read_record(store, key) for store, key in keys}

    def _write(self, *, running: bool) -> None:
        out = self.batch.request.out
        write_bytes(out / "results.csv", self.results().encode())
        write_bytes(out / "summary.md", self.page(running=running).markdown().encode())
        write_bytes(out / "failures.csv", _failures_csv(self.outcomes).encode())

    def _content(self) -> dict[str, Any]:
        """batch.json."""
        slides = [dict(record.content) for _, record in sorted(self.records.items())]
        outcomes = [_record(outcome) for outcome in self.outcomes]
        return {"slides": slides, "run": {"exit_code": self.batch.exit_code(), "outcomes": outcomes}}

    def page(self, *, running: bool) -> Summary:
        """The summary."""
        elapsed = time.monotonic() - self.began
        with self.guard:
            left = elapsed * (self.meter.total - self.meter.finished) / self.worked if self.worked else None
        outcomes, request = self.outcomes, self.batch.request
        return Summary(request.out.name, outcomes, self.records, elapsed, running, left, _command(self.batch))

    def results(self) -> str:
        """results.csv: the slides asked for in their order, then the others that lie in OUT."""
        pairs = [pair for outcome in self.outcomes for pair in self._asked(outcome)]
        asked = {outcome.key for outcome in self.outcomes}
        others = [record for key, record in sorted(self.records.items()) if key not in asked]
        pairs += [pair for record in others for pair in _rows(record.key, record.state, record, record.case)]
        return results_csv(*zip(*pairs, strict=True)) if pairs else results_csv((), ())

    def _asked(self, outcome: Outcome) -> Iterator[tuple[Row, Mapping[str, str]]]:
        record = self.records.get(outcome.key)
        case = self.batch.cases.get(outcome.key)
        if case is None:
            case = record.case if record else {}
        return _rows(outcome.key, self._state(outcome, record), record, case)

    def _state(self, outcome: Outcome, record: Record | None) -> str:
        """A slide that was not looked at yet is complete when it lies there under this very plan."""
        if outcome.is_up_to_date:
            return record.state if record else "incomplete"
        plan = self.batch.plans.get(outcome.key)
        if outcome.state == "waiting" and plan and record and record.hashes == dict(plan.hashes):
            return record.state
        return outcome.state


def _rows(
    key: str, state: str, record: Record | None, case: Mapping[str, str]
) -> Iterator[tuple[Row, Mapping[str, str]]]:
    found: tuple[Row, ...] = record.rows if record and state in NUMBERED else ()
    return ((row | {"slide": key, "state": state}, case) for row in found or ({},))


def slide_markdown(run: SlideRun) -> str:
    """A slide's figures as a table, for Prefect's artifact page."""
    manifest = read_manifest(run.store)
    assert manifest is not None, "written just before"
    rows = [f"| {name} | {plain(value)} |" for name, value in figures(manifest).items()]
    return "\n".join([f"# {plain(run.plan.key)}", "", "| | |", "|---|---|", *rows])


def _record(outcome: Outcome) -> dict[str, Any]:
    return {**asdict(outcome), "slide": str(outcome.slide), "seconds": round(outcome.seconds, 2)}


def _failures_csv(outcomes: list[Outcome]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["slide", "path", "state", "stage", "cause"])
    for outcome in outcomes:
        if outcome.stopped:
            cells = (outcome.key, str(outcome.slide), outcome.state, outcome.stage, outcome.cause)
            writer.writerow([inert(printable(cell)) for cell in cells])
    return text.getvalue()


def _command(batch: Batch) -> str | None:
    """What was typed, when it was, or does the same."""
    name, *words = batch.request.command or sys.argv
    return shlex.join(["overtile", *map(batch.redact, words)]) if Path(name).name == "overtile" else None


@contextmanager
def noted(batch: Batch) -> Iterator[None]:
    """Note in the history that this batch begins, and how it ended, if it lives to tell."""
    out, run = batch.request.out, new_run()
    typed = [batch.redact(word) for word in batch.request.command or sys.argv]
    note(out, "began", {"run": run, **doer(), "command": typed, **_asked_for(batch)})
    try:
        yield
    except BaseException as error:
        with suppress(OSError):  # the error in hand says more
            note(out, "ended", {"run": run, "exit_code": _code_of(error), **_came_out(batch)})
        raise
    note(out, "ended", {"run": run, "exit_code": batch.exit_code(), **_came_out(batch)})
    if batch.request.share is not None:
        write_until_stable(out, Report(batch).write)


def _code_of(error: BaseException) -> int:
    """What a command would end with: the error's own, that of a signal which Prefect received, or 1."""
    number = getattr(error, "signal", None)
    return int(getattr(error, "exit_code", 1 if number is None else 128 + number))


def _asked_for(batch: Batch) -> dict[str, Any]:
    request = batch.request
    return {
        "models": [f"{one.model.name} {one.model.sha256[:12]}" for one in batch.equipment.values()],
        "batch": digest({key: dict(plan.hashes) for key, plan in batch.plans.items()}),
        "slides": len(batch.outcomes),
        "force": True if request.force_all else list(request.force),
    }


def _came_out(batch: Batch) -> dict[str, Any]:
    """Counts, and those slides that are not as asked or that had not been before."""
    outcomes = batch.outcomes
    told = ("slide", "state", "stage", "cause", "attempt")
    return {
        "states": Counter(outcome.state for outcome in outcomes),
        "not_complete": {
            outcome.key: {name: value for name, value in _record(outcome).items() if name in told}
            for outcome in outcomes
            if not outcome.is_up_to_date
        },
        "recovered": [outcome.key for outcome in outcomes if outcome.is_up_to_date and outcome.key in batch.strikes],
    }
