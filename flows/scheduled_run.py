"""The flow of one night: the batch that was scheduled, under a lock that only one night at a time holds.

The one decision made here: a night is ``segment`` and nothing more, with what was asked for kept in one checked model,
so that what runs unattended can be run by hand. The weights are those that were there when it was scheduled, or it
refuses to run.
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
from flows.batch.outcome import NOT_IN_VAIN
from flows.batch.selection import require_sha256
from flows.reports.run_artifact import morning_page
from flows.reports.summary_markdown import plain
from flows.segment import IncompleteError, segment_folder
from pipeline.config import MOST_SLIDES_ASKED
from pipeline.errors import LockedError
from pipeline.inference.ensemble import load_model
from pipeline.printable import printable
from pipeline.storage.atomic_files import digest
from pipeline.storage.lock import slide_lock

LOCK = ".night"
"""The folder in OUT whose lock a night holds. It dies with its process, whatever Prefect believes."""


class ScheduledRunRequest(BatchRequest):
    """What every night is asked to do."""

    inputs: tuple[Path, ...] = Field(description="Slides, or folders of slides: what is new in them is segmented.")
    out: Path = Field(description="Folder for the results, one folder a slide.")
    model_sha256: str = Field(description="The weights that may be used; other ones are refused.")


def _night_name() -> str:
    from prefect.runtime import flow_run

    return f"{flow_run.scheduled_start_time:%Y-%m-%d %H:%M} UTC"


@flow(
    name="night",
    flow_run_name=_night_name,
    task_runner=ThreadPoolTaskRunner(max_workers=MOST_SLIDES_ASKED),  # type: ignore[arg-type]  # its futures are ours
    persist_result=False,
    result_serializer="json",  # Prefect keeps what a flow raises, by default as a pickle of all it holds
)
def night(request: ScheduledRunRequest) -> State[None]:
    """Segment what is new in a folder. Fails when a slide failed, with the count; stopping in time is no failure."""
    require_sha256(load_model(request.config.model), request.model_sha256)
    try:
        with slide_lock(request.out / LOCK):
            batch = segment_folder.fn(request)
    except LockedError as error:
        get_run_logger().warning("skipped: %s", printable(str(error)))
        return Cancelled(name="Skipped", message=f"the night before is still at work: {error}")
    except IncompleteError as error:
        _show(error.batch)
        in_vain = any(not one.is_up_to_date and one.state not in NOT_IN_VAIN for one in error.batch.outcomes)
        return Failed(message=str(error)) if in_vain else Completed(message=str(error))
    _show(batch)
    return Completed(message="all slides are complete")


def short_name(out: Path) -> str:
    """What tells an output folder from all others where a path cannot stand."""
    return digest(str(out))[:8]


def _show(batch: Batch) -> None:
    """Put the page of the night where all of this folder are found."""
    out = batch.request.out
    show_artifact(f"night-{short_name(out)}", plain(out), morning_page(batch))
