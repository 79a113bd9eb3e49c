"""The lock of a slide folder: one live run at a time.

A lock never has to be deleted by hand. The ``flock`` is released when its process dies. (A POSIX record lock would also
be released when any part of the process closes another descriptor of the file.) On another host, a heartbeat tells a
live owner from a dead one: the file's modification time, measured by the file server's clock.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import BinaryIO

from pipeline.background import Wait, background_thread
from pipeline.errors import LockedError
from pipeline.storage.atomic_files import disk_errors

BEAT_S = 60.0
STALE_S = 600.0
WORDS = (("process", "pid"), ("on", "host"), ("since", "since"))


@contextmanager
def slide_lock(work: Path) -> Iterator[None]:
    """Hold ``work/lock`` during the ``with`` block.

    The lock of a dead owner is taken over: on this host at once, on another host after 10 minutes without a heartbeat.

    Raises:
        LockedError: Another live run holds the lock. Names its pid, host and start.
    """
    path = work / "lock"
    with disk_errors(path):
        work.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    with file:
        with disk_errors(path):
            _acquire(file, path)
        try:
            with background_thread("beat", partial(_beat, path)):
                yield
        finally:
            file.truncate(0)


def live_owner(work: Path) -> Mapping[str, str | int] | None:
    """The run that holds the lock according to the lock file: pid, host, since; None when it is dead. Read-only."""
    path, owner = work / "lock", _owner(work / "lock")
    try:
        if not owner or time.time() - path.stat().st_mtime > STALE_S:
            return None
    except FileNotFoundError:
        return None
    return owner if owner["host"] != socket.gethostname() or _lives(owner) else None


def _lives(owner: Mapping[str, str | int]) -> bool:
    """Whether the process of an owner on this host is alive."""
    if owner.get("boot") != _myself()["boot"]:
        return False
    with suppress(PermissionError):  # the process of another user is alive
        try:
            os.kill(int(owner["pid"]), 0)
        except ProcessLookupError:
            return False
    return not _is_zombie(int(owner["pid"]))


def _is_zombie(pid: int) -> bool:
    """Whether a process has ended but was not waited for: in a container there may be no init process that waits."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (OSError, IndexError):
        return False


def _acquire(file: BinaryIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise LockedError(_describe(path)) from error
    owner = _owner(path)
    if owner and owner["host"] != socket.gethostname() and _age_s(path) < STALE_S:
        raise LockedError(_describe(path))
    file.truncate(0)
    file.write(json.dumps(_myself()).encode())
    file.flush()
    os.fsync(file.fileno())


def _myself() -> dict[str, str | int]:
    boot = Path("/proc/sys/kernel/random/boot_id")
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "boot": boot.read_text().strip() if boot.exists() else platform.node(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _owner(path: Path) -> dict[str, str | int]:
    try:
        owner = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) and "host" in owner else {}


def _describe(path: Path) -> str:
    owner = _owner(path)
    holder = " ".join(f"{word} {owner.get(key, '?')}" for word, key in WORDS) if owner else "another process"
    seen = f"last heartbeat {_age_s(path):.0f} s ago"
    return f"{path.parent.parent} is being worked on by {holder}, {seen}. Wait for it, or stop it"


def _age_s(path: Path) -> float:
    """Seconds since the last heartbeat by the file server's clock, read from a file created beside the lock."""
    probe = path.with_name(f".clock.{uuid.uuid4().hex}.partial")
    probe.touch()
    try:
        return probe.stat().st_mtime - path.stat().st_mtime
    finally:
        probe.unlink()


def _beat(path: Path, wait: Wait) -> None:
    while not wait(BEAT_S):
        with suppress(OSError):  # a transient failure: the next heartbeat counts
            os.utime(path)
