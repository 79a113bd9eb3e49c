"""Schedules: due times, missed runs and invalid options. Real runs are in test_scheduled_run.py."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from tests.support.commands import Command
from tests.unit.flows.serving import receiver, wait_for

TIMEOUT_S = 240
IN_PROCESS = """
import asyncio, json, sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from prefect import get_client
from prefect.states import Cancelled, Completed, Pending, Running, Scheduled
from flows.missed_runs import catch_up, firings, is_busy, mark_dead
from flows.scheduled_run import LOCK, ScheduledRunRequest
from flows.schedule import deployment_of, when
from pipeline.storage.lock import slide_lock

out = Path(sys.argv[1])
request = ScheduledRunRequest(inputs=(out,), out=out, model_sha256="0" * 64)
now = datetime.now(UTC)

async def states(client, deployment):
    from flows.missed_runs import _runs
    from prefect.client.schemas.objects import StateType
    runs = await _runs(client, deployment, list(StateType))
    return sorted(run.state.name for run in runs if run.expected_start_time < now + timedelta(days=1))

async def main():
    async with get_client() as client:
"""


def in_process(command: Command, script: str, *words: str | Path) -> str:
    """The output of a script that uses the modules and the server."""
    body = "".join(f"        {line}\n" for line in script.strip().splitlines())
    code = f"{IN_PROCESS}{body}\nasyncio.run(main())\n"
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        env={**command.environment, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "phrase"),
    [
        (["--cron", "0 1 * * *", "--timezone", "Europe/Berln"], "Europe/Berlin"),
        (["--cron", "0 1 * * *", "--until", "7 am"], "such as 07:00"),
        (["--cron", "0 1 * * *", "--set", "input.setle_s=1"], "settle_s"),
        (["--cron", "0 1 * * *", "--watch"], "one of"),
    ],
)
def test_invalid_options_are_rejected_before_anything_starts(
    overtile_alone: Command, tmp_path: Path, words: list[str], phrase: str
) -> None:
    ran = overtile_alone.run("schedule", tmp_path, "--out", tmp_path / "out", *words)
    assert ran.code == 2, ran.transcript
    assert phrase in ran.only_error


# ---- on a server -----------------------------------------------------------------------------------------------------


def shown(cron: str, start: datetime, count: int) -> list[str]:
    """Moments of a daily local time in Berlin, found minute by minute; the first of a time that occurs twice."""
    minute, hour = map(int, cron.split()[:2])
    zone, found = ZoneInfo("Europe/Berlin"), dict[date, datetime]()
    moments = (start + timedelta(minutes=number) for number in range(10 * 24 * 60))
    for moment in moments:
        wall = moment.astimezone(zone)
        if (wall.hour, wall.minute) == (hour, minute):
            found.setdefault(wall.date(), moment)
    return [moment.isoformat(" ", "minutes") for moment in sorted(found.values())[:count]]


def test_cron_follows_local_time_across_clock_changes(overtile: Command, tmp_path: Path) -> None:
    """Five runs across both clock changes in Berlin: one a day, also where 02:30 does not exist or occurs twice."""
    asked = [
        (cron, start) for cron in ("0 1 * * *", "30 2 * * *") for start in ("2026-03-27 12:00", "2026-10-23 12:00")
    ]
    script = f"""
for cron, start in {asked}:
    schedule = when(cron, None, "Europe/Berlin")
    deployment = await deployment_of(request, schedule).aapply()
    found = (await client.read_deployment(deployment)).schedules[0].schedule
    dates = await firings(found, datetime.fromisoformat(start + "+00:00"), 5)
    print(json.dumps([date.isoformat(" ", "minutes") for date in dates]))
"""
    lines = [json.loads(line) for line in in_process(overtile, script, tmp_path).splitlines()]
    expected = [shown(cron, datetime.fromisoformat(f"{start}+00:00"), 5) for cron, start in asked]
    without = "2026-03-29 00:30+00:00"  # 02:30 does not exist on this day: Prefect fires once, an hour earlier
    expected[2] = sorted([*expected[2][:-1], without])
    assert lines == expected


def test_fault_9_23_missed_runs_are_made_up_for_once(overtile: Command, tmp_path: Path) -> None:
    """Late runs, a crashed run, and no new run while one is alive: the start of a schedule after a failure."""
    script = """
schedule = when("0 0 1 1 *", None, "UTC")
deployment = await deployment_of(request, schedule).aapply()
await client.pause_deployment(deployment)
plan = (await client.read_deployment(deployment)).schedules[0].schedule
print(await catch_up(client, deployment, out, plan), await states(client, deployment))
for days in (1, 2, 3):
    await client.create_flow_run_from_deployment(deployment, state=Scheduled(scheduled_time=now - timedelta(days=days)))
print(await catch_up(client, deployment, out, plan), await states(client, deployment))
found = [run for run in await client.read_flow_runs() if run.deployment_id == deployment]
(late,) = [run for run in found if run.state.is_scheduled() and run.expected_start_time < now + timedelta(days=1)]
await client.set_flow_run_state(late.id, Pending())
await client.set_flow_run_state(late.id, Running())
print(await mark_dead(client, deployment, out), await states(client, deployment))
with slide_lock(out / LOCK):
    print(await mark_dead(client, deployment, out, timedelta(0)), await states(client, deployment))
