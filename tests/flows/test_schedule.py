"""Nights by schedule: they fire for real, never overlap, and whatever was killed is made up for by exactly one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.commands import CLASSES, Command, installed_command
from tests.faults.pictures import draw, red_and_blue, write

PATIENCE_S = 240
IN_PROCESS = """
import asyncio, sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from prefect import get_client
from prefect.states import Pending, Running, Scheduled
from flows.catch_up import catch_up, firings, mark_dead
from flows.night import LOCK, NightRequest
from flows.schedule import deployment_of, when
from pipeline.lock import slide_lock

out = Path(sys.argv[1])
request = NightRequest(inputs=(out,), out=out, model_sha256="0" * 64)
now = datetime.now(UTC)

async def states(client, deployment):
    from flows.catch_up import _runs
    from prefect.client.schemas.objects import StateType
    runs = await _runs(client, deployment, list(StateType))
    return sorted(run.state.name for run in runs if run.expected_start_time < now + timedelta(days=1))

async def main():
    async with get_client() as client:
"""


def in_process(command: Command, script: str, *words: str | Path) -> str:
    """What a script prints that uses the modules and the server."""
    body = "".join(f"        {line}\n" for line in script.strip().splitlines())
    code = f"{IN_PROCESS}{body}\nasyncio.run(main())\n"
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        env={**command.environment, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
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
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_starts(
    overtile_alone: Command, tmp_path: Path, words: list[str], phrase: str
) -> None:
    ran = overtile_alone.run("schedule", tmp_path, "--out", tmp_path / "out", *words)
    assert ran.code == 2, ran.said
    assert phrase in ran.only_error


# ---- on a server -----------------------------------------------------------------------------------------------------


def test_the_firings_are_those_of_the_clock_on_the_wall(overtile: Command, tmp_path: Path) -> None:
    """Across both changes of it in Berlin: once a night, also where 02:30 is not there or there twice."""
    script = """
for cron, start in (("0 1 * * *", (2026, 3, 27)), ("0 1 * * *", (2026, 10, 23)), ("30 2 * * *", (2026, 10, 23))):
    schedule = when(cron, None, "Europe/Berlin")
    deployment = await deployment_of(request, schedule).aapply()
    found = (await client.read_deployment(deployment)).schedules[0].schedule
    dates = await firings(found, datetime(*start, 12, tzinfo=UTC), 5)
    print([date.isoformat(" ", "minutes")[:16] for date in dates])
"""
    lines = in_process(overtile, script, tmp_path).splitlines()
    spring = [*(f"2026-03-{day} 00:00" for day in (28, 29)), *(f"2026-03-{day} 23:00" for day in (29, 30, 31))]
    autumn = [*(f"2026-10-{day} 23:00" for day in (23, 24)), *(f"2026-10-{day} 00:00" for day in (26, 27, 28))]
    assert lines[:2] == [str(spring), str(autumn)]
    assert [day[8:10] for day in json.loads(lines[2].replace("'", '"'))] == ["24", "25", "26", "27", "28"]


def test_fault_9_23_what_was_left_behind_is_made_up_for_once(overtile: Command, tmp_path: Path) -> None:
    """Nights that are late, one that died, none while one lives: what a schedule finds when it starts again."""
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
"""
    lines = in_process(overtile, script, tmp_path).splitlines()
    assert lines[0] == "None []"
    skips = "'Skipped', 'Skipped', 'Skipped'"
    assert lines[1] == f"0 nights died and 3 are late: one makes up for them ['Scheduled', {skips}]"
    assert lines[2] == f"[] ['Running', {skips}]", "it may not hold its lock yet"
    assert lines[3] == f"[] ['Running', {skips}]", "it lives"
    assert lines[4] == f"1 ['Crashed', {skips}]"
    assert lines[5] == "Pending", "what died holds no slot"


def test_the_request_is_a_checked_form_and_reads_back_as_it_was(overtile: Command, tmp_path: Path) -> None:
    script = """
from datetime import time
asked = NightRequest(inputs=(out,), out=out, model_sha256="0" * 64, until=time(7), timezone="Europe/Berlin")
deployment = await deployment_of(asked, when("0 1 * * *", None, "Europe/Berlin")).aapply()
found = await client.read_deployment(deployment)
print(NightRequest.model_validate(found.parameters["request"]) == asked)
print(found.global_concurrency_limit.limit, found.concurrency_options.collision_strategy.name)
print(sorted(found.parameter_openapi_schema["definitions"]["NightRequest"]["required"]))
try:
    wrong = {**found.parameters["request"], "config": {"tiles": {"blok": 512}}}
    await client.create_flow_run_from_deployment(deployment, parameters={"request": wrong})
except Exception as error:
    print(error.response.status_code)
"""
    lines = in_process(overtile, script, tmp_path).splitlines()
    assert lines == ["True", "1 CANCEL_NEW", "['inputs', 'model_sha256', 'out']", "409"]


