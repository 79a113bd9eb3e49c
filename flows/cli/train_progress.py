"""Progress of a training: loss and time left.

The displayed loss is a running mean, because the loss of one batch depends mostly on its tiles.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape

from flows.cli.progress_bar import Bar
from pipeline.printable import printable
from unet_core.training.resume_checkpoint import Position
from unet_core.training.trainer import TrainJob

MEAN_OVER = 50  # steps


class TrainProgress(Bar):
    """Displays the progress of a training. A context manager."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.loss: float | None = None

    def begun(self, job: TrainJob, position: Position) -> None:
        """Print that a training starts or resumes."""
        spec = job.material
        self.loss = None
        self.begin()
        state = f"resumes after step {position.step}" if position.step else "starts"
        counts = f"{len(spec.training)} training images, {len(spec.held_back)} held back"
        self.say(f"{escape(printable(str(job.folder)))} {state}: {counts}")

    def stepped(self, record: Mapping[str, Any], progress: float) -> None:
        """Move the bar, or log a line when the last one is old enough."""
        weight = 1.0 if self.loss is None else 1 / MEAN_OVER
        self.loss = (1 - weight) * (self.loss or 0.0) + weight * record["loss"]
        text = f"step {record['step']} loss {self.loss:.4f}"
        self.describe(text)
        self.move(progress, text)

    def validated(self, step: int, scores: Mapping[str, float]) -> None:
        """Print the scores of a validation."""
        self.say(f"step {step} held back: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))
