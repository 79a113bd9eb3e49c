"""A Prefect server of the run's own, where none is configured: it boots beside the imports and ends with its parent.

The one decision made here: Prefect would start one itself, but only after everything is imported, and ``kill -9`` of
the parent would leave it behind. This one boots on another core from the first moment, is asked on a socket that was
open before it, so nobody polls, and ends when the pipe from its parent does. A schedule's ``lasting`` server has the
services that make runs due, and the pages to look at. Where many run at once, as shares of a batch do, or where the
home is one that many machines mount, it is ``apart``: its database lies in a folder for temporary files.

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
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from threading import Thread
from typing import IO

from pipeline.errors import OvertileError, ServerError

API_URL = "PREFECT_API_URL"
HOST, PORT = "127.0.0.1", 4200
"""Where a lasting server is found: Prefect's own port, when it is free."""

NETWORK = {"nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "afs", "9p", "fuse.sshfs"}
"""File systems on which SQLite's locks do not hold."""

BOOT_S, STOP_S = 120, 5
"""Longest waits: for a first start, which writes Prefect's database, on a slow disk; and for the end."""


@dataclass(slots=True)
class Server:
    """A process that serves Prefect's API on a port of 127.0.0.1."""

    port: int
    process: subprocess.Popen[bytes]
    said: IO[bytes]

    @classmethod
    def start(cls, *, lasting: bool = False, apart: bool = False) -> Server | None:
        """Start one and return at once; none where the environment names one. ``apart``: with a database of its own."""
        if os.environ.get(API_URL):
            return None
        with _listen(PORT if lasting else 0) as listening:
            descriptor, port = listening.fileno(), listening.getsockname()[1]
            apart = apart or (not lasting and is_on_network(_home(), Path("/proc/self/mountinfo").read_text()))
            words = [word for word, is_so in (("lasting", lasting), ("apart", apart)) if is_so]
            said = TemporaryFile()  # noqa: SIM115  it is read when the server is no more
            process = subprocess.Popen(  # noqa: S603  this very interpreter
                [sys.executable, "-P", "-m", "flows.prefect_server", str(descriptor), *words],
                env={**os.environ, **(_own_pages(port) if lasting else {})},
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=said,
                pass_fds=(descriptor,),
                start_new_session=True,  # Ctrl-C is for the parent, which still has to tell it how the run ended
            )
            server = cls(port, process, said)
        atexit.register(server.stop)  # not before Prefect's own last words, which are registered later
        return server

    def stop(self) -> None:
        """End it, and wait until it has ended."""
        assert self.process.stdin is not None, "it was started with a pipe"
        self.process.stdin.close()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def require_alive(self) -> None:
        """Raise OvertileError when it has ended by itself."""
        if (code := self.process.poll()) is not None:
            raise OvertileError(
                f"the Prefect server has ended with {code} ({self._last_words()}). Start the schedule again"
            )

    def wait(self) -> None:
        """Wait until it answers. Raises OvertileError when it does not."""
        connection = HTTPConnection(HOST, self.port, timeout=BOOT_S)
        try:
            connection.request("GET", "/api/health")
            connection.getresponse()
        except (OSError, HTTPException) as error:
            raise OvertileError(
                f"the temporary Prefect server did not start ({self._last_words() or error}). Start one with 'prefect "
                f"server start' and name it: export {API_URL}=http://127.0.0.1:4200/api"
            ) from error
        finally:
            connection.close()

    def _last_words(self) -> str:
        self.said.seek(0)
        lines = self.said.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


def _listen(port: int) -> socket.socket:
    """On that port of this machine alone, or on any when it is taken."""
    try:
        return socket.create_server((HOST, port))
    except OSError:
        return socket.create_server((HOST, 0))


def _own_pages(port: int) -> dict[str, str]:
    """Settings by which the server's pages find it, and other pages do not."""
    here = f"http://{HOST}:{port}"
    return {
        "PREFECT_SERVER_API_HOST": HOST,
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_UI_API_URL": f"{here}/api",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": here,
    }


@contextmanager
def used(server: Server | None) -> Iterator[None]:
    """What is run inside talks to this server, unless Prefect's settings name another one or forbid it.

    Raises ServerError where that one does not answer, or goes away before it was told how the run ended.
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
    from httpx import HTTPError  # what Prefect lets through when its server cannot be reached
    from prefect._internal.urls import strip_auth_from_url
    from prefect.client.orchestration import get_client
    from prefect.events.clients import PrefectEventsClient
    from prefect.events.worker import EventsWorker, emit_events_to_cloud

    if not emit_events_to_cloud():  # a server that is gone is looked for once an event; ten times would be minutes
        EventsWorker.set_client_override(PrefectEventsClient, reconnection_attempts=1)
    with get_client(sync_client=True) as client:
        unheard, url = client.api_healthcheck(), strip_auth_from_url(str(client.api_url))
    if unheard is not None:
        raise ServerError(
            f"expected Prefect's server at {url}, where nothing answers as one ({unheard}). Start it, or unset "
            f"{API_URL} and each run has one of its own. Nothing was begun"
        )
    try:
        yield
    except HTTPError as error:
        raise ServerError(
            f"Prefect's server at {url} went away ({error}): it does not know how this run ended, the files do"
        ) from error


def _is_needed() -> bool:
    from prefect.client.base import ServerType, determine_server_type

    return determine_server_type() is ServerType.EPHEMERAL


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
    """Where Prefect keeps its database unless it is told otherwise."""
    return Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()


def is_on_network(folder: Path, mounts: str) -> bool:
    """Whether a folder lies on a file system that other machines mount too, by the lines of /proc/self/mountinfo."""
    place, kinds = folder.absolute(), dict[Path, str]()
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].replace("\\040", " "))
        if place.is_relative_to(point):
            kinds[point] = after.split()[0]
    return bool(kinds) and kinds[max(kinds, key=lambda point: len(point.parts))] in NETWORK


@contextmanager
def own_database() -> Iterator[None]:
    """What is served inside keeps its runs in a folder for temporary files."""
    with TemporaryDirectory(prefix="overtile-prefect-") as folder:
        os.environ["PREFECT_API_DATABASE_CONNECTION_URL"] = f"sqlite+aiosqlite:///{folder}/prefect.db"
        yield


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # nothing is ever written: it returns when the parent closes it, or is no more
    os.kill(os.getpid(), signal.SIGTERM)  # at once while importing, politely when serving


if __name__ == "__main__":
    with own_database() if "apart" in sys.argv[2:] else nullcontext():
        serve(int(sys.argv[1]), lasting="lasting" in sys.argv[2:])
