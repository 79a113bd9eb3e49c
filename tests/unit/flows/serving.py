"""The installed command serving a schedule, what it leaves in OUT, and what its Prefect server tells."""

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
    """Words of a command for small pictures; a key that is named again wins."""
    return [word for one in (*QUICK, *more) for word in ("--set", one)]


@contextmanager
def running(line: list[str], command: Command, log: Path) -> Iterator[psutil.Process]:
    """A process in the command's environment; killed with all its children at the end, if it still lives."""
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


@contextmanager
def serving(command: Command, log: Path, *words: str | Path) -> Iterator[psutil.Process]:
    """The installed command, serving a schedule."""
    with running([*installed_command(), "schedule", *map(str, words)], command, log) as process:
        yield process


def children(process: psutil.Process) -> list[psutil.Process]:
    """All that a process has started and that lives."""
    with suppress(psutil.NoSuchProcess):
        return [one for one in process.children(recursive=True) if one.status() != psutil.STATUS_ZOMBIE]
    return []


def wait_for(what: Callable[[], T], log: Path, patience_s: float = PATIENCE_S) -> T:
    """What a question answers as soon as the answer is not empty."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        if answer := what():
            return answer
        time.sleep(0.05)
    pytest.fail(f"nothing came in {patience_s} s:\n{log.read_text()}")


# ---- what lies in OUT ------------------------------------------------------------------------------------------------


def shards(out: Path) -> dict[str, int]:
    """Shards of probability, with their inodes: one that is written again has another."""
    found = out.glob("*/slide.ome.zarr/probability/0/c/0/*/[0-9]*")
    return {str(path): path.stat().st_ino for path in found}


def lines_of(out: Path, event: str) -> list[dict[str, Any]]:
    """Lines of the history that tell of an event."""
    text = (out / "history.jsonl").read_text() if (out / "history.jsonl").exists() else ""
    return [line for line in map(json.loads, text.splitlines()) if line["event"] == event]


def exit_codes(out: Path) -> list[int]:
    """How the runs ended that did."""
    return [line["exit_code"] for line in lines_of(out, "ended")]


# ---- what the server tells -------------------------------------------------------------------------------------------


def api(log: Path) -> str:
    """Address of the server that the schedule named last."""
    (*_, place) = [line.rpartition(" ")[2] for line in log.read_text().splitlines() if "runs are shown at" in line]
    return f"{place}api"


def ask(log: Path, path: str, body: dict[str, Any]) -> Any:
    """What that server answers."""
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"{api(log)}/{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def run_states(log: Path) -> list[str]:
    """The states of all nights."""
    return [run["state_name"] for run in ask(log, "flow_runs/filter", {})]


# ---- who is told -----------------------------------------------------------------------------------------------------


@dataclass
class Receiver:
    """A webhook on this machine: all that was sent to it."""

    url: str = ""
    received: list[Any] = field(default_factory=list)


@contextmanager
def receiver() -> Iterator[Receiver]:
    """A webhook on a free port of 127.0.0.1."""
    found = Receiver()

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Hook) as server:
        found.url = f"http://127.0.0.1:{server.server_port}/hook"
        Thread(target=server.serve_forever, daemon=True).start()
        yield found
        server.shutdown()
