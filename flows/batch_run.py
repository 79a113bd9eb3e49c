"""Run a batch of slides as a plain function, without Prefect.

The Prefect flow `flows.segment.segment_folder` wraps the same function and submits each stage as a task.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from flows.batch.batch import Batch, BatchRequest, plan_batch
from flows.batch.group_permissions import shared_with_group
from flows.batch.scheduler import (
    Executor,
    ListenerGroup,
    ProgressListener,
    SlideScheduler,
    StageJob,
    StageResult,
    SubmitStage,
    make_executor,
)
from flows.reports.batch_files import Report, record_in_history, write_html_report
from pipeline.config import MAX_OPEN_SLIDES


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """A batch that is planned, its workers, and a listener for its progress."""

    batch: Batch
    executor: Executor
    listener: ProgressListener | None = None


def run_batch(
    request: BatchRequest, listener: ProgressListener | None = None, submit: SubmitStage | None = None
) -> Batch:
    """Segment every slide of a request; results that are complete already are left unchanged.

    Args:
        request: Inputs, output folder and configuration.
        listener: Receives progress.
        submit: Starts a stage; None runs stages in threads of this process.

    Returns:
        The batch with the outcome of every slide. A slide that failed is an outcome, not an exception.

    Raises:
        ConfigError: The request is invalid.
        ModelError: A model cannot be used.
        DiskError: The output folder cannot be written.
    """
    with shared_with_group(request):
        batch = plan_batch(request)
        with make_executor(batch) as executor:
            _run(PlannedBatch(batch, executor, listener), submit)
    write_html_report(batch)
    return batch


def run_planned(planned: PlannedBatch, submit: SubmitStage | None = None) -> Batch:
    """Run a batch that is planned already, on workers that are open; see `run_batch`."""
    _run(planned, submit)
    write_html_report(planned.batch)
    return planned.batch


def _run(planned: PlannedBatch, submit: SubmitStage | None) -> None:
    batch = planned.batch
    with record_in_history(batch):
        report = Report(batch)
        listeners = ListenerGroup([report] if planned.listener is None else [report, planned.listener])
        listeners.batch_planned(batch)
        if submit is None:
            with _stage_threads() as threads:
                SlideScheduler(batch, planned.executor, listeners, threads).run()
        else:
            SlideScheduler(batch, planned.executor, listeners, submit).run()
        report.finish()


@contextmanager
def _stage_threads() -> Iterator[SubmitStage]:
    """A thread for each stage that runs, as many as slides may be open at once."""
    with ThreadPoolExecutor(MAX_OPEN_SLIDES, "stage") as pool:
        yield lambda job: pool.submit(_attempt, job)


def _attempt(job: StageJob) -> StageResult | BaseException:
    try:
        return job.run()
    except Exception as error:  # it belongs to the slide; the scheduler goes on with the others
        return error
