"""How a training goes, for a person (a bar with the loss and the time left) or for a log (a line now and then).

The one decision made here: the loss shown is a running mean, for that of one batch says more about its tiles than about
the network.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flows.plain import printable
from flows.progress import LOG_EVERY_S
from unet_core.resume import Position
from unet_core.train import Order

MEAN_OVER = 50  # steps


class Display:
    """A progress bar on a terminal, log lines elsewhere. A context manager."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.logged = time.monotonic()
        self.loss: float | None = None
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f}%"),
        )
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        self.bar = Progress(*columns, *times, console=console, disable=not console.is_terminal, transient=True)
        self.row: TaskID | None = None

    def __enter__(self) -> Display:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def begun(self, order: Order, position: Position) -> None:
        """Say what starts, or goes on."""
        spec = order.material
        self.loss = None
        if self.row is not None:
            self.bar.remove_task(self.row)
        self.row = self.bar.add_task("starting", total=1.0)
        told = f"goes on after step {position.step}" if position.step else "starts"
        counts = f"{len(spec.training)} images to learn from, {len(spec.held_back)} held back"
        self._say(f"{escape(printable(str(order.folder)))} {told}: {counts}")

    def stepped(self, record: Mapping[str, Any], progress: float) -> None:
        """Move the bar, or log a line when the last one is long ago."""
        weight = 1.0 if self.loss is None else 1 / MEAN_OVER
        self.loss = (1 - weight) * (self.loss or 0.0) + weight * record["loss"]
        text = f"step {record['step']} loss {self.loss:.4f}"
        if self.row is not None:
            self.bar.update(self.row, completed=progress, description=text)
        if not self.console.is_terminal and time.monotonic() - self.logged > LOG_EVERY_S:
            self.logged = time.monotonic()
            self._say(f"{progress:4.0%} {text}")

    def validated(self, step: int, scores: Mapping[str, float]) -> None:
        """Print one line about a validation."""
        self._say(f"step {step} held back: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))

    def _say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False)
