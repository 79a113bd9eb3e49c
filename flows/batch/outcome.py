"""What became of one slide in a batch: its state, in the words of every report, where it stopped and why.

The one decision made here: only ``complete`` and ``complete before`` are as asked; every other state has a cause that a
person can act on, or needs nobody because the next run goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from flows.batch.deadline import TimeUpError
from flows.batch.history import FailureCount
from pipeline.errors import ClusterError, DiskError, LockedError, OvertileError
from pipeline.execution.blocks import StageReport

State = Literal[
    "complete", "complete before", "kept", "failed", "locked", "waiting", "resumable", "deferred", "quarantined"
]

NOT_IN_VAIN = ("kept", "resumable", "deferred")
"""States of slides that are not as asked, and yet nothing is wrong with them."""

OTHERS_FAULT: Mapping[type[OvertileError], State] = {LockedError: "locked", ClusterError: "resumable"}
"""What a slide is that stopped for no fault of its own."""


@dataclass(slots=True)
class Outcome:
    """What became of one slide. ``attempt`` tells whether it was asked for as in another run: same slide, same plan."""

    key: str
    slide: Path
    state: State = "waiting"
    stage: str = "plan"
    cause: str = ""
    seconds: float = 0.0
    computed: dict[str, int] = field(default_factory=dict)
    network_calls: int = 0
    notices: list[str] = field(default_factory=list)
    disk_failed: bool = False
    attempt: str = ""

    @property
    def is_up_to_date(self) -> bool:
        """Complete under the plan that was asked for."""
        return self.state in ("complete", "complete before")

    @property
    def stopped(self) -> bool:
        """Not as asked, and there is something to say about it: it does not merely wait for its turn."""
        return not self.is_up_to_date and (self.state != "waiting" or self.cause != "")

    def add(self, report: StageReport, seconds: float) -> None:
        """Count what a stage did in this run."""
        self.seconds += seconds
        self.computed[report.stage] = report.computed
        self.network_calls += report.counts.get("network_calls", 0)

    def failed(self, stage: str, error: BaseException) -> None:
        """Remember why the slide stopped, on one line."""
        self.state = next((state for kind, state in OTHERS_FAULT.items() if isinstance(error, kind)), "failed")
        self.stage = stage
        ours = isinstance(error, OvertileError)  # then the message names its place
        text = str(error) if ours else f"{self.slide}: {type(error).__name__}: {error}"
        self.cause = " ".join(text.split())
        self.disk_failed = isinstance(error, DiskError)
        if self.disk_failed or self.state != "failed":
            self.attempt = ""  # no fault of the slide's

    def paused(self, stage: str, error: TimeUpError) -> None:
        """Remember where the slide was stopped because the time was over."""
        self.state, self.stage, self.cause = "resumable", stage, str(error)

    def deferred(self, why: str) -> None:
        """Leave the slide for the next run."""
        self.state, self.cause = "deferred", " ".join(why.split())

    def quarantined(self, strikes: FailureCount, cure: str) -> None:
        """Do not try the slide again before something changed."""
        self.state, self.stage = "quarantined", strikes.stage
        self.cause = f"not tried, for it failed in {strikes.count} runs: {strikes.cause}. To try again: {cure}"
