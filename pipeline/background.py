"""Run a periodic task (heartbeat, worker check) in a background thread.

The task waits through a function that returns as soon as the ``with`` block ends, so no thread outlives its block and
the end of the block never waits for a sleeping thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Wait = Callable[[float], bool]
"""Wait for a number of seconds or until the block ends; return whether it has ended."""


@contextmanager
def background_thread(name: str, task: Callable[[Wait], object]) -> Iterator[None]:
    """Run a task in a thread during the ``with`` block.

    Args:
        name: Name of the thread.
        task: Called with a `Wait` function; must return when that returns True.
    """
    ended = threading.Event()
    thread = threading.Thread(target=task, args=(ended.wait,), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