print(len(await mark_dead(client, deployment, out, timedelta(0))), await states(client, deployment))
new = await client.create_flow_run_from_deployment(deployment)
answer = await client.set_flow_run_state(new.id, Pending())
print(answer.state.name)
await client.set_flow_run_state(new.id, Cancelled(message="by somebody"))
print(await catch_up(client, deployment, out, plan))
await client.set_flow_run_state(new.id, Cancelled(message="Runner is shutting down."), force=True)
print(await catch_up(client, deployment, out, plan), await is_busy(client, deployment))
"""
    lines = in_process(overtile, script, tmp_path).splitlines()
    assert lines[0] == "None []"
    skips = "'Skipped', 'Skipped', 'Skipped'"
    assert lines[1] == f"0 runs crashed and 3 are late: one run makes up for them ['Scheduled', {skips}]"
    assert lines[2] == f"[] ['Running', {skips}]", "it may not hold its lock yet"
    assert lines[3] == f"[] ['Running', {skips}]", "it lives"
    assert lines[4] == f"1 ['Crashed', {skips}]"
    assert lines[5] == "Pending", "what died holds no slot"
    assert lines[6] == "None", "it was meant to end"
    assert lines[7] == "the last run was stopped with the schedule: a new run resumes it True"


def test_request_of_a_deployment_is_validated_and_round_trips(overtile: Command, tmp_path: Path) -> None:
    script = """
from datetime import time
asked = ScheduledRunRequest(inputs=(out,), out=out, model_sha256="0" * 64, until=time(7), timezone="Europe/Berlin")
deployment = await deployment_of(asked, when("0 1 * * *", None, "Europe/Berlin")).aapply()
found = await client.read_deployment(deployment)
print(ScheduledRunRequest.model_validate(found.parameters["request"]) == asked)
print(found.global_concurrency_limit.limit, found.concurrency_options.collision_strategy.name)
print(sorted(found.parameter_openapi_schema["definitions"]["ScheduledRunRequest"]["required"]))
try:
    wrong = {**found.parameters["request"], "config": {"tiles": {"blok": 512}}}
    await client.create_flow_run_from_deployment(deployment, parameters={"request": wrong})
except Exception as error:
    print(error.response.status_code)
from flows.notifications import find_block
try:
    await find_block(client, "custom-webhook/absent")
except Exception as error:
    print(error)
"""
    *lines, unknown = in_process(overtile, script, tmp_path).splitlines()
    assert unknown.startswith("--notify custom-webhook/absent: expected a notification block of Prefect, such as")
    assert lines == ["True", "1 CANCEL_NEW", "['inputs', 'model_sha256', 'out']", "409"]


def test_changed_weights_are_rejected(overtile: Command, tmp_path: Path) -> None:
    """A rejected or skipped run states the reason in its Prefect state."""
    script = """
from flows.scheduled_run import night
from pipeline.errors import ModelError
from pipeline.inference.ensemble import load_model
try:
    await asyncio.to_thread(night, request)
except ModelError as error:
    print(error)
sha256 = load_model(request.config.model).sha256
with slide_lock(out / LOCK):
    state = await asyncio.to_thread(night, request.model_copy(update={"model_sha256": sha256}), return_state=True)
print(state.name, state.message)
"""
    refused, skipped = in_process(overtile, script, tmp_path).splitlines()
    assert "expected the weights that were scheduled, sha256 000000000000, found " in refused
    assert "schedule again to use these" in refused
    assert skipped.startswith(f"Skipped the previous run is still active: {tmp_path} is being worked on by process ")


@pytest.mark.long
def test_run_that_did_not_start_is_notified(overtile: Command, tmp_path: Path) -> None:
    """No process serves the schedule: the server notifies. A run that started late causes no notification."""
    script = """
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from flows.notifications import automations, find_block
made = CustomWebhookNotificationBlock(name="lab", url=sys.argv[2], json_data={"text": "{{subject}} {{body}}"})
await made.save("lab", overwrite=True)
deployment = await deployment_of(request, None).aapply()
for one in automations(deployment, await find_block(client, "custom-webhook/lab"), out, timedelta(seconds=10)):
    await client.create_automation(one)
async def due():
    found = Scheduled(scheduled_time=now - timedelta(minutes=1))
    run = await client.create_flow_run_from_deployment(deployment, state=found)
    print(run.id, run.name)
    while (await client.read_flow_run(run.id)).state.name != "Late":
        await asyncio.sleep(1)
    return run
if len(sys.argv) > 3:
    run = await due()
    for state in (Pending(), Running(), Completed()):  # its slot is free again
        await client.set_flow_run_state(run.id, state)
await due()
"""
    with receiver() as hook:
        (began, first) = in_process(overtile, script, tmp_path, hook.url, "one that begins").splitlines()
        wait_for(lambda: hook.received, tmp_path, 120)
        (second,) = in_process(overtile, script, tmp_path, hook.url).splitlines()
        wait_for(lambda: len(hook.received) >= 2, tmp_path, 120)
    told = [one["text"] for one in hook.received]
    assert len(told) == 2
    for text, run in zip(told, (first, second), strict=True):
        assert text.startswith(f"overtile: {tmp_path.name}: a scheduled run did not start {run.split()[1]}: Late.")
    assert began.split()[1] not in "".join(told)
