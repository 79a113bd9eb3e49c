"""One live run per slide folder.

The one decision made here: nobody is ever asked to delete a lock. A ``flock`` held open dies with its process (a POSIX
record lock would also die when anything in the process closes another descriptor of the file); a heartbeat (the file's
own modification time) tells a live owner on another host from a dead one, measured by the file server's clock.
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
    """Hold ``work/lock`` while the block runs.

    Raises LockedError naming pid, host and since when another live run holds it; a dead owner on this host is taken
    over at once, one on another host after 10 minutes without a beat.
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
    """Who works on the slide, as far as the lock's file tells: pid, host, since. Only looks, and disturbs nobody."""
    path, owner = work / "lock", _owner(work / "lock")
    try:
        if not owner or time.time() - path.stat().st_mtime > STALE_S:
            return None
    except FileNotFoundError:
        return None
    return owner if owner["host"] != socket.gethostname() or _lives(owner) else None


def _lives(owner: Mapping[str, str | int]) -> bool:
    """Whether the process of an owner on this host is still there."""
    if owner.get("boot") != _myself()["boot"]:
        return False
    with suppress(PermissionError):  # somebody else's, but there
        try:
            os.kill(int(owner["pid"]), 0)
        except ProcessLookupError:
            return False
    return not _is_zombie(int(owner["pid"]))


def _is_zombie(pid: int) -> bool:
    """Whether a process has ended and nobody has asked how: in a container there may be nobody to."""
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
    who = " ".join(f"{word} {owner.get(key, '?')}" for word, key in WORDS) if owner else "another process"
    seen = f"last sign of life {_age_s(path):.0f} s ago"
    return f"{path.parent.parent} is being worked on by {who}, {seen}. Wait for it, or stop it"


def _age_s(path: Path) -> float:
    """Seconds since the last beat by the file server's clock: that of a file made just now beside it."""
    probe = path.with_name(f".clock.{uuid.uuid4().hex}.partial")
    probe.touch()
    try:
        return probe.stat().st_mtime - path.stat().st_mtime
    finally:
        probe.unlink()


def _beat(path: Path, wait: Wait) -> None:
    while not wait(BEAT_S):
        with suppress(OSError):  # a file server that stumbles once: the next beat counts
            os.utime(path)
