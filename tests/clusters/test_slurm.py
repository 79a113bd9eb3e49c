"""SLURM: the job script has the configured directives, SLURM accepts it, and its jobs give the same bytes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config import ClusterSection
from pipeline.errors import ConfigError
from pipeline.execution.cluster import slurm_cluster
from tests.conftest import skip_or_fail
from tests.support.commands import Command, result_digests
from tests.support.faults.trees import Finished
from tests.support.machines import PAGE, make_certificates
from tests.support.slurm import lacking, running_slurm


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The job of a worker with a GPU."""
    folder = tmp_path_factory.mktemp("slurm")
    section = ClusterSection(
        kind="slurm",
        workers=2,
        address="tls://127.0.0.1:0",
        tls=str(make_certificates(folder)),
        sbatch=("--mem=8G", "--time=08:00:00", "--comment=night"),
    )
    with slurm_cluster(section, on_gpu=True) as cluster:
        return str(cluster.job_script()).replace(str(folder), "FOLDER")


def test_job_script_has_the_configured_directives_only(script: str) -> None:
    assert [line for line in script.splitlines() if line.startswith("#SBATCH")] == [
        "#SBATCH -J overtile",
        "#SBATCH -n 1",
        "#SBATCH --cpus-per-task=2",
        "#SBATCH --mem=8G",
        "#SBATCH --time=08:00:00",
        "#SBATCH --comment=night",
    ]


def test_worker_uses_this_interpreter_and_tls_and_a_local_dashboard(script: str) -> None:
    (line,) = (line for line in script.splitlines() if "distributed.cli.dask_worker" in line)
    assert line.startswith(f"{sys.executable} -m distributed.cli.dask_worker tls://127.0.0.1:")
    for words in (
        "--nthreads 2",
        "--resources GPU=2",
        "--dashboard-address 127.0.0.1:0",
        "--tls-ca-file FOLDER/tls/ca.pem --tls-cert FOLDER/tls/cert.pem --tls-key FOLDER/tls/key.pem",
    ):
        assert words in line
    assert line.rindex("--memory-limit 0") > line.index("--memory-limit"), "the last one counts"


def test_worker_gets_the_settings_of_local_workers(script: str) -> None:
    exports = "\n".join(line for line in script.splitlines() if line.startswith("export "))
    told = "import dask, distributed; from pipeline.execution.local_cluster import SETTINGS\n"
    told += "for k, v in SETTINGS.items():\n"
    told += "    assert dask.config.get(k) == v, (k, dask.config.get(k))\n"
    done = subprocess.run(
        ["bash", "-ec", f'{exports}\n"{sys.executable}" -c "$0"', told], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_missing_library_is_reported_with_the_install_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "dask_jobqueue.slurm", None)
    section = ClusterSection(kind="slurm", workers=2, address="tls://127.0.0.1:0", tls=str(tmp_path))
    with pytest.raises(ConfigError, match=r"pip install 'overtile\[slurm\]'"):
        slurm_cluster(section, on_gpu=False)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A SLURM installation, and the environment of commands that use it."""
    if why := lacking():
        skip_or_fail(why)
    with running_slurm(tmp_path_factory.mktemp("node")) as environment:
        yield environment


@pytest.mark.parametrize("which", ["worker", "array"])
def test_slurm_accepts_the_job_script(script: str, which: str, slurm: dict[str, str], tmp_path: Path) -> None:
    if which == "array":
        found = re.search(r"```bash\n(#!/bin/bash\n#SBATCH.*?)```", PAGE.read_text("utf-8"), re.S)
        assert found, "the page has a script"
        script = found[1]
    (tmp_path / "job.sh").write_text(script)
    words = ["sbatch", "--test-only", tmp_path / "job.sh"]
    asked = subprocess.run(words, env=os.environ | slurm, capture_output=True, text=True)
    assert asked.returncode == 0, asked.stderr
    assert " to start at " in asked.stderr


@pytest.mark.long
def test_slurm_jobs_give_the_same_bytes(
    slurm: dict[str, str], overtile: Command, finished: Finished, tmp_path: Path
) -> None:
    settings = ["cluster.kind=slurm", "cluster.workers=2", "cluster.address=tls://127.0.0.1:0"]
    settings += [f"cluster.tls={make_certificates(tmp_path)}", "cluster.sbatch=[--mem=2G, --time=00:10:00]"]
    ran = overtile.with_environment(**slurm).segment(finished.slide, tmp_path / "out", *settings)
    assert ran.code == 0, ran.transcript
    assert result_digests(tmp_path / "out" / "slide") == result_digests(finished.result)
    jobs = subprocess.run(["scontrol", "show", "jobs"], env=os.environ | slurm, capture_output=True, text=True).stdout
    assert jobs.count("JobName=overtile") == 2, jobs
    assert "JobState=PENDING" not in jobs
