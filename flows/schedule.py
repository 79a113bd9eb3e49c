"""Serve a schedule on one machine as a Prefect deployment.

Prefect decides when runs start and how many run at once (deployment, schedule, concurrency limit with CANCEL_NEW).
This module only repairs what a killed process leaves behind, at the start and every few seconds.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID
from zoneinfo import ZoneInfo

import anyio
from httpx import HTTPError
from prefect import get_client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import PrefectException
from prefect.runner import Runner
from prefect.schedules import Cron, Interval, Schedule
from prefect.types.entrypoint import EntrypointType

from flows.batch.history import note
from flows.folder_watch import FolderWatch
from flows.missed_runs import catch_up, firings, is_busy, mark_dead, skipped
from flows.notifications import automations, find_block
from flows.reports.summary_markdown import escape_markdown
from flows.scheduled_run import ScheduledRunRequest, night, short_name
from pipeline.errors import ConfigError, OvertileError
from pipeline.printable import printable
from pipeline.storage.lock import slide_lock

LOCK = ".schedule"
LOOK_S, POLL_S = 10, 5
"""Seconds between looks for crashed runs, and between looks for due runs."""


def when(cron: str | None, every_s: float | None, zone: str, *, watch: bool = False) -> Schedule | None:
    """Prefect's schedule of the options, None for ``--watch``.

    Raises:
        ConfigError: Not exactly one option is given, or it is invalid.
    """
    if [cron is not None, every_s is not None, watch].count(True) != 1:
        raise ConfigError("expected one of --cron '0 1 * * *', --every SECONDS and --watch")
    if watch:
        return None
    try:
        return Cron(cron, timezone=zone) if cron is not None else Interval(every_s or 0, timezone=zone)
    except ValueError as error:
        raise ConfigError(f"--cron {cron}: expected minute, hour, day, month, weekday such as '0 1 * * *'") from error


def deployment_of(request: ScheduledRunRequest, schedule: Schedule | None) -> RunnerDeployment:
    """The deployment of an output folder; scheduling again replaces it."""
    return RunnerDeployment.from_flow(
        night,
        name=f"{printable(request.out.name)}-{short_name(request.out)}",
        schedule=schedule,
        parameters={"request": request.model_dump(mode="json")},
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
        description=f"Segments new slides in {', '.join(escape_markdown(path) for path in request.inputs)}",
        entrypoint_type=EntrypointType.MODULE_PATH,
    )


@dataclass(frozen=True, slots=True)
class ScheduleService:
    """Services of a schedule.

    Attributes:
        say: Prints a message.
        require_server: Raises OvertileError when the server has ended; None for an external server.
        block: Name of the Prefect notification block that is called on failures.
    """

    say: Callable[[str], None]
    require_server: Callable[[], None] | None = None
    block: str | None = None


def serve(request: ScheduledRunRequest, schedule: Schedule | None, post: ScheduleService) -> int:
    """Serve a schedule until SIGINT or SIGTERM.

    Returns:
        The exit code.

    Raises:
        LockedError: Another process serves a schedule for this output folder.
    """
    with slide_lock(request.out / LOCK):
        return anyio.run(_serve, request, schedule, post)


async def _serve(request: ScheduledRunRequest, schedule: Schedule | None, post: ScheduleService) -> int:
    runner = Runner(name="overtile", query_seconds=POLL_S)
    async with get_client() as client:
        block = None if post.block is None else await find_block(client, post.block)
        deployment = await runner.aadd_deployment(deployment_of(request, schedule))
        for automation in [] if block is None else automations(deployment, block, request.out):
            await client.create_automation(automation)
        watch = _Watch(client, deployment, request, post, runner)
        await watch.begin()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch.look)
            if schedule is None:
                tasks.start_soon(watch.arrivals)
            tasks.start_soon(watch.stop)
            await runner.start()  # it must be stopped, not cancelled
            tasks.cancel_scope.cancel()
    if isinstance(watch.ended, OvertileError):
        raise watch.ended
    return watch.ended


@dataclass(slots=True)
class _Watch:
    """Watches the runs of a deployment while it is served."""

    client: PrefectClient
    deployment: UUID
    request: ScheduledRunRequest
    post: ScheduleService
    runner: Runner
    seen: set[UUID] = field(default_factory=set)
    ended: int | OvertileError = 0

    async def begin(self) -> None:
        """Make up for missed runs and print when the next run starts."""
        self.seen = {run.id for run in await skipped(self.client, self.deployment)}
        schedules = (await self.client.read_deployment(self.deployment)).schedules
        plan = schedules[0].schedule if schedules else None
        if why := await catch_up(self.client, self.deployment, self.request.out, plan):
            self.post.say(why)
        following = [self._run_name(moment) for moment in await firings(plan, datetime.now(UTC), 1)] if plan else []
        pages = self.client.api_url.copy_with(path="/")
        self.post.say(f"next: {', '.join(following) or 'when slides arrive'}; runs are shown at {pages}")

    def _run_name(self, moment: datetime | None) -> str:
        zone = ZoneInfo(self.request.timezone or "UTC")
        return "a run" if moment is None else f"the run of {moment.astimezone(zone):%Y-%m-%d %H:%M:%S %Z}"

    async def stop(self) -> None:
        """Wait for a signal, then stop the active run and the runner. The runner alone would exit with 0."""
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            self.ended = 128 + await anext(aiter(signals))
            await self.runner.astop()

    async def arrivals(self) -> None:
        """Start a run whenever slides have arrived; wait while a run is active or about to start."""
        arrivals = FolderWatch(self.request)
        while True:
            with suppress(PrefectException, HTTPError):  # the next look tries again
                new = await anyio.to_thread.run_sync(arrivals.look, abandon_on_cancel=True)
                if new and not await is_busy(self.client, self.deployment):
                    await self.client.create_flow_run_from_deployment(self.deployment)
                    arrivals.taken |= new
                    self.post.say(f"{len(new)} slides have arrived or changed: a run starts")
            await anyio.sleep(arrivals.pause_s)

    async def look(self) -> None:
        """Check every few seconds for a lost server and for crashed or skipped runs."""
        while True:
            await anyio.sleep(LOOK_S)
            try:
                if self.post.require_server is not None:
                    self.post.require_server()
            except OvertileError as error:
                self.ended = error
                await self.runner.astop()
                return
            with suppress(PrefectException, HTTPError):  # the next look tries again
                await self._look_once()

    async def _look_once(self) -> None:
        for run in await mark_dead(self.client, self.deployment, self.request.out):
            self.post.say(
                f"{self._run_name(run.expected_start_time)} crashed: its process is gone. The next run resumes"
            )
        for run in await skipped(self.client, self.deployment):
            if run.id not in self.seen:
                self.seen.add(run.id)
                why = f"{self._run_name(run.expected_start_time)} was skipped: the previous run is still active"
                self.post.say(why)
                note(self.request.out, "skipped", {"night": str(run.expected_start_time), "why": why})
