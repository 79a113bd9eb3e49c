"""How it goes, for a person (a bar with rate and time left) or for a log (a line now and then).

The one decision made here: progress is measured in blocks weighted by what a block of each stage costs, so the time
left is about the network, where the time goes.
"""

from __future__ import annotations

import threading

from rich.console import Console
from rich.markup import escape

from flows.batch.batch import Batch
from flows.batch.outcome import Outcome
from flows.batch.progress import Meter
from flows.cli.progress_bar import Bar
from pipeline.execution.blocks import Counts
from pipeline.printable import printable


class SegmentProgress(Bar):
    """Watches a batch. A context manager; safe to call from several threads."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.meter = Meter()
        self.batch: Batch | None = None
        self.guard = threading.Lock()

    def batch_planned(self, batch: Batch) -> None:
        """Set the scale."""
        self.batch = batch
        self.meter.plan(batch)
        self.begin()
        self.say(f"{len(batch.outcomes)} slides, {len(batch.todo())} to look at; {_how(batch)}")

    def stage_started(self, key: str, stage: str) -> None:
        """Show which stage of which slide runs."""
        self.describe(f"{escape(printable(key))} {stage}")

    def block_done(self, key: str, stage: str, counts: Counts) -> None:
        """Move the bar by one block, or log a line when the last one is long ago."""
        with self.guard:
            self.meter.block(key, stage)
            if stage == "predict" and self.batch is not None:
                self.meter.predicted(self.batch, key)
            self._show(f"{key} {stage}")

    def slide_done(self, outcome: Outcome) -> None:
        """Print one line about the slide."""
        with self.guard:
            self.meter.end_slide(outcome.key)
            colour = "green" if outcome.is_up_to_date else "red"
            where = "" if outcome.is_up_to_date else f" at {outcome.stage}: {escape(printable(outcome.cause))}"
            self.say(f"[{colour}]{outcome.state}[/] {escape(printable(outcome.key))} {outcome.seconds:.0f} s{where}")
            self._show(outcome.key)

    def _show(self, what: str) -> None:
        self.move(self.meter.finished / (self.meter.total or 1), escape(printable(what)), self.meter.rate)


def _how(batch: Batch) -> str:
    """Models, device, precision and tiles, most often one of each."""
    used = list(batch.equipment.values())
    names = ", ".join(dict.fromkeys(f"model {one.model.name}" for one in used))
    computes = (f"{one.compute.device} in {one.compute.precision}, tiles of {one.compute.tile_px} px" for one in used)
    return f"{names} on {' or '.join(dict.fromkeys(computes))}"
