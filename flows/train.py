"""The Prefect flow of a training: one task and one network for each fold that is held back.

Prefect schedules and displays. The progress of a training is in its folder, so the same call resumes it there.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.utilities.annotations import quote

from flows.artifacts import show_artifact
from flows.training.training_data import PreparedTraining, TrainRequest, open_run
from pipeline.inference.predictor import exact_gpu_arithmetic, keep_freed_memory
from pipeline.printable import printable
from pipeline.storage.atomic_files import read_json_lines
from unet_core.model_file.header import describe
from unet_core.training.metrics_log import NAME as METRICS
from unet_core.training.resume_checkpoint import Position
from unet_core.training.train_state import use_threads
from unet_core.training.trainer import BEST, TrainJob, TrainListener, train

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """A training whose images are read, and a listener for its progress."""

    request: TrainRequest
    prepared: PreparedTraining
    listener: TrainListener


_PREPARED: ContextVar[PreparedRun | None] = ContextVar("prepared training", default=None)
"""The training of `run_flow`. It is no parameter of the flow, because Prefect stores and displays parameters."""


def _run_name() -> str:
    from prefect.runtime import flow_run

    request = flow_run.parameters["request"]
    return printable(f"{request.images.name} -> {request.out.name}")


@flow(name="train-unet", flow_run_name=_run_name, persist_result=False, result_serializer="json")  # else a pickle
def train_unet(request: TrainRequest) -> list[Path]:
    """Train a network for each fold that is held back. Folds that are trained already are left unchanged.

    Returns:
        The model files.

    Raises:
        ConfigError: The request is invalid.
        DivergedError: The loss is not finite.
    """
    planned = _PREPARED.get()
    if planned is not None:
        return _train(planned)
    with open_run(request) as prepared:
        return _train(PreparedRun(request, prepared, _NoListener()))


def run_flow(run: PreparedRun) -> list[Path]:
    """Run the flow for a training whose images are read already."""
    token = _PREPARED.set(run)
    try:
        return train_unet(run.request)
    finally:
        _PREPARED.reset(token)


def _train(run: PreparedRun) -> list[Path]:
    keep_freed_memory()
    exact_gpu_arithmetic()
    use_threads(run.request.recipe.compute.threads)
    jobs = run.prepared.jobs
    models = [train_fold(printable(job.folder.name), _hidden((job, run.listener))) for job in jobs]
    report(_hidden((run.request, run.prepared)))
    return models


def _hidden(argument: T) -> T:
    """An argument that reaches the task unchanged and that Prefect neither inspects nor stores."""
    return cast(T, quote(argument))


@task(name="train fold", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def train_fold(name: str, fold: tuple[TrainJob, TrainListener]) -> Path:
    """Train one network and show its validations as an artifact."""
    job, listener = fold
    job.folder.mkdir(parents=True, exist_ok=True)
    train(job, listener)
    show_artifact("training", name, training_markdown(job.folder))
    return job.folder / BEST


@task(name="report", cache_policy=NO_CACHE, persist_result=False)
def report(job: tuple[TrainRequest, PreparedTraining]) -> Path:
    """Write the report of the run and show it as an artifact."""
    from flows.training.report_html import (
        write_training_report,  # matplotlib costs half a second, and training comes first
    )

    path, markdown = write_training_report(*job)
    show_artifact("training-report", "report", markdown)
    return path


def training_markdown(folder: Path) -> str:
    """A training as Markdown: threshold, smallest object and the scores of every validation."""
    spec = describe(folder / BEST).spec
    scored = [line for line in read_json_lines(folder / METRICS) if "validation" in line]
    names = list(scored[0]["validation"]) if scored else []
    smallest = f"{spec.min_area_um2:g} {'um2' if spec.mpp else 'px'}"
    lines = [
        f"# {printable(folder.name)}",
        "",
        f"Threshold {spec.threshold or 'none'}, smallest object {smallest}, {len(scored)} validations.",
        "",
        f"| step | {' | '.join(names)} |",
        f"|{'---|' * (1 + len(names))}",
        *(_row(line["step"], line["validation"]) for line in scored),
    ]
    return "\n".join(lines) + "\n"


def _row(step: int, scores: Mapping[str, float]) -> str:
    return f"| {step} | {' | '.join(f'{value:.4f}' for value in scores.values())} |"


class _NoListener:
    """Ignores progress."""

    def begun(self, job: TrainJob, position: Position) -> None: ...

    def stepped(self, record: Mapping[str, Any], progress: float) -> None: ...

    def validated(self, step: int, scores: Mapping[str, float]) -> None: ...
