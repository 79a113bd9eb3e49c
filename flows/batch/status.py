"""What lies in OUT and what became of it, from the files alone: no server, no network, nothing written.

The one decision made here: a folder is believed before the history is. A manifest is complete and a live lock is in
progress, whatever was said last; only of a slide that is neither does the history tell why, and what to do.
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

from flows.batch.history import NAME, STRIKES, BatchHistory, FailureCount, Run
from flows.batch.result_records import read_record, slide_stores
from pipeline.errors import ConfigError, StoreError
from pipeline.printable import printable
from pipeline.runs.scratch import place_of_work
from pipeline.storage.layout import PROBABILITY
from pipeline.storage.lock import live_owner
from pipeline.storage.manifest import previous_plan
from pipeline.storage.slide_store import SlideStore

LAST_RUNS = 5
NEED_SOMEBODY = ("failed", "quarantined", "damaged", "kept", "vanished")


@dataclass(frozen=True, slots=True)
class SlideStatus:
    """One slide: its state in the words of summary.md, why, what helps, and how far its network stage has come."""

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
        """Raises ConfigError where there are no results and no history."""
        told = _Told.of(out, BatchHistory.read(out))
        stores = {store.root.relative_to(out).as_posix(): store for store in slide_stores(out)}
        if not stores and not told.runs:
            raise ConfigError(f"{out} holds no results: expected a folder that 'overtile segment' wrote")
        slides = {key: told.standing(key, store) for key, store in stores.items()}
        slides |= {key: told.without_folder(key) for key in told.words if key not in stores and told.is_current(key)}
        return cls(tuple(slides[key] for key in sorted(slides)), tuple(told.runs))

    @property
    def totals(self) -> Mapping[str, int]:
        """How many slides are in each state."""
        return Counter(slide.state for slide in self.slides)

    def exit_code(self) -> int:
        """As ``segment`` would end: 0 when every slide is complete, 4 when none is, else 3."""
        complete = self.totals.get("complete", 0)
        return 0 if complete == len(self.slides) else 3 if complete else 4

    def as_json(self, slides: Sequence[SlideStatus]) -> dict[str, Any]:
        """For scripts."""
        runs = [{**run.began, "ended": run.ended} for run in self.runs[-LAST_RUNS:]]
        return {"slides": [asdict(one) for one in slides], "totals": dict(self.totals), "runs": runs}


@dataclass(frozen=True, slots=True)
class _Told:
    """What the history tells: the runs, by key the last word on a slide and the run that said it, and strikes."""

    out: Path
    runs: Sequence[Run]
    words: Mapping[str, tuple[Run, Mapping[str, Any]]]
    strikes: Mapping[str, FailureCount]

    @classmethod
    def of(cls, out: Path, history: BatchHistory) -> _Told:
        return cls(out, history.runs(), history.last_words(), history.strikes())

    def is_current(self, key: str) -> bool:
        """Whether a slide without a folder is still to be told of: it was of the last run, or lies where it lay."""
        run, entry = self.words[key]
        return run == self.runs[-1] or not _has_vanished(key, entry)

    def standing(self, key: str, store: SlideStore) -> SlideStatus:
        """A slide that has a folder."""
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
        """What the history said last; that a complete result was kept counts for the last run only."""
        if key not in self.words:
            return None
        run, entry = self.words[key]
        return None if entry["state"] == "kept" and run != self.runs[-1] else str(entry["state"])

    def without_folder(self, key: str) -> SlideStatus:
        """A slide as the history tells of it."""
        _, entry = self.words[key]
        state, stage, cause, cure = entry["state"], entry["stage"], entry["cause"], self._command(key)
        strikes = self.strikes.get(key)
        if _has_vanished(key, entry):
            return SlideStatus(key, "vanished", stage, f"{entry['slide']} is not there any more")
        if state == "quarantined" and strikes is None:
            return SlideStatus(key, "waiting", "", "it is tried again in the next run", cure)
        if state == "quarantined" or (strikes and strikes.count >= STRIKES):
            cure = shlex.join(["overtile", "retry", str(self.out), key])
            return SlideStatus(key, "quarantined", stage, cause, cure)
        if state == "kept" and cure:
            cure += f" --force {shlex.quote(key)}"
        return SlideStatus(key, state, stage, cause, cure)

    def _command(self, key: str) -> str:
        """What was typed to ask for the slide; the last command for one of which nothing was said."""
        run = self.words[key][0] if key in self.words else self.runs[-1] if self.runs else None
        name, *words = run.began["command"] if run else [""]
        return shlex.join(["overtile", *words]) if Path(name).name == "overtile" else ""


def _has_vanished(key: str, entry: Mapping[str, Any]) -> bool:
    """Whether the slide is not where it lay; of one whose name is not told nobody knows."""
    return entry["slide"] != key and not Path(entry["slide"]).exists()


def _with_blocks(slide: SlideStatus, store: SlideStore) -> SlideStatus:
    done, blocks = _blocks(store)
    return replace(slide, blocks_done=done, blocks=blocks)


def _blocks(store: SlideStore) -> tuple[int, int] | tuple[None, None]:
    """Of the network's blocks those that are done, and all."""
    plan = previous_plan(store)
    if plan is None:
        return None, None
    block = plan["config"]["tiles"]["block"]
    rows, cols = (-(-length // block) for length in plan["image"]["shape_yx"])
    try:
        place = place_of_work(store, plan["config"]["outputs"]["scratch"])
        return len(place.done(PROBABILITY, plan["hashes"]["predict"])), rows * cols
    except StoreError:  # not begun
        return 0, rows * cols


# ---- for people ------------------------------------------------------------------------------------------------------


def show(status: Status, slides: Sequence[SlideStatus], console: Console) -> None:
    """Print the slides chosen, totals, what helps, and the last runs."""
    table = Table(Column("slide", overflow="fold"), "state", "blocks", Column("cause", overflow="fold"))
    for slide in slides:
        colour = "green" if slide.state == "complete" else "red" if slide.state in NEED_SOMEBODY else "yellow"
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
        yield f"last runs, of all in {NAME}:"
    for run in runs:
        when = datetime.fromisoformat(run.began["when"]).astimezone().strftime("%Y-%m-%d %H:%M")
        end = "no end: it runs, or was killed" if run.exit_code is None else f"exit {run.exit_code}"
        words = shlex.join(["overtile", *run.began["command"][1:]])
        yield f"  {when}  {_text(run.began['who'])}@{_text(run.began['host'])}  {end}  {_text(words)}"


def _text(words: str) -> str:
    return escape(printable(words))
