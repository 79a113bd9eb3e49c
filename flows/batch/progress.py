"""Progress of a batch in blocks weighted by their cost, and the rate of the network."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from flows.batch.batch import Batch
from pipeline.stage_table import STAGE


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
            self.planned[outcome.key] = plan.blocks * sum(STAGE[stage].cost for stage in plan.hashes)

    def block(self, key: str, stage: str) -> None:
        """One block is done. A stage of several passes counts its blocks' cost once."""
        stage_cost = STAGE[stage].cost * self.blocks[key]
        done = self.done.get(f"{key}\0{stage}", 0.0)
        self.done[f"{key}\0{stage}"] = min(stage_cost, done + STAGE[stage].cost)

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
