"""``overtile view`` as a user starts it, and requests to it byte by byte, without a library that would tidy them up."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.support.commands import Command, installed_command

PATIENCE_S = 60


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Viewed:
    """A server that runs, and the address that it printed."""

    process: subprocess.Popen[str]
    address: str

    @property
    def host(self) -> str:
        return urlsplit(self.address).netloc

    @property
    def path(self) -> str:
        """Of the address, with the token, ended by a slash."""
        return urlsplit(self.address).path

    @property
    def port(self) -> int:
        return int(self.host.rpartition(":")[2])

    def send(self, request: bytes) -> Answer:
        """Send these very bytes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S) as line:
            line.sendall(request)
            said = bytearray()
            while part := line.recv(65536):
                said += part
        head, _, body = bytes(said).partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = (line.split(": ", 1) for line in lines)
        return Answer(int(first.split()[1]), {name.lower(): value for name, value in pairs}, body)

    def ask(self, target: str | bytes, method: str = "GET", **headers: str | None) -> Answer:
        """One request; ``target`` as it is sent, headers with ``_`` for ``-``, and ``Host=None`` for none."""
        told = {"Host": self.host, "Connection": "close", **{name.replace("_", "-"): headers[name] for name in headers}}
        lines = "".join(f"{name}: {value}\r\n" for name, value in told.items() if value is not None)
        raw = target if isinstance(target, bytes) else target.encode()
        return self.send(b"%s %s HTTP/1.1\r\n%s\r\n" % (method.encode(), raw, lines.encode()))

    def get(self, page: str) -> bytes:
        """A page below the token, which is there."""
        answer = self.ask(self.path + page)
        assert answer.status == 200, (page, answer)
        return answer.body

    def json(self, page: str) -> Any:
        return json.loads(self.get(page))

    def names(self) -> dict[str, str]:
        """The name under which each slide is served, by its key."""
        return {card["key"]: card["name"] for card in self.json("slides.json")["slides"] if card["name"]}


@contextmanager
def viewing(command: Command, path: Path, *options: str) -> Iterator[Viewed]:
    """The command on ``path``, while the block runs; then it is interrupted, and must end as all commands do."""
    process = subprocess.Popen(
        [*installed_command(), "view", str(path), *options],
        env=dict(command.environment),
        cwd=command.folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), process.communicate()
        yield Viewed(process, address)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 130, said
        assert "Traceback" not in said
    finally:
        process.kill()
        process.communicate()
