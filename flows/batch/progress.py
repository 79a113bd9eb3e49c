"""Progress of a batch in blocks weighted by their cost, and the rate of the network."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from flows.batch.batch import Batch
from pipeline.stage_table import STAGE


@dataclass(slots=True)
class Meter:
    """Planned and completed work in weighted blocks, and the network's throughput."""

    planned: dict[str, float] = field(default_factory=dict)
    done: dict[str, float] = field(default_factory=dict)
    blocks: dict[str, int] = field(default_factory=dict)
    predicted_px: float = 0.0
    predicting_since: float | None = None

    def plan(self, batch: Batch) -> None:
        """Add the slides that will be processed."""
        for outcome in batch.todo():
            plan = batch.plans[outcome.key]
            self.blocks[outcome.key] = plan.blocks
            self.planned[outcome.key] = plan.blocks * sum(STAGE[stage].cost for stage in plan.hashes)

    def block(self, key: str, stage: str) -> None:
        """Count one block. The cost of a block counts once for a stage of several passes."""
        stage_cost = STAGE[stage].cost * self.blocks[key]
        done = self.done.get(f"{key}\0{stage}", 0.0)
        self.done[f"{key}\0{stage}"] = min(stage_cost, done + STAGE[stage].cost)

    def end_slide(self, key: str) -> None:
        """Count all planned work of a slide as completed."""
        for name in [name for name in self.done if name.startswith(f"{key}\0")]:
            del self.done[name]
        self.done[f"{key}\0"] = self.planned.get(key, 0.0)

    @property
    def total(self) -> float:
        """Weight of the planned work."""
        return sum(self.planned.values())

    @property
    def finished(self) -> float:
        """Weight of the completed work."""
        return sum(self.done.values())

    def predicted(self, batch: Batch, key: str) -> None:
        """Count one block of the network, for the rate."""
        self.predicting_since = self.predicting_since or time.monotonic()
        height, width = batch.plans[key].shape_yx
        self.predicted_px += height * width / self.blocks[key]

    @property
    def rate(self) -> str:
        """Throughput of the network as text, in megapixels per second; empty in the first second."""
        if self.predicting_since is None or (seconds := time.monotonic() - self.predicting_since) < 1:
            return ""
        return f"{self.predicted_px / seconds / 1e6:.1f} MPx/s"
