"""Remote workers under TLS give the bytes of one process, also when workers or the scheduler are killed."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
import yaml

from pipeline.config import RunConfig
from tests.conftest import skip_or_fail
from tests.support.commands import CLASSES, Command, history, installed_command, result_digests
from tests.support.faults.pictures import draw, red_and_blue, write
from tests.support.faults.trees import Finished
from tests.support.machines import PAGE, inside, machines, network
from tests.support.make_damaged_slides import damaged_slides

NOTES = Path(__file__).parents[1] / "support" / "noting_worker.py"
SOUND = ("a", "b", "c", "d", "e", "f")
DAMAGED = ("empty", "html", "six_bytes", "zipped", "pdf", "gzipped")
SHAPE = (1100, 1600)
"""Of slides with 12 blocks."""


def test_workers_under_tls_give_the_bytes_of_one_process(overtile: Command, finished: Finished, tmp_path: Path) -> None:
    """Relative paths of the command; the workers were started in another folder."""
    with machines(tmp_path, "one") as there:
        slide, out = (Path(os.path.relpath(path, overtile.folder)) for path in (finished.slide, tmp_path / "out"))
        ran = overtile.segment(slide, out, *there.settings)
        assert ran.code == 0, ran.transcript
        listening = [
            connection.laddr.ip
            for process in there.processes.values()
            for one in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True))
            for connection in one.net_connections(kind="inet")
            if connection.status == psutil.CONN_LISTEN
        ]
    assert result_digests(tmp_path / "out" / "slide") == result_digests(finished.result)
    assert set(listening) == {"127.0.0.1"}


def test_numbers_of_the_documentation_are_computed(capsys: pytest.CaptureFixture[str]) -> None:
    code, said = re.findall(r"```(?:python|text)\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    exec(code, {})
    assert capsys.readouterr().out == said


def test_configurations_of_the_documentation_are_valid() -> None:
    for text in re.findall(r"```yaml\n(.*?)```", PAGE.read_text("utf-8"), re.S):
        content = yaml.safe_load(text)
        if "cluster" in content:
            assert RunConfig.model_validate(content).cluster.is_elsewhere
        else:
            assert content["kind"] == "DaskCluster"


class Running:
    """A command in the background."""

    def __init__(self, overtile: Command, source: Path, out: Path, settings: list[str], *options: str) -> None:
        settings = ["tiles.block=512", "compute.precision=fp32", *settings]
        words = [
            source,
            "--out",
            out,
            "--model",
            CLASSES,
            *(word for one in settings for word in ("--set", one)),
            *options,
        ]
        self.out = out
        self.process = subprocess.Popen(
            [*installed_command(), "segment", *map(str, words)],
            env=dict(overtile.environment),
            cwd=overtile.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def kill(self) -> None:
        """Send SIGKILL to the process and its descendants."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def shards(self) -> int:
        """Number of predicted blocks."""
        return len(list(self.out.glob("*/slide.ome.zarr/probability/0/c/0/*/[0-9]*")))

    def until(self, is_so: Callable[[], bool]) -> None:
        """Wait for a condition; the command must not end before."""
        while not is_so():
            try:
                said, _ = self.process.communicate(timeout=0.05)
            except subprocess.TimeoutExpired:
                continue
            pytest.fail(f"it ended with {self.process.returncode}:\n{said}")

    def end(self) -> tuple[int, str]:
        """The exit code and output."""
        said, _ = self.process.communicate(timeout=600)
        return self.process.returncode, said


