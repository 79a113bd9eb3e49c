"""Start ``overtile view`` as a user does and send raw requests to it.

Requests are written byte by byte, because an HTTP library would normalise them.
"""

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

TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Viewed:
    """A running viewer and the URL it printed."""

    process: subprocess.Popen[str]
    address: str

    @property
    def host(self) -> str:
        return urlsplit(self.address).netloc

    @property
    def path(self) -> str:
        """Path of the URL with the token, ending with a slash."""
        return urlsplit(self.address).path

    @property
    def port(self) -> int:
        return int(self.host.rpartition(":")[2])

    def send(self, request: bytes) -> Answer:
        """Send exactly these bytes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT_S) as line:
            line.sendall(request)
            response = bytearray()
            while part := line.recv(65536):
                response += part
        head, _, body = bytes(response).partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = (line.split(": ", 1) for line in lines)
        return Answer(int(first.split()[1]), {name.lower(): value for name, value in pairs}, body)

    def ask(self, target: str | bytes, method: str = "GET", **headers: str | None) -> Answer:
        """Send one request.

        Args:
            target: Request target, sent unchanged.
            method: HTTP method.
            headers: Headers with ``_`` for ``-``; ``Host=None`` sends no Host header.
        """
        sent = {"Host": self.host, "Connection": "close", **{name.replace("_", "-"): headers[name] for name in headers}}
        lines = "".join(f"{name}: {value}\r\n" for name, value in sent.items() if value is not None)
        raw = target if isinstance(target, bytes) else target.encode()
        return self.send(b"%s %s HTTP/1.1\r\n%s\r\n" % (method.encode(), raw, lines.encode()))

    def get(self, page: str) -> bytes:
        """Return an existing page below the token."""
        answer = self.ask(self.path + page)
        assert answer.status == 200, (page, answer)
        return answer.body

    def json(self, page: str) -> Any:
        return json.loads(self.get(page))

    def names(self) -> dict[str, str]:
        """Return the URL name of each slide by its key."""
        return {card["key"]: card["name"] for card in self.json("slides.json")["slides"] if card["name"]}


@contextmanager
def viewing(command: Command, path: Path, *options: str) -> Iterator[Viewed]:
    """Run the viewer on ``path`` within the block, then interrupt it and require a clean exit."""
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
        _, errors = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 130, errors
        assert "Traceback" not in errors
    finally:
        process.kill()
        process.communicate()
