"""Something done again and again beside the work: a sign of life, a look at who is still there.

The one decision made here: it is given a way to wait that answers whether the work has ended, so that no thread
outlives its block and nobody waits for one that sleeps.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Wait = Callable[[float], bool]
"""Wait so many seconds, or until the work has ended: whether it has."""


@contextmanager
def background_thread(name: str, task: Callable[[Wait], object]) -> Iterator[None]:
    """Run a task in a thread of that name while the block runs. It is to return once its wait answers true."""
    ended = threading.Event()
    thread = threading.Thread(target=task, args=(ended.wait,), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
