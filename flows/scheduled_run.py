"""The Prefect flow of a scheduled run: one batch under a lock, so that runs of a folder never overlap.

A scheduled run does what `overtile segment` does, with its request in one validated model, so it can be repeated by
hand. It requires the model weights that were present when it was scheduled.
"""

from __future__ import annotations

from pathlib import Path

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from flows.artifacts import show_artifact
from flows.batch.batch import Batch, BatchRequest
from flows.batch.outcome import NOT_FAILED
from flows.batch.selection import require_sha256
from flows.reports.run_artifact import scheduled_run_page
from flows.reports.summary_markdown import escape_markdown
from flows.segment import IncompleteError, segment_folder
from pipeline.config import MAX_OPEN_SLIDES
from pipeline.errors import LockedError
from pipeline.inference.ensemble import load_model
from pipeline.printable import printable
from pipeline.storage.atomic_files import digest
from pipeline.storage.lock import slide_lock

LOCK = ".night"
"""The folder in OUT whose lock a run holds. The lock dies with the process, whatever state Prefect reports."""


class ScheduledRunRequest(BatchRequest):
    """The request of every run of a schedule."""

    inputs: tuple[Path, ...] = Field(description="Slides or folders of slides; new slides are segmented.")
    out: Path = Field(description="Results folder; holds one folder per slide.")
    model_sha256: str = Field(description="SHA-256 of the model; other weights are refused.")


def _run_name() -> str:
    from prefect.runtime import flow_run

    return f"{flow_run.scheduled_start_time:%Y-%m-%d %H:%M} UTC"


@flow(
    name="night",
    flow_run_name=_run_name,
    task_runner=ThreadPoolTaskRunner(max_workers=MAX_OPEN_SLIDES),  # type: ignore[arg-type]  # its futures are ours
    persist_result=False,
    result_serializer="json",  # Prefect keeps what a flow raises, by default as a pickle of all it holds
)
def night(request: ScheduledRunRequest) -> State[None]:
    """Segment new slides of a folder. The run fails when a slide fails; slides stopped by a deadline do not fail it."""
    require_sha256(load_model(request.config.model), request.model_sha256)
    try:
        with slide_lock(request.out / LOCK):
            batch = segment_folder.fn(request)
    except LockedError as error:
        get_run_logger().warning("skipped: %s", printable(str(error)))
        return Cancelled(name="Skipped", message=f"the previous run is still active: {error}")
    except IncompleteError as error:
        _show(error.batch)
        outcomes = error.batch.outcomes
        has_failed = any(not outcome.is_up_to_date and outcome.state not in NOT_FAILED for outcome in outcomes)
        return Failed(message=str(error)) if has_failed else Completed(message=str(error))
    _show(batch)
    return Completed(message="all slides are complete")


def short_name(out: Path) -> str:
    """A short digest that identifies an output folder where a path is not allowed."""
    return digest(str(out))[:8]


def _show(batch: Batch) -> None:
    """Show the run's summary as an artifact under the key of its output folder."""
    out = batch.request.out
    show_artifact(f"night-{short_name(out)}", escape_markdown(out), scheduled_run_page(batch))
