"""The train command.

Every option becomes a key of the training configuration, so that the configuration in a model's provenance is complete.
PyTorch and Prefect are imported only when a training starts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from flows.cli.options import Overrides
from pipeline.config import load_as, read_settings
from pipeline.errors import ConfigError, ModelError, OvertileError
from pipeline.printable import printable

if TYPE_CHECKING:
    from flows.training.training_data import PreparedTraining, TrainRequest

app = typer.Typer()


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """Paths and configuration keys of the command line."""

    images: Path
    masks: Path
    cases: Path | None
    out: Path
    config: Path | None
    overrides: Sequence[str]
    pseudo: str | None = None

    def check(self) -> None:
        """Check what needs no heavy import.

        Raises:
            ConfigError: The configuration is invalid or a path does not exist.
        """
        read_settings(self.config, self.overrides)
        for folder in (self.images, self.masks):
            if not folder.is_dir():
                raise ConfigError(f"{folder} is no folder: expected a folder of annotated images or of their masks")
        if self.cases is not None and not self.cases.is_file():
            raise ConfigError(f"{self.cases} does not exist: expected a CSV table with a column 'image'")


@app.command()
def train(  # noqa: PLR0913  one parameter an option
    images: Annotated[
        Path, typer.Option("--images", metavar="DIR", help="Folder of annotated images.", show_default=False)
    ],
    masks: Annotated[
        Path,
        typer.Option(
            "--masks", metavar="DIR", help="Folder of their masks, with the same file names.", show_default=False
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="RUN", help="Folder for models, report and checkpoints of the run.", show_default=False
        ),
    ],
    cases: Annotated[
        Path | None,
        typer.Option("--cases", metavar="CSV", help="CSV table with columns image, patient and fold, see training.md."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="F", help="YAML configuration file, see configs/train.yaml.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option("--minutes", metavar="M", help="Train for so many minutes.", min=0)
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", metavar="N", help="Train for so many steps instead; reproducible to the bit.", min=1),
    ] = None,
    fold: Annotated[
        str | None,
        typer.Option(
            "--fold", metavar="K|all|none", help="Fold to hold back: a number, each fold in turn (all), or none."
        ),
    ] = None,
    dry_run: Annotated[  # noqa: FBT002  typer's way to declare a flag
        bool, typer.Option("--dry-run", help="Check the images and draw some samples without training.")
    ] = False,
    pseudo: Annotated[
        str | None,
        typer.Option(
            "--pseudo",
            metavar="NAME_OR_FILE",
            help="Turn dots into outlines with this model; unclear areas are excluded from training.",
        ),
    ] = None,
    settings: Overrides = None,
) -> None:
    """Train a network on annotated images, or resume a training.

    Run the same command again to resume.
    """
    words = TrainOptions(
        images, masks, cases, out, config, [*(settings or ()), *_keys_of(minutes, steps, fold)], pseudo
    )
    words.check()
    raise typer.Exit(_dry_run(words) if dry_run else _train(words))


def _keys_of(minutes: float | None, steps: int | None, fold: str | None) -> list[str]:
    """The options as keys of the configuration."""
    if minutes is not None and steps is not None:
        raise ConfigError(
            "--minutes and --steps: expected one of them, found both. Only --steps is reproducible to the bit"
        )
    keys = [] if minutes is None else [f"schedule.minutes={minutes}", "schedule.steps=null"]
    keys += [] if steps is None else [f"schedule.steps={steps}"]
    if fold is not None:
        keys.append(f"folds.hold_back={'null' if fold == 'none' else json.dumps(fold) if fold == 'all' else fold}")
    return keys


def _train(words: TrainOptions) -> int:
    from flows.prefect_server import Server, used

    server = Server.start()  # it starts while modules are imported and images read
    from flows.cli.dataset_summary import show_summary
    from flows.reports.html_page import PAGE
    from flows.training.training_data import TrainRequest, open_run
    from unet_core.training.config import TrainConfig
    from unet_core.training.trainer import BEST, is_done

    recipe = load_as(TrainConfig, words.config, words.overrides)
    request = TrainRequest(words.images, words.masks, words.cases, words.out, recipe, words.pseudo)
    console = Console()
    with _command_errors(), open_run(request) as prepared:
        show_summary(prepared.summary, console)
        if all(map(is_done, prepared.jobs)) and (words.out / PAGE).exists():
            console.print("nothing to do: the training is complete")
        else:
            with used(server):
                _run(request, prepared, console)
    for job in prepared.jobs:
        model = printable(str(job.folder / BEST))
        console.print(f"trained: {escape(model)}", soft_wrap=True, highlight=False)
    console.print(f"report: {escape(printable(str(words.out / PAGE)))}", soft_wrap=True, highlight=False)
    return 0


def _run(request: TrainRequest, prepared: PreparedTraining, console: Console) -> None:
    """Train as a Prefect flow."""
    from flows.cli.train_progress import TrainProgress
    from flows.train import PreparedRun, run_flow

    with TrainProgress(console) as display:
        run_flow(PreparedRun(request, prepared, display))


def _dry_run(words: TrainOptions) -> int:
    from flows.cli.dataset_summary import show_summary
    from flows.training.training_data import TrainRequest, read, save_samples
    from unet_core.training.config import TrainConfig

    recipe = load_as(TrainConfig, words.config, words.overrides)
    request = TrainRequest(words.images, words.masks, words.cases, words.out, recipe, words.pseudo)
    console = Console()
    with _command_errors():
        _, found, summary = read(request)
        show_summary(summary, console)
        samples = save_samples(request, found)
    console.print(f"samples: {escape(printable(str(samples)))}", soft_wrap=True, highlight=False)
    return 0


@contextmanager
def _command_errors() -> Iterator[None]:
    """Turn errors of training into errors of the command."""
    from unet_core.errors import DivergedError, NetworkError, RecipeError

    try:
        yield
    except RecipeError as error:
        raise ConfigError(str(error)) from error
    except DivergedError as error:
        raise OvertileError(str(error)) from error
    except NetworkError as error:
        raise ModelError(str(error)) from error
