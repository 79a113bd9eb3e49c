"""The outcome of one slide in a batch: its state, the stage where it stopped, and the cause.

Only ``complete`` and ``complete before`` are up to date. Every other state has a cause, or is resumed by the next run.
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

NOT_FAILED = ("kept", "resumable", "deferred")
"""States of slides that are not up to date although nothing failed."""

STATES_BY_ERROR: Mapping[type[OvertileError], State] = {LockedError: "locked", ClusterError: "resumable"}
"""States of slides that stopped for reasons outside the slide."""


@dataclass(slots=True)
class Outcome:
    """The outcome of one slide. ``attempt`` is a digest of slide and plan; equal ones are the same attempt."""

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
        """Whether the slide is complete under the requested plan."""
        return self.state in ("complete", "complete before")

    @property
    def stopped(self) -> bool:
        """Whether the slide is not up to date for a stated cause, not merely waiting."""
        return not self.is_up_to_date and (self.state != "waiting" or self.cause != "")

    def add(self, report: StageReport, seconds: float) -> None:
        """Count what a stage did in this run."""
        self.seconds += seconds
        self.computed[report.stage] = report.computed
        self.network_calls += report.counts.get("network_calls", 0)

    def failed(self, stage: str, error: BaseException) -> None:
        """Record why the slide stopped, on one line."""
        self.state = next((state for kind, state in STATES_BY_ERROR.items() if isinstance(error, kind)), "failed")
        self.stage = stage
        is_own = isinstance(error, OvertileError)  # its message names the slide
        text = str(error) if is_own else f"{self.slide}: {type(error).__name__}: {error}"
        self.cause = " ".join(text.split())
        self.disk_failed = isinstance(error, DiskError)
        if self.disk_failed or self.state != "failed":
            self.attempt = ""  # not caused by the slide

    def paused(self, stage: str, error: TimeUpError) -> None:
        """Record the stage at which the deadline stopped the slide."""
        self.state, self.stage, self.cause = "resumable", stage, str(error)

    def deferred(self, why: str) -> None:
        """Leave the slide for the next run."""
        self.state, self.cause = "deferred", " ".join(why.split())

    def quarantined(self, failures: FailureCount, remedy: str) -> None:
        """Do not try the slide again until it changes or is released."""
        self.state, self.stage = "quarantined", failures.stage
        self.cause = f"not tried, for it failed in {failures.count} runs: {failures.cause}. To try again: {remedy}"
