"""The flow: one Prefect task for each fold that is held back, one network for each.

The one decision made here: as with slides, Prefect shows and is never the ledger; how far a training has come is what
lies in its folder, so the same call goes on there whatever Prefect remembers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.utilities.annotations import quote

from flows.artifacts import show_artifact
from flows.training.training_data import Prepared, TrainRequest, begin
from pipeline.inference.predictor import exact_gpu_arithmetic, keep_freed_memory
from pipeline.printable import printable
from pipeline.storage.atomic_files import read_json_lines
from unet_core.model_file.header import describe
from unet_core.training.metrics_log import NAME as METRICS
from unet_core.training.resume_checkpoint import Position
from unet_core.training.train_state import use_threads
from unet_core.training.trainer import BEST, TrainJob, TrainListener, train


def _run_name() -> str:
    from prefect.runtime import flow_run

    request = flow_run.parameters["request"]
    return printable(f"{request.images.name} -> {request.out.name}")


@flow(name="train-unet", flow_run_name=_run_name, persist_result=False, result_serializer="json")  # else a pickle
def train_unet(request: TrainRequest, watcher: Any = None, begun: Any = None) -> list[Path]:
    """Train a network for each fold that is held back; return the models' files. What is done already stays.

    ``begun`` gives what was prepared, for a caller who has read the images already: a function, because Prefect would
    show whatever else it is given. Raises ConfigError when nothing could start, DivergedError when the loss is no
    number any more.
    """
    with (begun or begin)(request) as prepared:
        keep_freed_memory()
        exact_gpu_arithmetic()
        use_threads(request.recipe.compute.threads)
        models = [train_fold(printable(order.folder.name), _unseen((order, watcher))) for order in prepared.orders]
        report(_unseen((request, prepared)))
        return models


def _unseen(job: Any) -> Any:
    """What a task is given and Prefect neither looks into nor shows; it arrives as it is."""
    return quote(job)


@task(name="train fold", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def train_fold(name: str, job: tuple[TrainJob, TrainListener | None]) -> Path:
    """Train one network, and show how it went."""
    order, watcher = job
    order.folder.mkdir(parents=True, exist_ok=True)
    train(order, watcher or _Nobody())
    show_artifact("training", name, training_markdown(order.folder))
    return order.folder / BEST


@task(name="report", cache_policy=NO_CACHE, persist_result=False)
def report(job: tuple[TrainRequest, Prepared]) -> Path:
    """Write the run's page, and show where it is."""
    from flows.training.report_html import (
        write_training_report,  # matplotlib costs half a second, and training comes first
    )

    path, markdown = write_training_report(*job)
    show_artifact("training-report", "report", markdown)
    return path


def training_markdown(folder: Path) -> str:
    """How a training went: what was chosen, and every validation."""
    spec = describe(folder / BEST).spec
    scored = [line for line in read_json_lines(folder / METRICS) if "validation" in line]
    names = list(scored[0]["validation"]) if scored else []
    lines = [
        f"# {printable(folder.name)}",
        "",
        f"Threshold {spec.threshold or 'none'}, smallest object {spec.min_area_um2:g} um2, {len(scored)} validations.",
        "",
        f"| step | {' | '.join(names)} |",
        f"|{'---|' * (1 + len(names))}",
        *(_row(line["step"], line["validation"]) for line in scored),
    ]
    return "\n".join(lines) + "\n"


def _row(step: int, scores: Mapping[str, float]) -> str:
    return f"| {step} | {' | '.join(f'{value:.4f}' for value in scores.values())} |"


class _Nobody:
    """Watches nothing."""

    def begun(self, order: TrainJob, position: Position) -> None: ...

    def stepped(self, record: Mapping[str, Any], progress: float) -> None: ...

    def validated(self, step: int, scores: Mapping[str, float]) -> None: ...
