"""The Prefect flow of a batch: one task for each stage of each slide.

Prefect schedules and displays; it records nothing that a run depends on. What is done is decided by the files on disk,
so a lost or wrong Prefect database changes no result.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import cast

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import quote

from flows.artifacts import show_artifact
from flows.batch.batch import MANIFEST, Batch, BatchRequest
from flows.batch.scheduler import StageJob, StageResult
from flows.batch_run import PlannedBatch, run_batch, run_planned
from flows.reports.batch_files import slide_markdown
from flows.reports.summary_markdown import escape_markdown
from pipeline.config import MAX_OPEN_SLIDES
from pipeline.errors import OvertileError
from pipeline.printable import printable

_PLANNED: ContextVar[PlannedBatch | None] = ContextVar("planned batch", default=None)
"""The batch of `run_flow`. It is no parameter of the flow: Prefect stores parameters, and a batch names patients."""


class IncompleteError(OvertileError):
    """The batch ended and some slides are not complete; ``batch`` holds their outcomes."""

    def __init__(self, batch: Batch) -> None:
        missing = [outcome for outcome in batch.outcomes if not outcome.is_up_to_date]
        super().__init__(f"{len(missing)} of {len(batch.outcomes)} slides are not complete as asked")
        self.batch = batch


@task(name="slide stage", task_run_name="{key}: {stage}", cache_policy=NO_CACHE, persist_result=False)
def slide_stage(key: str, stage: str, job: StageJob) -> StageResult:
    """Run one stage of one slide; once its manifest is written, show the slide as an artifact."""
    result = job.run()
    if stage == MANIFEST:
        with job.redact_errors():
            show_artifact("slide", escape_markdown(key), slide_markdown(job.slide.run))
    return result


@dataclass(frozen=True, slots=True)
class _TaskFuture:
    """A stage that runs as a Prefect task."""

    future: PrefectFuture[StageResult]

    def add_done_callback(self, fn: Callable[[_TaskFuture], None], /) -> None:
        self.future.add_done_callback(lambda _: fn(self))

    def result(self) -> StageResult | BaseException:
        return self.future.result(raise_on_failure=False)


def submit_task(job: StageJob) -> _TaskFuture:
    """Submit a stage to the task runner of the current flow run."""
    hidden = cast(StageJob, quote(job))  # the task receives the job itself; Prefect neither inspects nor stores it
    return _TaskFuture(slide_stage.submit(printable(job.slide.outcome.key), job.stage, hidden))


def _batch_name() -> str:
    from prefect.runtime import flow_run

    request = flow_run.parameters["request"]
    return printable(f"{request.inputs[0].name} -> {request.out.name}")


@flow(
    name="segment-folder",
    flow_run_name=_batch_name,
    task_runner=ThreadPoolTaskRunner(max_workers=MAX_OPEN_SLIDES),  # type: ignore[arg-type]  # its futures are ours
    persist_result=False,
    result_serializer="json",  # Prefect keeps what a flow raises, by default as a pickle of all it holds
)
def segment_folder(request: BatchRequest) -> Batch:
    """Segment every slide of a request; results that are complete already are left unchanged.

    Args:
        request: Inputs, output folder and configuration.

    Returns:
        The batch with the outcome of every slide.

    Raises:
        IncompleteError: All slides were tried and one is not complete; ``batch`` holds the outcomes.
        ConfigError: The request is invalid.
        ModelError: A model cannot be used.
        DiskError: The output folder cannot be written.
    """
    planned = _PLANNED.get()
    batch = run_batch(request, submit=submit_task) if planned is None else run_planned(planned, submit_task)
    if any(not outcome.is_up_to_date for outcome in batch.outcomes):
        raise IncompleteError(batch)
    return batch


def run_flow(planned: PlannedBatch) -> Batch:
    """Run the flow for a batch that is planned already, on workers that are open.

    Prefect stores the redacted request only.

    Raises:
        IncompleteError: All slides were tried and one is not complete.
    """
    token = _PLANNED.set(planned)
    try:
        return segment_folder(planned.batch.shown)
    finally:
        _PLANNED.reset(token)
