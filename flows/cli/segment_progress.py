"""Progress of a batch: rate and time left.

Progress is measured in blocks weighted by the cost of their stage, so that the time left follows the network, which
takes most of the time.
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
    """Displays the progress of a batch. A context manager; thread-safe."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.meter = Meter()
        self.batch: Batch | None = None
        self.guard = threading.Lock()

    def batch_planned(self, batch: Batch) -> None:
        """Start the bar and print the number of slides."""
        self.batch = batch
        self.meter.plan(batch)
        self.begin()
        self.say(f"{len(batch.outcomes)} slides, {len(batch.todo())} to process; {_compute_text(batch)}")

    def stage_started(self, key: str, stage: str) -> None:
        """Show the running stage."""
        self.describe(f"{escape(printable(key))} {stage}")

    def block_done(self, key: str, stage: str, counts: Counts) -> None:
        """Move the bar by one block, or log a line when the last one is old enough."""
        with self.guard:
            self.meter.block(key, stage)
            if stage == "predict" and self.batch is not None:
                self.meter.predicted(self.batch, key)
            self._show(f"{key} {stage}")

    def slide_done(self, outcome: Outcome) -> None:
        """Print the outcome of a slide."""
        with self.guard:
            self.meter.end_slide(outcome.key)
            colour = "green" if outcome.is_up_to_date else "red"
            where = "" if outcome.is_up_to_date else f" at {outcome.stage}: {escape(printable(outcome.cause))}"
            self.say(f"[{colour}]{outcome.state}[/] {escape(printable(outcome.key))} {outcome.seconds:.0f} s{where}")
            self._show(outcome.key)

    def _show(self, what: str) -> None:
        self.move(self.meter.finished / (self.meter.total or 1), escape(printable(what)), self.meter.rate)


def _compute_text(batch: Batch) -> str:
    """Models, device, precision and tiles."""
    runtimes = list(batch.runtimes.values())
    names = ", ".join(dict.fromkeys(f"model {runtime.model.name}" for runtime in runtimes))
    computes = (
        f"{runtime.compute.device} in {runtime.compute.precision}, tiles of {runtime.compute.tile_px} px"
        for runtime in runtimes
    )
    return f"{names} on {' or '.join(dict.fromkeys(computes))}"
