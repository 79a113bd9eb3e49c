"""How it goes, for a person (a bar with rate and time left) or for a log (a line now and then).

The one decision made here: progress is measured in blocks weighted by what a block of each stage costs, so the time
left is about the network, where the time goes.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape

from flows.bar import Bar
from flows.batch import Batch
from flows.outcome import Outcome
from flows.plain import printable
from pipeline.work import Counts

COST = {"ingest": 3.0, "tissue": 0.5, "predict": 80.0, "label": 2.0, "measure": 2.0, "pyramid": 2.0, "export": 4.0}


@dataclass(slots=True)
class Meter:
    """Work done and work planned, in weighted blocks; pixels the network has answered for, and since when."""

    planned: dict[str, float] = field(default_factory=dict)
    done: dict[str, float] = field(default_factory=dict)
    blocks: dict[str, int] = field(default_factory=dict)
    predicted_px: float = 0.0
    predicting_since: float | None = None

    def plan(self, batch: Batch) -> None:
        """Weigh the slides that will be worked on."""
        for outcome in batch.todo():
            plan = batch.plans[outcome.key]
            self.blocks[outcome.key] = plan.blocks
            self.planned[outcome.key] = plan.blocks * sum(COST.get(stage, 0.0) for stage in plan.hashes)

    def block(self, key: str, stage: str) -> None:
        """One block is done. A stage of several passes counts its blocks' cost once."""
        stage_cost = COST.get(stage, 0.0) * self.blocks[key]
        done = self.done.get(f"{key}\0{stage}", 0.0)
        self.done[f"{key}\0{stage}"] = min(stage_cost, done + COST.get(stage, 0.0))

    def end_slide(self, key: str) -> None:
        """Whatever was planned for the slide is behind us."""
        for name in [name for name in self.done if name.startswith(f"{key}\0")]:
            del self.done[name]
        self.done[f"{key}\0"] = self.planned.get(key, 0.0)

    @property
    def total(self) -> float:
        """Planned weight."""
        return sum(self.planned.values())

    @property
    def finished(self) -> float:
        """Weight that is behind us."""
        return sum(self.done.values())

    def predicted(self, batch: Batch, key: str) -> None:
        """Note a block of the network's, for the rate."""
        self.predicting_since = self.predicting_since or time.monotonic()
        height, width = batch.plans[key].shape_yx
        self.predicted_px += height * width / self.blocks[key]

    @property
    def rate(self) -> str:
        """Megapixels a second through the network."""
        if self.predicting_since is None or (seconds := time.monotonic() - self.predicting_since) < 1:
            return ""
        return f"{self.predicted_px / seconds / 1e6:.1f} MPx/s"


class Display(Bar):
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
            colour = "green" if outcome.as_asked else "red"
            where = "" if outcome.as_asked else f" at {outcome.stage}: {escape(printable(outcome.cause))}"
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
