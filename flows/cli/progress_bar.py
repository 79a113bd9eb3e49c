"""Progress as a bar on a terminal, or as lines in a log.

A log gets at most one line in half a minute, so that the log of a long run stays readable.
"""

from __future__ import annotations

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LOG_EVERY_S = 30.0


class Bar:
    """A progress bar with the time left, from 0 to 1. A context manager."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.logged = time.monotonic()
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f}%"),
            TextColumn("{task.fields[rate]}"),
        )
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        self.progress = Progress(*columns, *times, console=console, disable=not console.is_terminal, transient=True)
        self.row: TaskID | None = None

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def begin(self) -> None:
        """Start at zero."""
        if self.row is not None:
            self.progress.remove_task(self.row)
        self.row = self.progress.add_task("starting", total=1.0, rate="")

    def describe(self, what: str) -> None:
        """Set the text beside the bar, in rich markup."""
        if self.row is not None:
            self.progress.update(self.row, description=what)

    def move(self, share: float, what: str, rate: str = "") -> None:
        """Set the bar, or log a line when the last one is older than ``LOG_EVERY_S``."""
        if self.row is not None:
            self.progress.update(self.row, completed=share, rate=rate)
        if not self.console.is_terminal and time.monotonic() - self.logged > LOG_EVERY_S:
            self.logged = time.monotonic()
            self.say(f"{share:4.0%} {what} {rate}".rstrip())

    def say(self, text: str) -> None:
        """Print a line above the bar, in rich markup."""
        self.console.print(text, soft_wrap=True, highlight=False)
