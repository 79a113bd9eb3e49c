"""Whether a slide's files are still being written: what changed, and when.

The one decision made here: nobody waits and nothing is read. A file that changed a moment ago is young, and young files
are left for the next run; where a clock is not to be trusted, a change between two looks tells.
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
    """The state of every file of a slide, of an OME-Zarr of all that lies in it; empty when nothing is there."""
    return tuple(sorted(_states(path)))


def last_change(path: Path) -> float:
    """When the slide was last changed, in seconds since 1970; 0 when nothing is there."""
    return max((mtime_ns for _, _, mtime_ns in _states(path)), default=0) / 1e9


def recently_modified(path: Path, settle_s: float) -> str | None:
    """Why the slide is to be left alone for now; None when it has rested. A clock that is ahead counts like one behind.

    What was changed far in the future is not waited for: that clock is wrong, and waiting would have no end.
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
        with suppress(OSError):  # it has gone meanwhile, or is a link that leads nowhere
            found = file.stat()
            yield str(file), found.st_size, found.st_mtime_ns


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        try:
            yield from detect_format(path).files
        except (SlideError, OSError):  # what cannot be read may still be growing
            yield path
        return
    for folder, _, names in os.walk(path):
        yield from (Path(folder, name) for name in (*names, "."))
