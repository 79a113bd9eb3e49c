"""Real scheduled runs: they never overlap, killed runs are made up for once, and cancelled runs free their workers."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.support.commands import CONTEXT, REPOSITORY, Command, is_complete
from tests.support.faults.pictures import draw, red_and_blue, write
from tests.unit.flows.serving import (
    PATIENCE_S,
    api,
    ask,
    children,
    exit_codes,
    lines_of,
    receiver,
    run_states,
    serving,
    settings,
    shards,
    wait_for,
)
from unet_core.model_file.checkpoint import load, save

DOCS = REPOSITORY / ".github" / "docs" / "scheduling.md"


def python_block() -> str:
    """Create a notification block as documented."""
    (found,) = re.findall(r"^```python\n(.*?)^```", DOCS.read_text("utf-8"), re.M | re.S)
    return str(found)


def two_slides(folder: Path) -> Path:
    for name in ("first", "second"):
        write(folder / f"{name}.tif", draw((1500, 2500), red_and_blue((1500, 2500))))
    return folder


def kill(victims: list[psutil.Process]) -> None:
    for one in victims:
        with suppress(psutil.NoSuchProcess):
            one.kill()


def night_of(process: psutil.Process) -> psutil.Process:
    """The process of the run that a schedule has started."""
    (found,) = [one for one in process.children() if "flows.prefect_server" not in one.cmdline()]
    return found


@pytest.mark.long
@pytest.mark.parametrize("victims", ["all", "runner", "night"])
def test_fault_5_9_23_next_run_completes_a_killed_run(tmp_path: Path, victims: str) -> None:
    """SIGKILL of all processes, of the serving process only (its run continues), or of the run only."""
    slides, out, log = two_slides(tmp_path / "slides"), tmp_path / "out", tmp_path / "log"
    words = [slides, "--out", out, "--every", "15", *settings()]
    command = Command.under(tmp_path, None)
    with serving(command, log, *words) as process:
        wait_for(lambda: len(shards(out)) >= 2, log)
        assert overtile_status(command, out)["totals"] == {"in progress": 2}
        wait_for(lambda: lines_of(out, "skipped"), log)
        assert lines_of(out, "ended") == []
        before, family = shards(out), children(process)
        if victims == "night":
            kill([night_of(process)])
            wait_for(lambda: "Crashed" in run_states(log), log, 120)
            wait_for(lambda: 0 in exit_codes(out), log, 2 * PATIENCE_S)
            after = shards(out)
            assert {name: after[name] for name in before} == before, "no block was computed again"
            return
        process.kill()
        kill(family if victims == "all" else [])
    with serving(command, log, *words) as process:
        wait_for(lambda: 0 in exit_codes(out), log, 2 * PATIENCE_S)
        after = shards(out)
        assert {name: after[name] for name in before} == before, "no block was computed again"
        count = len(lines_of(out, "began"))
        wait_for(lambda: len(lines_of(out, "ended")) > count, log)
        last = lines_of(out, "ended")[-1]
        assert (last["exit_code"], last["states"]) == (0, {"complete before": 2})
        assert shards(out) == after
        assert run_states(log).count("Crashed") == 1 if victims == "all" else True
        assert run_states(log).count("Running") <= 1
        family = children(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
        assert psutil.wait_procs(family, timeout=10)[1] == []
    assert "Traceback" not in log.read_text()


def overtile_status(command: Command, out: Path) -> dict[str, object]:
    return dict(json.loads(command.run("status", out, "--json").stdout))


@pytest.mark.long
def test_cancelled_run_frees_its_workers_and_the_next_completes_it(tmp_path: Path) -> None:
    """Cancelled by ``prefect flow-run cancel`` with two workers; a run stopped with its schedule is resumed too."""
    slides, out, log = two_slides(tmp_path / "slides"), tmp_path / "out", tmp_path / "log"
    words = [slides, "--out", out, "--watch", *settings("cluster.kind=local", "cluster.workers=2")]
    command = Command.under(tmp_path, None)
    with serving(command, log, *words) as process:
        wait_for(lambda: len(shards(out)) >= 2, log)
        before = shards(out)
        workers = [one for one in children(process) if "flows.prefect_server" not in one.cmdline()]
        assert len(workers) >= 3, "the night and its workers"
        (run,) = [run for run in ask(log, "flow_runs/filter", {}) if run["state_name"] == "Running"]
        prefect = [sys.executable, "-m", "prefect", "flow-run", "cancel", run["id"]]
        asked = command.with_environment(PREFECT_API_URL=api(log)).environment
        done = subprocess.run(prefect, env=dict(asked), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        began = time.monotonic()
        assert psutil.wait_procs(workers, timeout=60)[1] == []
        wait_for(lambda: run_states(log) == ["Cancelled"], log, 60 - (time.monotonic() - began))
        assert exit_codes(out) == [128 + signal.SIGTERM]
        assert not is_complete(out / "first") or not is_complete(out / "second")
        ask(log, f"deployments/{run['deployment_id']}/create_flow_run", {})
        wait_for(lambda: len(lines_of(out, "began")) == 2, log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    with serving(command, log, *words):
        wait_for(lambda: 0 in exit_codes(out), log, 2 * PATIENCE_S)
        after = shards(out)
        assert {name: after[name] for name in before} == before, "no block was computed again"
    assert "stopped with the schedule" in log.read_text()


@pytest.mark.long
def test_new_slides_start_a_run_and_failures_are_notified(tmp_path: Path) -> None:
    """With --watch: one run per new slide, after it has settled; the summary has its picture."""
    slides, out, log = tmp_path / "slides", tmp_path / "out", tmp_path / "log"
    slides.mkdir()
    command = Command.under(tmp_path, None)
    with receiver() as hook:
        made = python_block().replace("https://chat.example.org/hook", hook.url)
        patient = command.with_environment(PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="120")
        subprocess.run([sys.executable, "-c", made], env=dict(patient.environment), check=True)
        words = [slides, "--out", out, "--watch", "--notify", "custom-webhook/lab", *settings("input.settle_s=5")]
        with serving(command, log, *words):
            wait_for(lambda: "when slides arrive" in log.read_text(), log)
            write(slides / "good.tif", draw((64, 64), red_and_blue((64, 64))))
            wait_for(lambda: exit_codes(out) == [0], log)
            (page,) = wait_for(lambda: [one for one in ask(log, "artifacts/filter", {}) if "night-" in one["key"]], log)
            assert "**1 of 1 slides complete**" in page["data"]
            assert "| good |" in page["data"]
            assert "](data:image/jpeg;base64," in page["data"]
            assert hook.received == []
            (slides / "broken.tif").write_bytes(b"II*\0")
            wait_for(lambda: hook.received, log)
            assert exit_codes(out) == [0, 3]
            assert len(lines_of(out, "began")) == log.read_text().count("have arrived or changed") == 2
    (told,) = hook.received
    assert "out: a scheduled run failed" in told["text"]
    assert "Failed" in told["text"]
    assert "1 of 2 slides are not complete as asked" in told["text"]
    assert f"overtile status {out} --failed" in told["text"]


@pytest.mark.long
def test_changed_model_of_the_cases_table_fails_runs_until_rescheduled(tmp_path: Path) -> None:
    out, log, own, table = (tmp_path / name for name in ("out", "log", "own.safetensors", "cases.csv"))
    slides = two_slides(tmp_path / "slides")
    shutil.copy(CONTEXT, own)
    table.write_text(f"slide,model\nfirst.tif,{own}\n")
    asked = settings(f"input.cases={table}", "input.mpp=0.25", "tiles.tile=256")
    words = [slides, "--out", out, "--every", "12", *asked]
    command = Command.under(tmp_path, None)
    with serving(command, log, *words):
        wait_for(lambda: 0 in exit_codes(out), log)
        save(own, load(CONTEXT), {"retrained": True})
        wait_for(lambda: "Failed" in run_states(log), log)
        failed = [run for run in ask(log, "flow_runs/filter", {}) if run["state_name"] == "Failed"]
        assert "expected the weights that were scheduled" in failed[0]["state"]["message"]
        assert set(exit_codes(out)) == {0}
    with serving(command, log, *words):
        count = len(lines_of(out, "ended"))
        wait_for(lambda: len(lines_of(out, "ended")) > count, log)
    assert lines_of(out, "ended")[count]["states"] == {"kept": 1}, "these are used, and change no result unasked"
