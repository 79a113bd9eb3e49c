"""Slots of a block queue: oldest slide first, never more than there are, no slide left waiting."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.execution.block_queue import BlockQueue, Closed, Slot, SlotQueue

Sent = tuple[int, int]
"""A block: rank of its slide, its number."""


def events(slots: SlotQueue[Sent]) -> list[object]:
    """All events in an inbox."""
    found: list[object] = []
    while not slots.inbox.empty():
        found.append(slots.inbox.get())
    return found


@contextmanager
def slot_queues(queue: BlockQueue[Sent], *ranks: int) -> Iterator[list[SlotQueue[Sent]]]:
    """A slot queue for each rank, opened in this order."""
    with ExitStack() as stack:
        yield [stack.enter_context(queue.slot_queue(rank)) for rank in ranks]


def test_free_slot_goes_to_oldest_waiting_slide() -> None:
    queue: BlockQueue[Sent] = BlockQueue(1)
    with slot_queues(queue, 3, 2, 1) as (first, second, third):
        assert [events(slots) for slots in (first, second, third)] == [[Slot()], [], []]
        queue.complete(first, (3, 0))
        assert [events(slots) for slots in (first, second, third)] == [[(3, 0)], [], [Slot()]]
        queue.request(first)
        queue.complete(third, (1, 0))
        assert [events(slots) for slots in (first, second, third)] == [[], [Slot()], [(1, 0)]]
        queue.complete(second, (2, 0))
        assert events(first) == [Slot()]


def test_queues_of_equal_rank_are_served_in_order_of_arrival() -> None:
    queue: BlockQueue[Sent] = BlockQueue(1)
    with slot_queues(queue, 1, 0, 0) as (holder, first, second):
        queue.complete(holder, (1, 0))
        assert (events(first), events(second)) == ([Slot()], [])


def test_slots_freed_together_all_go_to_oldest_slide() -> None:
    queue: BlockQueue[Sent] = BlockQueue(3)
    with slot_queues(queue, 5, 2) as (young, old):
        assert events(young) == [Slot()] * 3
        for number in range(3):
            queue.request(young)
            queue.complete(young, (5, number))
        assert events(old) == [Slot()] * 3


def test_block_sent_alone_runs_with_no_other_block() -> None:
    queue: BlockQueue[Sent] = BlockQueue(2)
    with slot_queues(queue, 1) as (others,), queue.slot_queue(0, alone=True) as alone:
        queue.request(others)
        queue.complete(others, (1, 0))
        assert (events(others), events(alone)) == ([Slot(), Slot(), (1, 0)], []), "one block is running"
        queue.complete(others, (1, 1))
        assert (events(others), events(alone)) == ([(1, 1)], [Slot()])
        queue.complete(alone, (0, 1))
        assert events(others) == [Slot()]


def test_older_slide_is_served_before_block_sent_alone_by_younger_slide() -> None:
    queue: BlockQueue[Sent] = BlockQueue(2)
    with slot_queues(queue, 0) as (old,), queue.slot_queue(1, alone=True) as alone:
        queue.request(old)
        queue.complete(old, (0, 0))
        assert (events(old), events(alone)) == ([Slot(), Slot(), (0, 0), Slot()], [])


def test_queue_that_leaves_frees_its_slots_and_requests() -> None:
    queue: BlockQueue[Sent] = BlockQueue(2)
    with slot_queues(queue, 1) as (stays,):
        with slot_queues(queue, 0) as (leaves,):
            queue.complete(stays, (1, 0))
            assert events(leaves) == [Slot()]
        queue.request(stays)
        assert events(stays) == [Slot(), Slot(), (1, 0), Slot()]
        queue.complete(leaves, (0, 0))
        queue.request(stays)
        assert events(stays) == [], "a block that completes after its queue has left frees no slot of another queue"


def test_slot_given_back_withdraws_requests() -> None:
    queue: BlockQueue[Sent] = BlockQueue(2)
    with slot_queues(queue, 0, 1) as (old, young):
        queue.request(old)
        queue.give_back(old)
        assert (events(old), events(young)) == ([Slot(), Slot()], [Slot()])


def test_closed_reaches_present_and_later_queues() -> None:
    queue: BlockQueue[Sent] = BlockQueue(1)
    with slot_queues(queue, 0, 1) as (first, second):
        queue.close()
        with slot_queues(queue, 2) as (late,):
            assert [events(slots)[-1] for slots in (first, second, late)] == [Closed()] * 3


@dataclass(slots=True)
class Running:
    """Running blocks, counted independently of the queue."""

    now: int = 0
    most: int = 0
    seen: list[Sent] = field(default_factory=list)
    guard: threading.Lock = field(default_factory=threading.Lock)

    def start(self, block: Sent) -> None:
        """Count a block that starts."""
        with self.guard:
            self.now += 1
            self.most = max(self.most, self.now)
            self.seen.append(block)

    def end(self) -> None:
        """Count a block that ends."""
        with self.guard:
            self.now -= 1


def send_blocks(
    queue: BlockQueue[Sent], running: Running, workers: ThreadPoolExecutor, rank: int, blocks: int
) -> list[Sent]:
    """Send blocks as a mapper does; return the completed blocks."""
    todo, completed = iter(range(blocks)), list[Sent]()

    def work(slots: SlotQueue[Sent], block: Sent) -> None:
        running.end()
        queue.complete(slots, block)

    with queue.slot_queue(rank) as slots:
        while len(completed) < blocks or slots.held:
            event = slots.inbox.get(timeout=30)
            if isinstance(event, tuple):
                completed.append(event)
                continue
            number = next(todo, None)
            if number is None:
                queue.give_back(slots)
                continue
            running.start((rank, number))
            workers.submit(work, slots, (rank, number))
            queue.request(slots)
    return completed


@settings(max_examples=60, deadline=None)
@given(
    slots_count=st.integers(1, 5),
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=6),
    seed=st.integers(0, 2**16),
)
def test_every_block_runs_once_within_slot_limit(slots_count: int, sizes: list[int], seed: int) -> None:
    queue: BlockQueue[Sent] = BlockQueue(slots_count)
    running = Running()
    order = list(enumerate(sizes))
    random.Random(seed).shuffle(order)
    with ThreadPoolExecutor(4) as workers, ThreadPoolExecutor(len(sizes)) as slides:
        answers = [slides.submit(send_blocks, queue, running, workers, rank, blocks) for rank, blocks in order]
        for (rank, blocks), answer in zip(order, answers, strict=True):
            assert sorted(answer.result(timeout=60)) == [(rank, number) for number in range(blocks)]
    assert running.most <= slots_count
    assert sorted(running.seen) == sorted((rank, number) for rank, blocks in order for number in range(blocks))
    assert queue._held == 0


# ---- more slots, or fewer --------------------------------------------------------------------------------------------


def test_slot_count_can_grow_and_shrink_during_run() -> None:
    queue: BlockQueue[Sent] = BlockQueue(1)
    with slot_queues(queue, 2, 1) as (young, old):
        assert (events(young), events(old)) == ([Slot()], [])
        queue.resize(4)
        assert (events(young), events(old)) == ([], [Slot()] * 3), "the oldest slide first"
        queue.resize(2)
        for number in range(3):
            queue.complete(old, (1, number))
        assert (events(young), events(old)) == ([], [(1, 0), (1, 1), (1, 2), Slot()])


def test_queue_without_slots_is_served_after_resize() -> None:
    queue: BlockQueue[Sent] = BlockQueue(0)
    with slot_queues(queue, 1) as (slots,):
        assert events(slots) == []
        queue.resize(2)
        assert events(slots) == [Slot()] * 2


def test_closed_carries_first_reason() -> None:
    queue: BlockQueue[Sent] = BlockQueue(1)
    lost = ConnectionError("gone")
    with slot_queues(queue, 1) as (slots,):
        queue.close(lost)
        queue.close()
        queue.request(slots)
        assert events(slots) == [Slot(), *[Closed(lost)] * 3]