def test_weights_that_were_not_scheduled_are_refused(overtile: Command, tmp_path: Path) -> None:
    """And what is refused, or found to be done by another, says so in the state of its run."""
    script = """
from flows.night import night, require_weights
from pipeline.errors import ModelError
from pipeline.model import load_model
try:
    require_weights(request)
except ModelError as error:
    print(error)
sha256 = load_model(request.config.model).sha256
require_weights(request.model_copy(update={"model_sha256": sha256}))
with slide_lock(out / LOCK):
    state = await asyncio.to_thread(night, request.model_copy(update={"model_sha256": sha256}), return_state=True)
print(state.name, state.message)
"""
    refused, skipped = in_process(overtile, script, tmp_path).splitlines()
    assert "expected the weights that were scheduled, sha256 000000000000, found " in refused
    assert "schedule again to use these" in refused
    assert skipped.startswith(f"Skipped the night before is still at work: {tmp_path} is being worked on by process ")


# ---- for real --------------------------------------------------------------------------------------------------------


@contextmanager
def serving(command: Command, log: Path, *words: str | Path) -> Iterator[psutil.Process]:
    """The installed command, serving a schedule; killed with all its children at the end, if it still lives."""
    line = [*installed_command(), "schedule", *map(str, words)]
    with log.open("ab") as said:
        started = subprocess.Popen(line, env=dict(command.environment), stdout=said, stderr=said, cwd=command.folder)
    process = psutil.Process(started.pid)
    try:
        yield process
    finally:
        family = [process, *children(process)]
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        started.wait(PATIENCE_S)


def children(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return process.children(recursive=True)
    return []


def awaited(what: Any, log: Path, patience_s: float = PATIENCE_S) -> Any:
    """What a question answers as soon as the answer is not empty."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        if answer := what():
            return answer
        time.sleep(0.05)
    pytest.fail(f"nothing came in {patience_s} s:\n{log.read_text()}")


def shards(out: Path) -> dict[str, int]:
    found = out.glob("*/slide.ome.zarr/probability/0/c/0/*/[0-9]*")
    return {str(path): path.stat().st_ino for path in found}


def lines_of(out: Path, event: str) -> list[dict[str, Any]]:
    text = (out / "history.jsonl").read_text() if (out / "history.jsonl").exists() else ""
    return [line for line in map(json.loads, text.splitlines()) if line["event"] == event]


def night_states(log: Path) -> list[str]:
    """The states of all nights, from the server that the schedule named last."""
    (*_, place) = [line.rpartition(" ")[2] for line in log.read_text().splitlines() if "runs are shown at" in line]
    request = urllib.request.Request(f"{place}api/flow_runs/filter", b"{}", {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return [run["state_name"] for run in json.load(answer)]


@pytest.mark.long
@pytest.mark.parametrize("victims", ["all", "runner"])
def test_fault_5_9_23_killed_in_the_middle_the_next_night_ends_it(tmp_path: Path, victims: str) -> None:
    """kill -9 of everything, or of the process that serves alone: its night goes on without it, and no other begins."""
    for name in ("first", "second"):
        write(tmp_path / "slides" / f"{name}.tif", draw((1500, 2500), red_and_blue((1500, 2500))))
    out, log = tmp_path / "out", tmp_path / "log"
    settings = ["cluster.kind=serial", "tiles.block=512", "tiles.tile=64", "input.settle_s=0"]
    settings += [f"model.weights={CLASSES}", "compute.precision=fp32"]
    words = [tmp_path / "slides", "--out", out, "--every", "15", *(w for one in settings for w in ("--set", one))]
    command = Command.under(tmp_path, None)
    with serving(command, log, *words) as process:
        awaited(lambda: len(shards(out)) >= 2, log)
        assert overtile_status(command, out)["totals"] == {"in progress": 2}
        awaited(lambda: lines_of(out, "skipped"), log)
        assert lines_of(out, "ended") == []
        before, family = shards(out), children(process)
        process.kill()
        for one in family if victims == "all" else []:
            with suppress(psutil.NoSuchProcess):
                one.kill()
    with serving(command, log, *words) as process:
        awaited(lambda: [line for line in lines_of(out, "ended") if line["exit_code"] == 0], log, 2 * PATIENCE_S)
        after = shards(out)
        assert {name: after[name] for name in before} == before, "no block was computed again"
        count = len(lines_of(out, "began"))
        awaited(lambda: len(lines_of(out, "ended")) > count, log)
        last = lines_of(out, "ended")[-1]
        assert (last["exit_code"], last["states"]) == (0, {"complete before": 2})
        assert shards(out) == after
        assert night_states(log).count("Crashed") == 1 if victims == "all" else True
        assert night_states(log).count("Running") <= 1
        family = children(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
        assert psutil.wait_procs(family, timeout=10)[1] == []
    assert "Traceback" not in log.read_text()


def overtile_status(command: Command, out: Path) -> dict[str, Any]:
    return dict(json.loads(command.run("status", out, "--json").stdout))
