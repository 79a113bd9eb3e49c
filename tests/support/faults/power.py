"""Simulate a power loss after a kill.

Only data that POSIX guarantees to be on disk are kept. The worst case is assumed. Bytes without fsync are lost and
leave an empty file; a name whose folder was not fsynced is lost with everything below it. (The return of removed names
is not simulated.)
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from tests.support.faults.preload import Change


def lose_power(journal: Iterable[Change], root: Path) -> tuple[list[Path], list[Path]]:
    """Drop what is not durable below ``root``; return the emptied files and the lost names."""
    dirty: set[Path] = set()
    unsafe: set[Path] = set()
    for change in journal:
        if change.call == "write":
            dirty.add(change.path)
        elif change.call == "fsync":
            dirty.discard(change.path)
            unsafe = {name for name in unsafe if name.parent != change.path}
        elif change.call in ("create", "mkdir"):
            unsafe.add(change.path)
        elif change.call == "rename":
            dirty = {_moved(name, change) for name in dirty}
            unsafe = {_moved(name, change) for name in unsafe} | {change.to}
        else:
            dirty.discard(change.path)
            unsafe.discard(change.path)
    emptied = sorted(path for path in dirty if root in path.parents and path.is_file())
    gone = sorted(path for path in unsafe if root in path.parents and path.exists())
    for path in emptied:
        path.write_bytes(b"")
    for path in gone:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return emptied, gone


def _moved(path: Path, change: Change) -> Path:
    """Return a path after a rename of itself or of a folder above it."""
    return change.to / path.relative_to(change.path) if path.is_relative_to(change.path) else path
