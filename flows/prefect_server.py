"""A temporary Prefect server for a run where no server is configured.

Prefect would start a server itself, but only after all imports, and `kill -9` of the parent would leave it running.
This server starts in parallel with the imports, on a socket that is open before it, so that clients wait instead of
polling, and it ends when the pipe from its parent closes. The server of a schedule (``lasting``) also runs Prefect's
scheduler and serves its pages. Array jobs and home folders on a network file system use a temporary database
(``apart``), because SQLite's locks do not work between machines.

    python -m flows.prefect_server DESCRIPTOR [lasting] [apart]
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory, TemporaryFile, mkdtemp
from threading import Thread
from typing import IO

from flows.proxies import exclude_this_machine
from pipeline.errors import OvertileError, ServerError

API_URL, DATABASE_URL = "PREFECT_API_URL", "PREFECT_API_DATABASE_CONNECTION_URL"
HOST, PORT = "127.0.0.1", 4200
"""Address of a lasting server: Prefect's default port, if it is free."""

NETWORK = {"nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "afs", "9p", "fuse.sshfs"}
"""File systems on which SQLite's locks do not work."""

BOOT_S, STOP_S = 120, 5
"""Longest waits for the start, which may create Prefect's database on a slow disk, and for the end."""


@dataclass(slots=True)
class Server:
    """A process that serves Prefect's API on a port of 127.0.0.1."""

    port: int
    process: subprocess.Popen[bytes]
    log: IO[bytes]

    @classmethod
    def start(cls, *, lasting: bool = False, apart: bool = False) -> Server | None:
        """Start a server without waiting for it; None where the environment names a server.

        This machine is excluded from the proxies of the environment in either case.

        Args:
            lasting: Run Prefect's scheduler and pages too, on its default port if that is free.
            apart: Use a temporary database.
        """
        exclude_this_machine(os.environ)
        if os.environ.get(API_URL):
            return None
        if not lasting:
            _use_writable_home()
        with _listen(PORT if lasting else 0) as listening:
            descriptor, port = listening.fileno(), listening.getsockname()[1]
            apart = apart or (not lasting and is_on_network(_home(), Path("/proc/self/mountinfo").read_text()))
            words = [word for word, is_so in (("lasting", lasting), ("apart", apart)) if is_so]
            log = TemporaryFile()  # noqa: SIM115  it is read after the server has ended
            process = subprocess.Popen(  # noqa: S603  this very interpreter
                [sys.executable, "-P", "-m", "flows.prefect_server", str(descriptor), *words],
                env={**os.environ, **(_own_pages(port) if lasting else {})},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(descriptor,),
                start_new_session=True,  # Ctrl-C stops the parent only, which then reports the end of the run
            )
            server = cls(port, process, log)
        atexit.register(server.stop)  # runs after Prefect's exit handlers, which are registered later
        return server

    def stop(self) -> None:
        """Stop the server and wait for its end."""
        assert self.process.stdin is not None, "the server is started with a pipe"
        self.process.stdin.close()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def require_alive(self) -> None:
        """Check that the server is running.

        Raises:
            OvertileError: It has ended.
        """
        if (code := self.process.poll()) is not None:
            raise OvertileError(
                f"the Prefect server has ended with {code} ({self._last_line()}). Start the schedule again"
            )

    def wait(self) -> None:
        """Wait until the server responds.

        Raises:
            OvertileError: It does not respond.
        """
        connection = HTTPConnection(HOST, self.port, timeout=BOOT_S)
        try:
            connection.request("GET", "/api/health")
            connection.getresponse()
        except (OSError, HTTPException) as error:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_S)  # its log then tells why
            own = f"Unset {DATABASE_URL}, or start" if os.environ.get(DATABASE_URL) else "Start"
            raise OvertileError(
                f"the temporary Prefect server did not start ({self._last_line() or error}). {own} one with 'prefect "
                f"server start' and set it: export {API_URL}=http://127.0.0.1:4200/api"
            ) from error
        finally:
            connection.close()

    def _last_line(self) -> str:
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