def sound_slides(folder: Path, *names: str) -> Path:
    for name in names:
        write(folder / f"{name}.tif", draw(SHAPE, red_and_blue(SHAPE, radius=15 + ord(name) % 7)))
    return folder


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_fault_6_19_twelve_slides_half_of_them_damaged_while_workers_die_leave_and_come(
    overtile: Command, tmp_path: Path
) -> None:
    slides, made = sound_slides(tmp_path / "slides", *SOUND), damaged_slides(tmp_path / "made")
    for name in DAMAGED:
        shutil.copy(made[name][0], slides / f"{name}.tif")
    alone = overtile.segment([slides / f"{name}.tif" for name in SOUND], tmp_path / "alone")
    assert alone.code == 0, alone.transcript
    out = tmp_path / "out"
    with machines(tmp_path, "one", "two") as there:
        running = Running(overtile, slides, out, there.settings)
        running.until(lambda: running.shards() >= 5)
        there.kill("one")
        there.start_worker("three")
        running.until(lambda: running.shards() >= 20)
        there.dismiss("two")
        code, said = running.end()
        assert code == 3, said
        for name in SOUND:
            assert result_digests(out / name) == result_digests(tmp_path / "alone" / name), name
        content = json.loads((out / "batch.json").read_text())["run"]["outcomes"]
        assert {one["key"]: one["state"] for one in content} == dict.fromkeys(SOUND, "complete") | dict.fromkeys(
            DAMAGED, "failed"
        )
        with (out / "failures.csv").open() as file:
            causes = {row["slide"]: row["cause"] for row in csv.DictReader(file)}
        assert all(made[name][1] in causes[name] for name in DAMAGED)
        with (out / "results.csv").open() as file:
            assert sum(row["state"] == "complete" for row in csv.DictReader(file)) >= len(SOUND)
        assert "**6 of 12 slides complete**, 6 failed" in (out / "summary.md").read_text()
        assert all(f"error: {name}: failed" in said for name in DAMAGED)

        again = overtile.segment(slides, out, *there.settings)
        assert again.code == 3, again.transcript
        assert all(again.computed(name) == {} for name in (*SOUND, *DAMAGED))
        assert set(again.states().values()) == {"complete before", "failed"}


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_fault_7_a_scheduler_that_is_killed_costs_blocks_in_flight_and_counts_against_no_slide(
    overtile: Command, tmp_path: Path
) -> None:
    slides, out = sound_slides(tmp_path / "slides", "a", "b", "c"), tmp_path / "out"
    alone = overtile.segment(slides, tmp_path / "alone")
    assert alone.code == 0, alone.transcript
    (tmp_path / "first").mkdir()
    with machines(tmp_path / "first", "one") as there:
        running = Running(overtile, slides, out, there.settings)
        running.until(lambda: running.shards() >= 3)
        there.kill("scheduler")
        code, said = running.end()
    assert code == 3, said
    assert "Traceback" not in said
    assert "the dask scheduler went away" in said
    ended = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()][-1]
    assert {entry["state"] for entry in ended["not_complete"].values()} == {"resumable"}
    assert {entry["attempt"] for entry in ended["not_complete"].values()} == {""}
    (tmp_path / "second").mkdir()
    with machines(tmp_path / "second", "one") as there:
        again = overtile.segment(slides, out, *there.settings)
    assert again.code == 0, again.transcript
    for name in ("a", "b", "c"):
        assert result_digests(out / name) == result_digests(tmp_path / "alone" / name), name
        assert sum(line["computed"] for line in history(out / name) if line["stage"] == "predict") <= 12


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_only_the_network_runs_on_gpu_workers(overtile: Command, tmp_path: Path) -> None:
    """Four workers, each started for one of the devices 0, 1, 2 and 3, and one without."""
    slides = sound_slides(tmp_path / "slides", "a", "b")
    with machines(tmp_path, environment={"DASK_DISTRIBUTED__SCHEDULER__WORK_STEALING": "False"}) as there:
        noted = tmp_path / "noted"
        noted.mkdir()
        for number in "0123":
            seen = {"CUDA_VISIBLE_DEVICES": number, "OVERTILE_NOTES": str(noted)}
            there.start_worker(f"gpu-{number}", "--resources", "GPU=2", "--preload", str(NOTES), environment=seen)
        seen = {"CUDA_VISIBLE_DEVICES": "", "OVERTILE_NOTES": str(noted)}
        there.start_worker("plain", "--preload", str(NOTES), environment=seen)
        ran = overtile.segment(slides, tmp_path / "out", *there.settings)
        assert ran.code == 0, ran.transcript
    ran_on = {path.name: set(path.read_text().split()) for path in noted.iterdir()}
    assert set(ran_on) == {"gpu-0", "gpu-1", "gpu-2", "gpu-3", "plain"}
    assert {name: found for name, found in ran_on.items() if name != "plain"} == {
        f"gpu-{number}": {f"predict_block@{number}"} for number in "0123"
    }
    assert "predict_block@" not in ran_on["plain"]
    assert {"ingest_block@", "label_block@"} <= ran_on["plain"]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_unusable_scheduler_is_rejected_before_anything_starts(
    overtile_alone: Command, finished: Finished, tmp_path: Path
) -> None:
    with machines(tmp_path, "one") as there:
        plain = there.address.replace("tls://", "tcp://")
        refused = overtile_alone.segment(
            finished.slide, tmp_path / "out", "cluster.kind=address", f"cluster.address={plain}"
        )
        assert refused.code == 2, refused.transcript
        assert "no dask scheduler answers there" in refused.only_error
        (there.tls / "key.pem").chmod(0o644)
        refused = overtile_alone.segment(finished.slide, tmp_path / "out", *there.settings)
        assert refused.code == 2, refused.transcript
        assert "chmod 600" in refused.only_error


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_workers_in_networks_of_their_own_give_the_bytes_of_one_process(
    overtile: Command, finished: Finished, tmp_path: Path
) -> None:
    """Each worker has its own network namespace and reaches this machine through a virtual link only."""
    with ExitStack() as stack:
        try:
            addresses = stack.enter_context(network("a", "b"))
        except (OSError, subprocess.CalledProcessError) as error:
            skip_or_fail(f"no network can be made here: {error}")
        there = stack.enter_context(machines(tmp_path, host=addresses[""]))
        for name in ("a", "b"):
            there.start_worker(name, "--host", addresses[name], within=inside(name))
        ran = overtile.segment(finished.slide, tmp_path / "out", *there.settings)
        assert ran.code == 0, ran.transcript
        logs = [(tmp_path / f"{name}.log").read_text() for name in ("a", "b")]
    assert all(f"tls://{addresses[name]}:" in log for name, log in zip(("a", "b"), logs, strict=True))
    assert result_digests(tmp_path / "out" / "slide") == result_digests(finished.result)
