"""Open sockets of a process and its children, as listed by the kernel."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class Listening:
    """A socket that accepts connections, and the process that holds it."""

    pid: int
    address: str
    port: int

    @property
    def is_local(self) -> bool:
        """Whether it is reachable from this machine only."""
        return ipaddress.ip_address(self.address).is_loopback


def family(process: psutil.Process) -> list[psutil.Process]:
    """Return a process and its descendants."""
    with suppress(psutil.NoSuchProcess):
        return [process, *process.children(recursive=True)]
    return []


def listening(process: psutil.Process) -> Iterator[Listening]:
    """Yield listening TCP sockets and bound UDP sockets of one process."""
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        for one in process.net_connections(kind="inet"):
            if one.laddr and not one.raddr and one.status in (psutil.CONN_LISTEN, psutil.CONN_NONE):
                yield Listening(process.pid, one.laddr.ip, one.laddr.port)
