"""Detect whether the files of a slide are still being written.

The files are neither read nor waited for. A recently changed slide is left for the next run. Where clocks disagree, a
change between two calls of ``file_states`` shows that a file is being written.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pipeline.errors import SlideError
from pipeline.slides.format_detection import detect_format

FileState = tuple[str, int, int]
"""Name, size in bytes, time of the last change in nanoseconds."""


def file_states(path: Path) -> tuple[FileState, ...]:
    """State of every file of a slide (for an OME-Zarr of its whole tree), sorted; empty when none exists."""
    return tuple(sorted(_states(path)))


def last_change(path: Path) -> float:
    """Time of the last change in seconds since 1970; 0 when no file exists."""
    return max((mtime_ns for _, _, mtime_ns in _states(path)), default=0) / 1e9


def recently_modified(path: Path, settle_s: float) -> str | None:
    """Reason to skip a slide that may still be being written; None when it has not changed lately.

    A modification time in the near future counts like one in the past, because clocks differ. One further in the future
    than ``settle_s`` is ignored: that clock is wrong, and the slide would never be taken.

    Args:
        path: The slide.
        settle_s: Required time without a change, in seconds.
    """
    age_s = time.time() - last_change(path)
    if abs(age_s) >= settle_s:
        return None
    return (
        f"{path}: still being written? Expected {settle_s:g} s without a change (input.settle_s), found the last one "
        f"{max(0.0, age_s):.0f} s ago. The next run takes it"
    )


def _states(path: Path) -> Iterator[FileState]:
    for file in _files(path):
        with suppress(OSError):  # deleted meanwhile, or a broken link
            status = file.stat()
            yield str(file), status.st_size, status.st_mtime_ns


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        try:
            yield from detect_format(path).files
        except (SlideError, OSError):  # an unreadable file may be incomplete
            yield path
        return
    for folder, _, names in os.walk(path):
        yield from (Path(folder, name) for name in (*names, "."))
