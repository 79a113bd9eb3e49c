"""A time limit for file reads that may never return.

A read that hangs in the kernel (a dead file server, a tape archive) cannot be interrupted. It continues in a daemon
thread, which does not delay the exit of the process.
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
    """Call a function that reads a file, with a time limit.

    Args:
        call: Function without arguments.
        path: The file it reads, for the error message.
        seconds: Time limit.

    Returns:
        The result of ``call``; its exception is raised again.

    Raises:
        ReadTimeoutError: If ``call`` does not finish within ``seconds``.
    """
    future: Future[T] = Future()
    threading.Thread(target=_resolve, args=(call, future), name="read", daemon=True).start()
    wait([future], timeout=seconds)
    if not future.done():
        raise ReadTimeoutError(
            f"{path}: expected to be read within {seconds:g} s (input.patience_s), found no answer: its file server or "
            "disk may hang. Read it by hand, for example with cp; if that works, run the same command again"
        )
    return future.result()


def _resolve(call: Callable[[], T], future: Future[T]) -> None:
    """Run ``call`` and store its result or exception in ``future``."""
    try:
        future.set_result(call())
    except Exception as error:  # raised again by future.result()
        future.set_exception(error)
