"""Scheduled runs that crashed, are late or were missed while no schedule was served.

Whether a run is alive is decided by its lock, which dies with its process; Prefect would report a killed run as running
for ever. One run makes up for all that did not happen, because it processes everything that is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.schedules import SCHEDULE_TYPES
from prefect.client.schemas.sorting import FlowRunSort
from prefect.server.schemas import schedules as server
from prefect.states import Cancelled, Crashed

from flows.scheduled_run import LOCK
from pipeline.storage.lock import live_owner

ACTIVE = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)
MISSED = "scheduled runs were missed: one run makes up for them"
STOPPED = "Runner is shutting down"
"""Prefect's message for runs that it stopped together with their schedule."""
GRACE = timedelta(seconds=90)
"""A run may be active without its lock for so long, at its start and at its end."""


async def mark_dead(client: PrefectClient, deployment: UUID, out: Path, grace: timedelta = GRACE) -> list[FlowRun]:
    """Mark runs as crashed that Prefect reports as active and whose process is gone; return them."""
    if live_owner(out / LOCK):
        return []
    before = datetime.now(UTC) - grace
    found = await _runs(client, deployment, ACTIVE)
    dead = [run for run in found if run.state is not None and run.state.timestamp <= before]
    for run in dead:
        await client.set_flow_run_state(run.id, Crashed(message="its process is gone; the next run resumes"))
    return dead


async def catch_up(client: PrefectClient, deployment: UUID, out: Path, schedule: SCHEDULE_TYPES | None) -> str | None:
    """Start one run for all runs that crashed, are late or were missed.

    Returns:
        The reason, or None when there is nothing to make up for.
    """
    now = datetime.now(UTC)
    dead = await mark_dead(client, deployment, out, timedelta(0))
    late = [run for run in await _runs(client, deployment, [StateType.SCHEDULED]) if _start(run) <= now]
    for run in late:  # their parameters are those of an older deployment
        await client.set_flow_run_state(
            run.id, Cancelled(name="Skipped", message="one run makes up for all missed runs")
        )
    past = [run for run in await _runs(client, deployment, list(StateType)) if _start(run) <= now]
    missed = bool(past and schedule and await firings(schedule, _start(past[0]), 1, before=now))
    stopped = bool(past) and STOPPED in (past[0].state.message or "" if past[0].state else "")
    if not dead and not late and not missed and not stopped:
        return None
    await client.create_flow_run_from_deployment(deployment)
    if dead or late:
        return f"{len(dead)} runs crashed and {len(late)} are late: one run makes up for them"
    return MISSED if missed else "the last run was stopped with the schedule: a new run resumes it"


async def is_busy(client: PrefectClient, deployment: UUID) -> bool:
    """Whether a run is active or about to start."""
    return bool(await _runs(client, deployment, [*ACTIVE, StateType.SCHEDULED]))


async def skipped(client: PrefectClient, deployment: UUID) -> list[FlowRun]:
    """Runs that were skipped because the previous run was still active."""
    found = await _runs(client, deployment, [StateType.CANCELLED])
    return [run for run in found if run.state is not None and "concurrency limit" in (run.state.message or "")]


async def firings(
    schedule: SCHEDULE_TYPES, after: datetime, count: int, before: datetime | None = None
) -> list[datetime]:
    """The next times of a schedule after a moment, as the server computes them."""
    kind = server.CronSchedule if hasattr(schedule, "cron") else server.IntervalSchedule
    like = kind.model_validate(schedule.model_dump(exclude_unset=True))
    dates = await like.get_dates(n=count, start=after + timedelta(seconds=1), end=before)
    return [datetime.fromtimestamp(date.timestamp(), UTC) for date in dates]


def _start(run: FlowRun) -> datetime:
    return run.expected_start_time or datetime.max.replace(tzinfo=UTC)


async def _runs(client: PrefectClient, deployment: UUID, types: Sequence[StateType]) -> list[FlowRun]:
    """The runs of a deployment in states of these types, latest first."""
    return await client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])),
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types)))),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
    )