def _listen(port: int) -> socket.socket:
    """Listen on this port of the loopback address, or on any free port if it is taken."""
    try:
        return socket.create_server((HOST, port))
    except OSError:
        return socket.create_server((HOST, 0))


def _own_pages(port: int) -> dict[str, str]:
    """Settings that let the server's own pages reach it and pages of other origins not."""
    here = f"http://{HOST}:{port}"
    return {
        "PREFECT_SERVER_API_HOST": HOST,
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_UI_API_URL": f"{here}/api",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": here,
    }


@contextmanager
def used(server: Server | None) -> Iterator[None]:
    """Use this server inside the context, unless Prefect's settings name another one or forbid it.

    Raises:
        ServerError: The server does not respond, or it is lost before the end of the run is reported.
    """
    if server is None or not _is_needed():
        with _answering():
            yield
        return
    from prefect.settings import PREFECT_API_URL, temporary_settings

    server.wait()
    with temporary_settings({PREFECT_API_URL: f"http://{HOST}:{server.port}/api"}), _answering():
        yield


@contextmanager
def _answering() -> Iterator[None]:
    from httpx import HTTPError  # raised by Prefect when its server cannot be reached
    from prefect._internal.urls import strip_auth_from_url
    from prefect.client.orchestration import get_client
    from prefect.events.clients import PrefectEventsClient
    from prefect.events.worker import EventsWorker, emit_events_to_cloud

    if not emit_events_to_cloud():  # one attempt per event; ten would take minutes
        EventsWorker.set_client_override(PrefectEventsClient, reconnection_attempts=1)
    with get_client(sync_client=True) as client:
        failure, url = client.api_healthcheck(), strip_auth_from_url(str(client.api_url))
    if failure is not None:
        raise ServerError(
            f"no Prefect server responds at {url} ({failure}). Start it, or unset {API_URL} to use a "
            "temporary server for each run. Nothing was started"
        )
    try:
        yield
    except HTTPError as error:
        raise ServerError(
            f"lost Prefect's server at {url} ({error}). Its record of this run is incomplete; results are not affected"
        ) from error


def _is_needed() -> bool:
    from prefect.client.base import ServerType, determine_server_type

    return determine_server_type() in (ServerType.EPHEMERAL, ServerType.UNCONFIGURED)


def serve(descriptor: int, *, lasting: bool) -> None:
    """Serve on an open socket until standard input ends."""
    Thread(target=_end_with_parent, daemon=True).start()
    if not _is_needed():
        return
    import uvicorn
    from prefect.server.api.server import create_app

    config = uvicorn.Config(
        create_app(ephemeral=not lasting, final=True), log_level="error", timeout_graceful_shutdown=1
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=descriptor)])


def _home() -> Path:
    """Prefect's default folder for its database."""
    return Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()


def _use_writable_home() -> None:
    """Use a temporary folder for Prefect's files where its own cannot be made, as for users without a home."""
    try:
        _home().mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = mkdtemp(prefix="overtile-prefect-")
        atexit.register(rmtree, folder, ignore_errors=True)
        os.environ["PREFECT_HOME"] = folder


def is_on_network(folder: Path, mounts: str) -> bool:
    """Whether a folder is on a network file system, by the lines of /proc/self/mountinfo."""
    path, kinds = folder.absolute(), dict[Path, str]()
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].replace("\\040", " "))
        if path.is_relative_to(point):
            kinds[point] = after.split()[0]
    return bool(kinds) and kinds[max(kinds, key=lambda point: len(point.parts))] in NETWORK


@contextmanager
def own_database() -> Iterator[None]:
    """Use a temporary database inside the context."""
    with TemporaryDirectory(prefix="overtile-prefect-") as folder:
        os.environ[DATABASE_URL] = f"sqlite+aiosqlite:///{folder}/prefect.db"
        yield


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # returns when the parent closes the pipe or dies; nothing is ever written
    os.kill(os.getpid(), signal.SIGTERM)  # while serving, uvicorn shuts down cleanly


if __name__ == "__main__":
    with own_database() if "apart" in sys.argv[2:] else nullcontext():
        serve(int(sys.argv[1]), lasting="lasting" in sys.argv[2:])
