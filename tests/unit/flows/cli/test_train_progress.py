"""Progress of a training."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from flows.cli import progress_bar
from flows.cli.train_progress import TrainProgress
from tests.unit.unet_core.training_runs import material, recipe
from unet_core.training.resume_checkpoint import Position
from unet_core.training.trainer import TrainJob


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> StringIO:
    """A log that gets a line at every step."""
    monkeypatch.setattr(progress_bar, "LOG_EVERY_S", -1.0)
    return StringIO()


def test_displayed_loss_is_a_running_mean(said: StringIO) -> None:
    with TrainProgress(Console(file=said, width=200)) as display:
        display.begun(TrainJob(Path("run"), material(), recipe()), Position())
        display.stepped({"step": 1, "loss": 1.0}, 0.0)
        display.stepped({"step": 2, "loss": 51.0}, 0.5)
    assert said.getvalue().splitlines()[1:] == ["  0% step 1 loss 1.0000", " 50% step 2 loss 2.0000"]


def test_log_lines_are_rate_limited() -> None:
    text = StringIO()
    with TrainProgress(Console(file=text, width=200)) as display:
        display.begun(TrainJob(Path("run"), material(), recipe()), Position())
        for step in range(5):
            display.stepped({"step": step, "loss": 1.0}, step / 5)
    assert len(text.getvalue().splitlines()) == 1, "what starts; then a line each half minute"


def test_start_resume_and_validation_are_printed(said: StringIO) -> None:
    with TrainProgress(Console(file=said, width=200)) as display:
        display.begun(TrainJob(Path("run"), material(3, 1), recipe()), Position(step=4))
        display.validated(6, {"loss": 0.25, "dice": 0.5})
    assert said.getvalue().splitlines() == [
        "run resumes after step 4: 3 training images, 1 held back",
        "step 6 held back: loss 0.2500, dice 0.5000",
    ]


def test_bar_moves_on_a_terminal() -> None:
    console = Console(file=StringIO(), force_terminal=True, width=100)
    with TrainProgress(console) as display:
        display.begun(TrainJob(Path("[bold]"), material(), recipe()), Position())
        display.stepped({"step": 1, "loss": 1.0}, 0.25)
        assert display.row is not None
        assert display.progress.tasks[display.row].percentage == 25
