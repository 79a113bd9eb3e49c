"""What a schedule finds when it starts again: nights whose process is no more, nights that are late, nights missed.

The one decision made here: whether a night lives is asked of its lock, which dies with it, never of Prefect, which
would call it running for ever. Of all that was not done exactly one night is made up for: it does what is missing.
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

AT_WORK = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)
MISSED = "nights were missed: one makes up for them"
STOPPED = "Runner is shutting down"
"""What Prefect says of nights that it ended because their schedule was."""
GRACE = timedelta(seconds=90)
"""So long may a night be at work without its lock: before it holds it, and after."""


async def mark_dead(client: PrefectClient, deployment: UUID, out: Path, grace: timedelta = GRACE) -> list[FlowRun]:
    """Mark nights as crashed that Prefect believes at work and whose process is gone; these."""
    if live_owner(out / LOCK):
        return []
    before = datetime.now(UTC) - grace
    found = await _runs(client, deployment, AT_WORK)
    dead = [run for run in found if run.state is not None and run.state.timestamp <= before]
    for run in dead:
        await client.set_flow_run_state(run.id, Crashed(message="its process is gone; the next night goes on"))
    return dead


async def catch_up(client: PrefectClient, deployment: UUID, out: Path, schedule: SCHEDULE_TYPES | None) -> str | None:
    """Let exactly one night make up for all that died, are late or were missed; why, or None when there is none."""
    now = datetime.now(UTC)
    dead = await mark_dead(client, deployment, out, timedelta(0))
    late = [run for run in await _runs(client, deployment, [StateType.SCHEDULED]) if _start(run) <= now]
    for run in late:  # they were scheduled with what was asked for then
        await client.set_flow_run_state(run.id, Cancelled(name="Skipped", message="one night makes up for all missed"))
    past = [run for run in await _runs(client, deployment, list(StateType)) if _start(run) <= now]
    missed = bool(past and schedule and await firings(schedule, _start(past[0]), 1, before=now))
    stopped = bool(past) and STOPPED in (past[0].state.message or "" if past[0].state else "")
    if not dead and not late and not missed and not stopped:
        return None
    await client.create_flow_run_from_deployment(deployment)
    if dead or late:
        return f"{len(dead)} nights died and {len(late)} are late: one makes up for them"
    return MISSED if missed else "the last night was ended with the schedule: another one goes on with it"


async def is_busy(client: PrefectClient, deployment: UUID) -> bool:
    """Whether a night is at work, or about to be."""
    return bool(await _runs(client, deployment, [*AT_WORK, StateType.SCHEDULED]))


async def skipped(client: PrefectClient, deployment: UUID) -> list[FlowRun]:
    """Nights that were not begun because the one before was still at work."""
    found = await _runs(client, deployment, [StateType.CANCELLED])
    return [run for run in found if run.state is not None and "concurrency limit" in (run.state.message or "")]


async def firings(
    schedule: SCHEDULE_TYPES, after: datetime, count: int, before: datetime | None = None
) -> list[datetime]:
    """The next firings after a moment, as the server will find them."""
    kind = server.CronSchedule if hasattr(schedule, "cron") else server.IntervalSchedule
    like = kind.model_validate(schedule.model_dump(exclude_unset=True))
    dates = await like.get_dates(n=count, start=after + timedelta(seconds=1), end=before)
    return [datetime.fromtimestamp(date.timestamp(), UTC) for date in dates]


def _start(run: FlowRun) -> datetime:
    return run.expected_start_time or datetime.max.replace(tzinfo=UTC)


async def _runs(client: PrefectClient, deployment: UUID, types: Sequence[StateType]) -> list[FlowRun]:
    """Those of a deployment in states of these types, the latest first."""
    return await client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])),
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types)))),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
    )
