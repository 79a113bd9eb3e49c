"""Batch-level files in OUT: results.csv, summary.md, batch.json, failures.csv, history.jsonl.

All but the history are rebuilt from the slide folders and written atomically. They are never read to decide what is
done. The files that people read during a run are also updated after each slide, which reads a single manifest.
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
from flows.batch.history import new_run, note, process_facts
from flows.batch.outcome import Outcome
from flows.batch.progress import Meter
from flows.batch.result_records import Record, figures, read_record, slide_stores
from flows.batch.result_rows import Row, inert, results_csv
from flows.reports.summary_markdown import Summary, escape_markdown
from pipeline.errors import OvertileError
from pipeline.printable import printable
from pipeline.runs.slide_run import SlideRun, slide_root
from pipeline.storage.atomic_files import digest, write_bytes, write_json
from pipeline.storage.manifest import read_manifest
from pipeline.storage.slide_store import SlideStore

NUMBERED = ("complete", "kept")
"""States of slides with numbers in results.csv; all other slides have empty cells."""


def write_batch_files(batch: Batch) -> None:
    """Rebuild the files of a batch that had nothing to do."""
    with record_in_history(batch):
        Report(batch).finish()
    write_html_report(batch)


def write_html_report(batch: Batch) -> None:
    """Write ``report.html`` after the batch has been recorded. Errors are ignored: no result depends on it."""
    from flows.reports.batch_html import write_report  # jinja2

    with suppress(OSError, OvertileError):
        write_report(batch.request.out)


@dataclass(slots=True)
class Report:
    """Listen to the progress of a batch and keep its files up to date."""

    batch: Batch
    records: dict[str, Record] = field(default_factory=dict)
    meter: Meter = field(default_factory=Meter)
    finished_work: float = 0.0
    began: float = field(default_factory=lambda: time.monotonic())
    lock: threading.Lock = field(default_factory=threading.Lock)
    outcomes: list[Outcome] = field(init=False)

    def __post_init__(self) -> None:
        self.outcomes = self.batch.outcomes

    def batch_planned(self, batch: Batch) -> None:
        """Write the files before any slide is processed."""
        self.meter.plan(batch)
        if batch.request.share is None:
            self._read_records()
            self._write(running=True)

    def stage_started(self, key: str, stage: str) -> None:
        """Do nothing: no file shows running stages."""

    def block_done(self, key: str, stage: str, counts: Mapping[str, int]) -> None:
        """Count the block for the estimate of the time left."""
        with self.lock:
            before = self.meter.finished
            self.meter.block(key, stage)
            self.finished_work += self.meter.finished - before

    def slide_done(self, outcome: Outcome) -> None:
        """Update the files with the outcome of a slide. A write error is ignored; the next slide tries again."""
        with self.lock:
            self.meter.end_slide(outcome.key)
        if self.batch.request.share is not None:
            return
        key = outcome.key
        with suppress(OSError):
            self.records[key] = read_record(SlideStore(slide_root(self.batch.request.out, key)), key)
            self._write(running=True)

    def finish(self) -> None:
        """Rebuild the files from all slide folders, also of other runs. Array jobs write them in ``noted``."""
        if self.batch.request.share is None:
            self.write()

    def write(self) -> None:
        """Write the files from the current slide folders and the outcomes of all slides."""
        if self.batch.request.share is not None:
            self.outcomes = outcomes_of_all_jobs(self.batch.request.out, self.batch.outcomes, self.batch.all_paths)
        self._read_records()
        self._write(running=False)
        write_json(self.batch.request.out / "batch.json", self._batch_json())

    def _read_records(self) -> None:
        out = self.batch.request.out
        keys = ((store, store.root.relative_to(out).as_posix()) for store in slide_stores(out))
        self.records = {key: read_record(store, key) for store, key in keys}

    def _write(self, *, running: bool) -> None:
        out = self.batch.request.out
        write_bytes(out / "results.csv", self.results().encode())
        write_bytes(out / "summary.md", self.page(running=running).markdown().encode())
        write_bytes(out / "failures.csv", _failures_csv(self.outcomes).encode())

    def _batch_json(self) -> dict[str, Any]:
        """The content of batch.json."""
        slides = [dict(record.content) for _, record in sorted(self.records.items())]
        outcomes = [_record(outcome) for outcome in self.outcomes]
        return {"slides": slides, "run": {"exit_code": self.batch.exit_code(), "outcomes": outcomes}}

    def page(self, *, running: bool) -> Summary:
        """Return the summary of the current state."""
        elapsed = time.monotonic() - self.began
        with self.lock:
            left = (
                elapsed * (self.meter.total - self.meter.finished) / self.finished_work if self.finished_work else None
            )
        outcomes, request = self.outcomes, self.batch.request
        return Summary(request.out.name, outcomes, self.records, elapsed, running, left, _command(self.batch))

    def results(self) -> str:
        """Return results.csv: the requested slides in their order, then other slides found in OUT."""
        pairs = [pair for outcome in self.outcomes for pair in self._requested_rows(outcome)]
        requested = {outcome.key for outcome in self.outcomes}
        others = [record for key, record in sorted(self.records.items()) if key not in requested]
        pairs += [pair for record in others for pair in _rows(record.key, record.state, record, record.case)]
        return results_csv(*zip(*pairs, strict=True)) if pairs else results_csv((), ())

    def _requested_rows(self, outcome: Outcome) -> Iterator[tuple[Row, Mapping[str, str]]]:
        record = self.records.get(outcome.key)
        case = self.batch.cases.get(outcome.key)
        if case is None:
            case = record.case if record else {}
        return _rows(outcome.key, self._state(outcome, record), record, case)

    def _state(self, outcome: Outcome, record: Record | None) -> str:
        """A slide that is still waiting counts as complete if its result has the current plan."""
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
    """Return the figures of a slide as a Markdown table for Prefect."""
    manifest = read_manifest(run.store)
    assert manifest is not None, "the run is complete"
    rows = [f"| {name} | {escape_markdown(value)} |" for name, value in figures(manifest).items()]
    return "\n".join([f"# {escape_markdown(run.plan.key)}", "", "| | |", "|---|---|", *rows])


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
    """The command line of the batch; None if it was started from Python."""
    name, *words = batch.request.command or sys.argv
    return shlex.join(["overtile", *map(batch.redact, words)]) if Path(name).name == "overtile" else None


@contextmanager
def record_in_history(batch: Batch) -> Iterator[None]:
    """Record in the history that the batch started and how it ended."""
    out, run = batch.request.out, new_run()
    typed = [batch.redact(word) for word in batch.request.command or sys.argv]
    note(out, "began", {"run": run, **process_facts(), "command": typed, **_request_summary(batch)})
    try:
        yield
    except BaseException as error:
        with suppress(OSError):  # the error of the batch is more important
            note(out, "ended", {"run": run, "exit_code": _exit_code_of(error), **_outcome_summary(batch)})
        raise
    note(out, "ended", {"run": run, "exit_code": batch.exit_code(), **_outcome_summary(batch)})
    if batch.request.share is not None:
        write_until_stable(out, Report(batch).write)


def _exit_code_of(error: BaseException) -> int:
    """Exit code of a command that ends with this error: its own, that of a signal received by Prefect, or 1."""
    number = getattr(error, "signal", None)
    return int(getattr(error, "exit_code", 1 if number is None else 128 + number))


def _request_summary(batch: Batch) -> dict[str, Any]:
    request = batch.request
    return {
        "models": [f"{runtime.model.name} {runtime.model.sha256[:12]}" for runtime in batch.runtimes.values()],
        "batch": digest({key: dict(plan.hashes) for key, plan in batch.plans.items()}),
        "slides": len(batch.outcomes),
        "force": True if request.force_all else list(request.force),
    }


def _outcome_summary(batch: Batch) -> dict[str, Any]:
    """Counts of states, slides that are not up to date, and slides that recovered from earlier failures."""
    outcomes = batch.outcomes
    columns = ("slide", "state", "stage", "cause", "attempt")
    return {
        "states": Counter(outcome.state for outcome in outcomes),
        "not_complete": {
            outcome.key: {name: value for name, value in _record(outcome).items() if name in columns}
            for outcome in outcomes
            if not outcome.is_up_to_date
        },
        "recovered": [outcome.key for outcome in outcomes if outcome.is_up_to_date and outcome.key in batch.failures],
    }
