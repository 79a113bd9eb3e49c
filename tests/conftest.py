"""Shared fixtures."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkdtemp
from threading import Event
from typing import Any

import pytest

from tests.support.commands import NO_SERVER, Command, is_complete
from tests.support.faults.pictures import draw, red_and_blue, write
from tests.support.faults.preload import Preload
from tests.support.faults.trees import Finished
from tests.support.prefect_home import with_database

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def skip_or_fail(reason: str) -> None:
    """Skip the test, or fail it if STRICT=1, where every proof has to run."""
    if os.environ.get("STRICT") == "1":
        pytest.fail(f"STRICT=1: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real slides and annotated images next to the checkout; skips if it is missing."""
    if not SHARED_DATA.is_dir():
        skip_or_fail(f"no shared data at {SHARED_DATA}")
    return SHARED_DATA


@dataclass(frozen=True, slots=True)
class Server:
    """A Prefect server started by the tests, and its address."""

    process: subprocess.Popen[bytes]
    api: str
    log: Path

    @classmethod
    def start(cls, home: Path) -> Server:
        """Start a server whose database is in ``home``, and do not wait for it."""
        with_database(home)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        quiet = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
        line = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(
                [*line, "--no-ui"],
                env={**kept, **quiet, "PREFECT_HOME": str(home)},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return cls(process, f"http://127.0.0.1:{port}/api", home / "log")

    def kill(self) -> None:
        """Kill the server and its child processes."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def serving(home: Path) -> Iterator[Server]:
    """Run a real Prefect server whose database is in ``home`` while the context is open."""
    server = Server.start(home)
    try:
        _await_health(server.api, server.log, lambda: server.process.poll() is not None)
        yield server
    finally:
        server.kill()


SHARED_SERVER = pytest.StashKey[Server]()
"""In the process that starts the workers of pytest-xdist: the server for all of them."""


def pytest_sessionstart(session: pytest.Session) -> None:
    """Start one Prefect server for all workers; it boots while they collect the tests."""
    if session.config.getoption("numprocesses", None) and not hasattr(session.config, "workerinput"):
        home = mkdtemp(prefix="overtile-prefect-", dir=os.environ.get("PYTEST_DEBUG_TEMPROOT"))
        session.config.stash[SHARED_SERVER] = Server.start(Path(home))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Give a worker the address of the server."""
    if (server := node.config.stash.get(SHARED_SERVER, None)) is not None:
        node.workerinput["prefect_server"] = server.api, str(server.log)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the server."""
    if (server := config.stash.get(SHARED_SERVER, None)) is not None:
        server.kill()
        shutil.rmtree(server.log.parent)


@pytest.fixture(scope="session")
def served_prefect(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path]]:
    """Address of a real Prefect server, and the folder of its database."""
    if shared := getattr(request.config, "workerinput", {}).get("prefect_server"):
        api, log = shared
        _await_health(api, Path(log), lambda: False)
        yield api, Path(log).parent
    else:
        with serving(tmp_path_factory.mktemp("prefect-server")) as server:
            yield server.api, server.log.parent


@pytest.fixture(scope="session")
def prefect_server(served_prefect: tuple[str, Path]) -> str:
    """Address of a real Prefect server, so that commands need not start one each."""
    return served_prefect[0]


@pytest.fixture(scope="session")
def prefect_home(served_prefect: tuple[str, Path]) -> Path:
    """Folder with the database of that server."""
    return served_prefect[1]


def _await_health(api: str, log: Path, has_ended: Callable[[], bool]) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{api}/health", timeout=5).close()
        except OSError:
            if has_ended():
                break
            Event().wait(0.2)
        else:
            return
    pytest.fail(f"no Prefect server at {api}:\n{log.read_text()}")


@pytest.fixture(scope="session")
def overtile(prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """The installed command, connected to a Prefect server."""
    return Command.under(tmp_path_factory.mktemp("command"), prefect_server)


@pytest.fixture(scope="session")
def overtile_alone(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """The installed command without a reachable Prefect server, for checks made before a flow starts."""
    return Command.under(tmp_path_factory.mktemp("alone"), NO_SERVER)


@pytest.fixture(scope="session")
def finished(overtile: Command, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One finished run on a slide of three blocks in a row with objects of three sizes. Copy it; do not modify it."""
    folder = tmp_path_factory.mktemp("finished")
    discs = [replace(disc, radius=disc.radius - number % 3) for number, disc in enumerate(red_and_blue((300, 1100)))]
    slide = write(folder / "slides" / "slide.tif", draw((300, 1100), discs))
    ran = overtile.segment(slide, folder / "out")
    assert ran.code == 0, ran.transcript
    assert is_complete(folder / "out" / "slide")
    return Finished(slide, folder / "out" / "slide")


@pytest.fixture(scope="session")
def preload(tmp_path_factory: pytest.TempPathFactory) -> Preload:
    """A preloaded library that makes system calls fail; skips where it cannot be compiled."""
    found = Preload.compile(tmp_path_factory.mktemp("preload"))
    if found is None:
        skip_or_fail("no C compiler: faults below Python cannot be made")
    assert found is not None
    return found
