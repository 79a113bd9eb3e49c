"""Run the installed command as a schedule service, and read its files and its Prefect server."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import psutil
import pytest

from tests.support.commands import CLASSES, Command, installed_command

T = TypeVar("T")
PATIENCE_S = 240
QUICK = ("cluster.kind=serial", "tiles.block=512", "tiles.tile=64", "input.settle_s=0")
QUICK += (f"model.weights={CLASSES}", "compute.precision=fp32")


def settings(*more: str) -> list[str]:
    """Command-line settings for small slides; later values of a key override earlier ones."""
    return [word for one in (*QUICK, *more) for word in ("--set", one)]


@contextmanager
def running(line: list[str], command: Command, log: Path) -> Iterator[psutil.Process]:
    """Run a process in the environment of the command; at the end kill it and all its children."""
    with log.open("ab") as output:
        started = subprocess.Popen(
            line, env=dict(command.environment), stdout=output, stderr=output, cwd=command.folder
        )
    process = psutil.Process(started.pid)
    try:
        yield process
    finally:
        for member in [process, *children(process)]:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        started.wait(PATIENCE_S)


@contextmanager
def serving(command: Command, log: Path, *words: str | Path) -> Iterator[psutil.Process]:
    """Run ``overtile schedule``."""
    with running([*installed_command(), "schedule", *map(str, words)], command, log) as process:
        yield process


def children(process: psutil.Process) -> list[psutil.Process]:
    """All living descendants of a process."""
    with suppress(psutil.NoSuchProcess):
        return [child for child in process.children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]
    return []


def wait_for(condition: Callable[[], T], log: Path, timeout_s: float = PATIENCE_S) -> T:
    """Poll until ``condition`` returns a true value; return it. Fails with the log after the timeout."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    pytest.fail(f"condition not met within {timeout_s} s:\n{log.read_text()}")


# ---- files in OUT ----------------------------------------------------------------------------------------------------


def shards(out: Path) -> dict[str, int]:
    """Shards of the probability with their inodes; a rewritten shard has a new inode."""
    found = out.glob("*/slide.ome.zarr/probability/0/c/0/*/[0-9]*")
    return {str(path): path.stat().st_ino for path in found}


def lines_of(out: Path, event: str) -> list[dict[str, Any]]:
    """Lines of the history for one event."""
    text = (out / "history.jsonl").read_text() if (out / "history.jsonl").exists() else ""
    return [line for line in map(json.loads, text.splitlines()) if line["event"] == event]


def exit_codes(out: Path) -> list[int]:
    """Exit codes of the finished runs."""
    return [line["exit_code"] for line in lines_of(out, "ended")]


# ---- Prefect server --------------------------------------------------------------------------------------------------


def api(log: Path) -> str:
    """API address of the last server named in the log."""
    (*_, address) = [line.rpartition(" ")[2] for line in log.read_text().splitlines() if "runs are shown at" in line]
    return f"{address}api"


def ask(log: Path, path: str, body: dict[str, Any]) -> Any:
    """Response of that server to a request."""
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"{api(log)}/{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def run_states(log: Path) -> list[str]:
    """States of all scheduled runs."""
    return [run["state_name"] for run in ask(log, "flow_runs/filter", {})]


# ---- notifications ---------------------------------------------------------------------------------------------------


@dataclass
class Receiver:
    """A local webhook that records all requests."""

    url: str = ""
    received: list[Any] = field(default_factory=list)


@contextmanager
def receiver() -> Iterator[Receiver]:
    """Run a webhook on a free port of 127.0.0.1."""
    webhook = Receiver()

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            webhook.received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Write no log."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Hook) as server:
        webhook.url = f"http://127.0.0.1:{server.server_port}/hook"
        Thread(target=server.serve_forever, daemon=True).start()
        yield webhook
        server.shutdown()
