"""Reads that do not come back (a file server that died, a tape that is fetched): given up after a while, by name.

The one decision made here: what hangs in the kernel cannot be stopped, only left behind. It goes on hanging in a thread
that nobody waits for and that no process waits for at its end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import TypeVar

from pipeline.errors import ReadTimeoutError

T = TypeVar("T")


def with_timeout(call: Callable[[], T], path: Path, seconds: float) -> T:
    """What ``call``, which reads ``path``, returns or raises; HungError when it does neither in so many seconds."""
    future: Future[T] = Future()
    threading.Thread(target=_carry, args=(call, future), name="read", daemon=True).start()
    wait([future], timeout=seconds)
    if not future.done():
        raise ReadTimeoutError(
            f"{path}: expected to be read within {seconds:g} s (input.patience_s), found no answer: its file server or "
            "disk may hang. Read it by hand, for example with cp; if that works, run the same command again"
        )
    return future.result()


def _carry(call: Callable[[], T], future: Future[T]) -> None:
    """Let a future have what a call returns or raises."""
    try:
        future.set_result(call())
    except Exception as error:  # raised again by whoever waits
        future.set_exception(error)
