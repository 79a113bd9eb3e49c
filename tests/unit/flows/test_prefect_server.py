"""The temporary Prefect server: it starts when needed, ends with its parent, and never replaces a configured server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from flows.prefect_server import is_on_network
from tests.support.commands import NO_SERVER, Command
from tests.support.faults.pictures import draw, red_and_blue, write

PATIENCE_S = 60
BEGIN = "from flows.prefect_server import Server, used; server = Server.start();"
SAY_AND_WAIT = "server.wait(); print(server.process.pid, flush=True); input()"
NAMED = "from prefect.settings import PREFECT_API_URL as url\nwith used(server): print(url.value())"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Prefect settings and database below the test's folder, without a configured server."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    root = str(Path(__file__).parents[3])
    return {**kept, "PREFECT_HOME": str(tmp_path / "prefect"), "PYTHONPATH": root, "DO_NOT_TRACK": "1"}


@pytest.fixture
def parent(environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has started a server and waits for a line of input."""
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN + SAY_AND_WAIT], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def server(parent: subprocess.Popen[bytes]) -> Iterator[psutil.Process]:
    """The server of the parent, responding; it is killed after the test in any case."""
    assert parent.stdout is not None
    process = psutil.Process(int(parent.stdout.readline()))
    yield process
    with suppress(psutil.NoSuchProcess):
        process.kill()


@pytest.mark.long
def test_server_ends_with_its_parent(parent: subprocess.Popen[bytes], server: psutil.Process) -> None:
    listening = [c.laddr.ip for c in server.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert listening == ["127.0.0.1"]
    parent.communicate(b"\n", timeout=PATIENCE_S)
    assert parent.returncode == 0
    assert not server.is_running()


def test_server_ends_after_sigkill_of_its_parent(parent: subprocess.Popen[bytes], server: psutil.Process) -> None:
    """Ctrl-C does not reach the server, because the run still has to report its end."""
    assert os.getpgid(server.pid) != os.getpgid(parent.pid)
    parent.kill()
    assert psutil.wait_procs([server], timeout=20)[1] == []


def asked(environment: dict[str, str]) -> str:
    """The API address inside the context ``used``."""
    done = subprocess.run([sys.executable, "-c", BEGIN + NAMED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_server_of_the_environment_is_used(environment: dict[str, str], prefect_server: str) -> None:
    assert asked({**environment, "PREFECT_API_URL": prefect_server}) == prefect_server


def test_server_of_a_profile_is_used(environment: dict[str, str], prefect_server: str) -> None:
    home = Path(environment["PREFECT_HOME"])
    home.mkdir()
    (home / "profiles.toml").write_text(f'active = "lab"\n[profiles.lab]\nPREFECT_API_URL = "{prefect_server}"\n')
    assert asked(environment) == prefect_server


@pytest.mark.long
def test_server_that_cannot_start_is_reported_with_a_remedy(tmp_path: Path) -> None:
    slide = write(tmp_path / "slide.tif", draw((64, 64), red_and_blue((64, 64))))
    nowhere = f"sqlite+aiosqlite:///{tmp_path}/no/such/folder/prefect.db"
    overtile = Command.under(tmp_path, None).with_environment(PREFECT_API_DATABASE_CONNECTION_URL=nowhere)
    ran = overtile.segment(slide, tmp_path / "out")
    assert ran.code == 4, ran.transcript
    assert "the temporary Prefect server did not start (" in ran.only_error
    assert "prefect server start" in ran.only_error


def test_unreachable_database_is_reported_with_its_variable(tmp_path: Path) -> None:
    slide = write(tmp_path / "slide.tif", draw((64, 64), red_and_blue((64, 64))))
    overtile = Command.under(tmp_path, None).with_environment(
        PREFECT_API_DATABASE_CONNECTION_URL="postgresql+asyncpg://u:secret@127.0.0.1:9/x"
    )
    ran = overtile.segment(slide, tmp_path / "out")
    assert ran.code == 4, ran.transcript
    assert "the temporary Prefect server did not start (ERROR" in ran.only_error
    assert "Unset PREFECT_API_DATABASE_CONNECTION_URL" in ran.only_error
    assert "secret" not in ran.transcript


def test_runs_without_a_home_and_with_prefects_own_server_switched_off(tmp_path: Path) -> None:
    switched = {"HOME": "/dev/null/ann", "PREFECT_SERVER_EPHEMERAL_ENABLED": "false"}
    slide = write(tmp_path / "slide.tif", draw((64, 64), red_and_blue((64, 64))))
    kept = {key: text for key, text in os.environ.items() if not key.startswith("PREFECT_")}
    overtile = Command.under(tmp_path, None)
    overtile = replace(overtile, environment=kept | {"TMPDIR": str(tmp_path)} | switched)
    ran = overtile.segment(slide, tmp_path / "out")
    assert ran.code == 0, ran.transcript
    assert ran.stderr == ""
    assert not list(tmp_path.glob("overtile-prefect-*")), "a temporary folder of Prefect is removed"


def test_malformed_configuration_of_dask_is_named(tmp_path: Path) -> None:
    slide = write(tmp_path / "slide.tif", draw((64, 64), red_and_blue((64, 64))))
    (tmp_path / "dask").mkdir()
    (tmp_path / "dask" / "x.yaml").write_text("distributed: [oops")
    overtile = Command.under(tmp_path, NO_SERVER).with_environment(DASK_CONFIG=str(tmp_path / "dask"))
    ran = overtile.run("segment", slide, "--out", tmp_path / "out", "--mpp", "0.5")
    assert ran.code == 2, ran.transcript
    assert "x.yaml' is malformed" in ran.only_error
    assert "unset DASK_CONFIG" in ran.only_error


def test_invalid_batch_leaves_no_server(tmp_path: Path) -> None:
    """The server starts before the slides are planned."""
    overtile = Command.under(tmp_path, None).with_environment(OVERTILE_MARK=str(tmp_path))
    ran = overtile.segment(tmp_path / "missing", tmp_path / "out")
    assert ran.code == 2, ran.transcript
    assert [one for one in psutil.process_iter() if _marked(one, str(tmp_path))] == []


def _marked(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get("OVERTILE_MARK") == mark and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


MOUNTS = """\
25 30 0:23 / /proc rw,nosuid shared:13 - proc proc rw
30 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 30 0:50 / /home rw,relatime shared:2 - nfs4 server:/home rw,vers=4.2
41 40 254:1 / /home/local\\040disk rw - xfs /dev/vdb rw
42 30 0:51 / /data rw - cifs //server/data rw
"""


@pytest.mark.parametrize(
    ("folder", "shared"),
    [("/root/.prefect", False), ("/home/ann/.prefect", True), ("/home/local disk/x", False), ("/data", True)],
)
def test_network_file_systems_are_recognised(folder: str, shared: bool) -> None:
    assert is_on_network(Path(folder), MOUNTS) == shared
