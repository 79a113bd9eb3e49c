"""A bounded number of blocks at a time, shared by all open slides.

Each caller that maps blocks has a `SlotQueue` with a rank, the slide's position in the batch. A free slot goes to the
waiting queue of the lowest rank. So the oldest slide finishes first, younger slides use the slots it leaves, and the
number of running blocks does not grow with the number of slides.

    slots of slide 1   request -> | slots | -> running -> complete -> its inbox
    slots of slide 2   request -> | a few |               (the slot goes to the next queue)
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from queue import SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Slot:
    """The right to send one block, or to give the slot back."""


@dataclass(frozen=True, slots=True)
class Closed:
    """No more slots: running blocks may never complete. ``why`` is the error, if there was one."""

    why: Exception | None = None


@dataclass(slots=True, order=True)
class SlotQueue(Generic[T]):
    """The slots of one caller of a `BlockQueue`. ``inbox`` holds events in the order in which they happened.

    A queue that is ``alone`` gets its slot when no block runs, and no other queue gets one until that block completes.
    """

    rank: int
    number: int
    alone: bool = field(compare=False)
    held: int = field(default=0, compare=False)
    inbox: SimpleQueue[Slot | Closed | T] = field(default_factory=SimpleQueue, compare=False)


@dataclass(slots=True)
class BlockQueue(Generic[T]):
    """At most ``slots`` running blocks. Methods may be called from several threads."""

    slots: int
    _held: int = 0
    _alone: bool = False
    _closed: Closed | None = None
    _waiting: list[SlotQueue[T]] = field(default_factory=list)
    _queues: list[SlotQueue[T]] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=count)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def slot_queue(self, rank: int, *, alone: bool = False) -> Iterator[SlotQueue[T]]:
        """Request every slot there is (one, if alone). Slots that are held at the end become free.

        Args:
            rank: Position of the slide in the batch; the lowest is served first.
            alone: Whether the blocks must run with no other block running.

        Yields:
            The queue, whose inbox receives `Slot`, `Closed` and completed blocks.
        """
        with self._guard:
            queue: SlotQueue[T] = SlotQueue(rank, next(self._numbers), alone)
            self._queues.append(queue)
        try:
            for _ in range(1 if alone else self.slots):
                self.request(queue)
            yield queue
        finally:
            self._leave(queue)

    def request(self, queue: SlotQueue[T]) -> None:
        """Request one more slot: a ``Slot`` arrives in the inbox when one is free."""
        with self._guard:
            if self._closed:
                queue.inbox.put(self._closed)
                return
            heapq.heappush(self._waiting, queue)
            self._grant()

    def complete(self, queue: SlotQueue[T], block: T) -> None:
        """Put a completed block into the inbox, and free its slot."""
        with self._guard:
            queue.inbox.put(block)
            self._free(queue)

    def give_back(self, queue: SlotQueue[T]) -> None:
        """Free a slot for which the caller has no block, and withdraw its requests."""
        with self._guard:
            self._withdraw(queue)
            self._free(queue)

    def resize(self, slots: int) -> None:
        """Change the number of slots. Running blocks go on."""
        with self._guard:
            more, self.slots = slots - self.slots, slots
            for queue in self._queues if not self._closed else ():
                for _ in range(0 if queue.alone else more):
                    heapq.heappush(self._waiting, queue)
            self._grant()

    def close(self, why: Exception | None = None) -> None:
        """Grant no more slots: `Closed` arrives in every inbox, and after every later request."""
        with self._guard:
            self._closed = self._closed or Closed(why)
            self._waiting.clear()
            for queue in self._queues:
                queue.inbox.put(self._closed)

    def _leave(self, queue: SlotQueue[T]) -> None:
        with self._guard:
            self._queues.remove(queue)
            self._withdraw(queue)
            while queue.held:
                self._free(queue)
            self._grant()

    def _withdraw(self, queue: SlotQueue[T]) -> None:
        self._waiting = [other for other in self._waiting if other is not queue]
        heapq.heapify(self._waiting)

    def _free(self, queue: SlotQueue[T]) -> None:
        if not queue.held:
            return  # the queue has left already, and its slots with it
        queue.held -= 1
        self._held -= 1
        self._alone = self._alone and not queue.alone
        self._grant()

    def _grant(self) -> None:
        while self._waiting and not self._alone and self._held < (1 if self._waiting[0].alone else self.slots):
            queue = heapq.heappop(self._waiting)
            queue.held += 1
            self._held += 1
            self._alone = queue.alone
            queue.inbox.put(Slot())
