"""States of all slides in OUT, from its files alone: no server, no network, no writing.

Folders take precedence over the history: a manifest means complete and a live lock means in progress. For other slides
the history gives the cause and the remedy.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from flows.batch.history import MOST_FAILURES, NAME, BatchHistory, FailureCount, Run
from flows.batch.result_records import read_record, slide_stores
from pipeline.errors import ConfigError, StoreError
from pipeline.printable import printable
from pipeline.runs.scratch import working_store
from pipeline.stage_table import PREDICT
from pipeline.storage.layout import PROBABILITY
from pipeline.storage.lock import live_owner
from pipeline.storage.manifest import previous_plan
from pipeline.storage.slide_store import SlideStore

LAST_RUNS = 5
NEED_ATTENTION = ("failed", "quarantined", "damaged", "kept", "vanished")


@dataclass(frozen=True, slots=True)
class SlideStatus:
    """One slide: state, stage, cause, remedy (``cure``), and completed blocks of its predict stage."""

    key: str
    state: str
    stage: str = ""
    cause: str = ""
    cure: str = ""
    blocks_done: int | None = None
    blocks: int | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """All slides in order of key, and the runs, oldest first."""

    slides: tuple[SlideStatus, ...]
    runs: tuple[Run, ...]

    @classmethod
    def of(cls, out: Path) -> Status:
        """Read the status of a results folder.

        Raises:
            ConfigError: The folder has neither results nor a history.
        """
        history = _HistoryView.of(out, BatchHistory.read(out))
        stores = {store.root.relative_to(out).as_posix(): store for store in slide_stores(out)}
        if not stores and not history.runs:
            raise ConfigError(f"{out} holds no results: expected a folder that 'overtile segment' wrote")
        slides = {key: history.status(key, store) for key, store in stores.items()}
        slides |= {
            key: history.without_folder(key) for key in history.words if key not in stores and history.is_current(key)
        }
        return cls(tuple(slides[key] for key in sorted(slides)), tuple(history.runs))

    @property
    def totals(self) -> Mapping[str, int]:
        """Number of slides by state."""
        return Counter(slide.state for slide in self.slides)

    def exit_code(self) -> int:
        """The exit code as of ``segment``: 0 when every slide is complete, 4 when none is, else 3."""
        complete = self.totals.get("complete", 0)
        return 0 if complete == len(self.slides) else 3 if complete else 4

    def as_json(self, slides: Sequence[SlideStatus]) -> dict[str, Any]:
        """The status as plain data, with the last runs."""
        runs = [{**run.began, "ended": run.ended} for run in self.runs[-LAST_RUNS:]]
        return {"slides": [asdict(slide) for slide in slides], "totals": dict(self.totals), "runs": runs}


@dataclass(frozen=True, slots=True)
class _HistoryView:
    """The runs of a history, the last entry of each slide with its run, and failure counts."""

    out: Path
    runs: Sequence[Run]
    words: Mapping[str, tuple[Run, Mapping[str, Any]]]
    failures: Mapping[str, FailureCount]

    @classmethod
    def of(cls, out: Path, history: BatchHistory) -> _HistoryView:
        return cls(out, history.runs(), history.last_words(), history.failures())

    def is_current(self, key: str) -> bool:
        """Whether a slide without folder is still listed: it was in the last run, or its file exists."""
        run, entry = self.words[key]
        return run == self.runs[-1] or not _has_vanished(key, entry)

    def status(self, key: str, store: SlideStore) -> SlideStatus:
        """The status of a slide that has a folder."""
        if owner := live_owner(store.work):
            cause = f"by process {owner['pid']} on {owner['host']} since {owner['since']}"
            return _with_blocks(SlideStatus(key, "in progress", cause=cause), store)
        record, state = read_record(store, key), self._last_state(key)
        if record.state == "complete":
            return self.without_folder(key) if state == "kept" else SlideStatus(key, "complete")
        if record.state == "damaged":
            return SlideStatus(key, "damaged", "", record.content["cause"], self._command(key))
        if state not in (None, "waiting", "locked", "kept"):
            return _with_blocks(self.without_folder(key), store)
        if state is None and "cause" in record.content:
            return _with_blocks(SlideStatus(key, "failed", record.content["stage"], record.content["cause"]), store)
        return _with_blocks(SlideStatus(key, "resumable", cure=self._command(key)), store)

    def _last_state(self, key: str) -> str | None:
        """The last state in the history; ``kept`` counts for the last run only."""
        if key not in self.words:
            return None
        run, entry = self.words[key]
        return None if entry["state"] == "kept" and run != self.runs[-1] else str(entry["state"])

    def without_folder(self, key: str) -> SlideStatus:
        """The status of a slide by the history alone."""
        _, entry = self.words[key]
        state, stage, cause, cure = entry["state"], entry["stage"], entry["cause"], self._command(key)
        failures = self.failures.get(key)
        if _has_vanished(key, entry):
            return SlideStatus(key, "vanished", stage, f"{entry['slide']} does not exist any more")
        if state == "quarantined" and failures is None:
            return SlideStatus(key, "waiting", "", "the next run tries it again", cure)
        if state == "quarantined" or (failures and failures.count >= MOST_FAILURES):
            cure = shlex.join(["overtile", "retry", str(self.out), key])
            return SlideStatus(key, "quarantined", stage, cause, cure)
        if state == "kept" and cure:
            cure += f" --force {shlex.quote(key)}"
        return SlideStatus(key, state, stage, cause, cure)

    def _command(self, key: str) -> str:
        """The command line that requested the slide, or the last one if the history does not list the slide."""
        run = self.words[key][0] if key in self.words else self.runs[-1] if self.runs else None
        name, *words = run.began["command"] if run else [""]
        return shlex.join(["overtile", *words]) if Path(name).name == "overtile" else ""


def _has_vanished(key: str, entry: Mapping[str, Any]) -> bool:
    """Whether the slide file is gone; never true for a redacted name, whose path is unknown."""
    return entry["slide"] != key and not Path(entry["slide"]).exists()


def _with_blocks(slide: SlideStatus, store: SlideStore) -> SlideStatus:
    done, blocks = _blocks(store)
    return replace(slide, blocks_done=done, blocks=blocks)


def _blocks(store: SlideStore) -> tuple[int, int] | tuple[None, None]:
    """Completed and total blocks of the predict stage."""
    plan = previous_plan(store)
    if plan is None:
        return None, None
    block = plan["config"]["tiles"]["block"]
    rows, cols = (-(-length // block) for length in plan["image"]["shape_yx"])
    try:
        work = working_store(store, plan["config"]["outputs"]["scratch"])
        return len(work.done(PROBABILITY, plan["hashes"][PREDICT])), rows * cols
    except StoreError:  # not started
        return 0, rows * cols


# ---- output ----------------------------------------------------------------------------------------------------------


def show(status: Status, slides: Sequence[SlideStatus], console: Console) -> None:
    """Print slides, totals, remedies and the last runs."""
    table = Table(Column("slide", overflow="fold"), "state", "blocks", Column("cause", overflow="fold"))
    for slide in slides:
        colour = "green" if slide.state == "complete" else "red" if slide.state in NEED_ATTENTION else "yellow"
        blocks = "" if slide.blocks is None else f"{slide.blocks_done} / {slide.blocks}"
        where = f"at {slide.stage}: " if slide.stage and slide.cause else ""
        table.add_row(_text(slide.key), f"[{colour}]{slide.state}[/]", blocks, _text(f"{where}{slide.cause}"))
    console.print(table)
    complete = status.totals.get("complete", 0)
    others = "".join(f", {count} {state}" for state, count in sorted(status.totals.items()) if state != "complete")
    console.print(f"{complete} of {len(status.slides)} slides complete{others}", highlight=False)
    for cure in dict.fromkeys(slide.cure for slide in slides if slide.cure):
        keys = [slide.key for slide in slides if slide.cure == cure]
        console.print(f"  {_text(', '.join(keys[:3]))}{' ..' if len(keys) > 3 else ''}: run", highlight=False)
        console.print(f"    {_text(cure)}", soft_wrap=True, highlight=False)
    for line in _last_lines(status.runs[-LAST_RUNS:]):
        console.print(line, soft_wrap=True, highlight=False)


def _last_lines(runs: Sequence[Run]) -> Iterator[str]:
    if runs:
        yield f"last runs (all runs are in {NAME}):"
    for run in runs:
        when = datetime.fromisoformat(run.began["when"]).astimezone().strftime("%Y-%m-%d %H:%M")
        end = "no end: running or killed" if run.exit_code is None else f"exit {run.exit_code}"
        words = shlex.join(["overtile", *run.began["command"][1:]])
        yield f"  {when}  {_text(run.began['who'])}@{_text(run.began['host'])}  {end}  {_text(words)}"


def _text(words: str) -> str:
    return escape(printable(words))
