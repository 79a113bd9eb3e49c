"""Room for a bounded number of blocks in flight, shared by all slides that are open.

The one decision made here: whoever maps blocks is a *lane* with a rank, the slide's place in the batch, and a place
that becomes free goes to the waiting lane of the lowest rank. So the oldest slide is done first, a younger one gets
what the older ones leave, and what is in flight does not grow with the number of slides.

    lane of slide 1   ask -> | places | -> in the air -> landed -> its inbox
    lane of slide 2   ask -> |  a few |                    (the place goes to the next in line)
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
    """A lane may send one block, or give the place back."""


@dataclass(frozen=True, slots=True)
class Closed:
    """There will be no more places, and what is in the air may never land; ``why``, when something went wrong."""

    why: Exception | None = None


@dataclass(slots=True, order=True)
class SlotQueue(Generic[T]):
    """One caller's way into a flight. ``inbox`` holds what is new, in the order it happened.

    A lane that flies ``alone`` gets a place when the air is empty, and nobody else one until its block has landed.
    """

    rank: int
    number: int
    alone: bool = field(compare=False)
    held: int = field(default=0, compare=False)
    inbox: SimpleQueue[Slot | Closed | T] = field(default_factory=SimpleQueue, compare=False)


@dataclass(slots=True)
class BlockQueue(Generic[T]):
    """At most ``places`` blocks in the air. Safe to call from several threads."""

    places: int
    _held: int = 0
    _alone: bool = False
    _closed: Closed | None = None
    _line: list[SlotQueue[T]] = field(default_factory=list)
    _lanes: list[SlotQueue[T]] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=count)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def lane(self, rank: int, *, alone: bool = False) -> Iterator[SlotQueue[T]]:
        """A lane in line for every place there is (one, if alone). What it holds at the end is free for others."""
        with self._guard:
            lane: SlotQueue[T] = SlotQueue(rank, next(self._numbers), alone)
            self._lanes.append(lane)
        try:
            for _ in range(1 if alone else self.places):
                self.ask(lane)
            yield lane
        finally:
            self._leave(lane)

    def ask(self, lane: SlotQueue[T]) -> None:
        """Stand in line for one more place: a ``Place`` arrives in the inbox when it is there."""
        with self._guard:
            if self._closed:
                lane.inbox.put(self._closed)
                return
            heapq.heappush(self._line, lane)
            self._grant()

    def complete(self, lane: SlotQueue[T], what: T) -> None:
        """Tell a lane that its block is down, and free the place."""
        with self._guard:
            lane.inbox.put(what)
            self._free(lane)

    def give_back(self, lane: SlotQueue[T]) -> None:
        """Free a place that the lane had no block for, and take it out of the line."""
        with self._guard:
            self._quit_line(lane)
            self._free(lane)

    def resize(self, places: int) -> None:
        """There are more places now, or fewer: what is in the air stays there."""
        with self._guard:
            more, self.places = places - self.places, places
            for lane in self._lanes if not self._closed else ():
                for _ in range(0 if lane.alone else more):
                    heapq.heappush(self._line, lane)
            self._grant()

    def close(self, why: Exception | None = None) -> None:
        """No more places: whoever waits is told, and so is who asks later."""
        with self._guard:
            self._closed = self._closed or Closed(why)
            self._line.clear()
            for lane in self._lanes:
                lane.inbox.put(self._closed)

    def _leave(self, lane: SlotQueue[T]) -> None:
        with self._guard:
            self._lanes.remove(lane)
            self._quit_line(lane)
            while lane.held:
                self._free(lane)
            self._grant()

    def _quit_line(self, lane: SlotQueue[T]) -> None:
        self._line = [other for other in self._line if other is not lane]
        heapq.heapify(self._line)

    def _free(self, lane: SlotQueue[T]) -> None:
        if not lane.held:
            return  # it has left already, and what it held with it
        lane.held -= 1
        self._held -= 1
        self._alone = self._alone and not lane.alone
        self._grant()

    def _grant(self) -> None:
        while self._line and not self._alone and self._held < (1 if self._line[0].alone else self.places):
            lane = heapq.heappop(self._line)
            lane.held += 1
            self._held += 1
            self._alone = lane.alone
            lane.inbox.put(Slot())
