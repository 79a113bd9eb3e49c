"""A few places in the air, shared: oldest slide first, never more than there are, nobody left waiting."""

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


def news(lane: SlotQueue[Sent]) -> list[object]:
    """All that is in a lane's inbox."""
    found: list[object] = []
    while not lane.inbox.empty():
        found.append(lane.inbox.get())
    return found


@contextmanager
def lanes(flight: BlockQueue[Sent], *ranks: int) -> Iterator[list[SlotQueue[Sent]]]:
    """A lane for each rank, asking in this order."""
    with ExitStack() as stack:
        yield [stack.enter_context(flight.lane(rank)) for rank in ranks]


def test_a_free_place_goes_to_the_oldest_slide_that_waits() -> None:
    flight: BlockQueue[Sent] = BlockQueue(1)
    with lanes(flight, 3, 2, 1) as (first, second, third):
        assert [news(lane) for lane in (first, second, third)] == [[Slot()], [], []]
        flight.complete(first, (3, 0))
        assert [news(lane) for lane in (first, second, third)] == [[(3, 0)], [], [Slot()]]
        flight.ask(first)
        flight.complete(third, (1, 0))
        assert [news(lane) for lane in (first, second, third)] == [[], [Slot()], [(1, 0)]]
        flight.complete(second, (2, 0))
        assert news(first) == [Slot()]


def test_lanes_of_one_rank_take_turns_as_they_came() -> None:
    flight: BlockQueue[Sent] = BlockQueue(1)
    with lanes(flight, 1, 0, 0) as (holder, first, second):
        flight.complete(holder, (1, 0))
        assert (news(first), news(second)) == ([Slot()], [])


def test_places_that_become_free_together_all_go_to_the_oldest() -> None:
    flight: BlockQueue[Sent] = BlockQueue(3)
    with lanes(flight, 5, 2) as (young, old):
        assert news(young) == [Slot()] * 3
        for number in range(3):
            flight.ask(young)
            flight.complete(young, (5, number))
        assert news(old) == [Slot()] * 3


def test_alone_means_nothing_else_in_the_air() -> None:
    flight: BlockQueue[Sent] = BlockQueue(2)
    with lanes(flight, 1) as (others,), flight.lane(0, alone=True) as alone:
        flight.ask(others)
        flight.complete(others, (1, 0))
        assert (news(others), news(alone)) == ([Slot(), Slot(), (1, 0)], []), "one is in the air"
        flight.complete(others, (1, 1))
        assert (news(others), news(alone)) == ([(1, 1)], [Slot()])
        flight.complete(alone, (0, 1))
        assert news(others) == [Slot()]


def test_an_older_slide_goes_before_a_younger_ones_lonely_block() -> None:
    flight: BlockQueue[Sent] = BlockQueue(2)
    with lanes(flight, 0) as (old,), flight.lane(1, alone=True) as alone:
        flight.ask(old)
        flight.complete(old, (0, 0))
        assert (news(old), news(alone)) == ([Slot(), Slot(), (0, 0), Slot()], [])


def test_who_leaves_frees_what_it_holds_and_its_place_in_line() -> None:
    flight: BlockQueue[Sent] = BlockQueue(2)
    with lanes(flight, 1) as (stays,):
        with lanes(flight, 0) as (leaves,):
            flight.complete(stays, (1, 0))
            assert news(leaves) == [Slot()]
        flight.ask(stays)
        assert news(stays) == [Slot(), Slot(), (1, 0), Slot()]
        flight.complete(leaves, (0, 0))
        flight.ask(stays)
        assert news(stays) == [], "a block that lands when its lane is gone frees no place of another's"


def test_who_has_no_more_blocks_is_out_of_the_line() -> None:
    flight: BlockQueue[Sent] = BlockQueue(2)
    with lanes(flight, 0, 1) as (old, young):
        flight.ask(old)
        flight.give_back(old)
        assert (news(old), news(young)) == ([Slot(), Slot()], [Slot()])


def test_a_closed_flight_tells_everybody_and_who_comes_later() -> None:
    flight: BlockQueue[Sent] = BlockQueue(1)
    with lanes(flight, 0, 1) as (first, second):
        flight.close()
        with lanes(flight, 2) as (late,):
            assert [news(lane)[-1] for lane in (first, second, late)] == [Closed()] * 3


@dataclass(slots=True)
class Air:
    """What is in the air, counted by its own means."""

    now: int = 0
    most: int = 0
    seen: list[Sent] = field(default_factory=list)
    guard: threading.Lock = field(default_factory=threading.Lock)

    def up(self, block: Sent) -> None:
        """One more."""
        with self.guard:
            self.now += 1
            self.most = max(self.most, self.now)
            self.seen.append(block)

    def down(self) -> None:
        """One less."""
        with self.guard:
            self.now -= 1


def fly(flight: BlockQueue[Sent], air: Air, workers: ThreadPoolExecutor, rank: int, blocks: int) -> list[Sent]:
    """Send blocks as a mapper does; what came back."""
    todo, landed = iter(range(blocks)), list[Sent]()

    def work(lane: SlotQueue[Sent], block: Sent) -> None:
        air.down()
        flight.complete(lane, block)

    with flight.lane(rank) as lane:
        while len(landed) < blocks or lane.held:
            got = lane.inbox.get(timeout=30)
            if isinstance(got, tuple):
                landed.append(got)
                continue
            number = next(todo, None)
            if number is None:
                flight.give_back(lane)
                continue
            air.up((rank, number))
            workers.submit(work, lane, (rank, number))
            flight.ask(lane)
    return landed


@settings(max_examples=60, deadline=None)
@given(
    places=st.integers(1, 5),
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=6),
    seed=st.integers(0, 2**16),
)
def test_all_blocks_of_all_slides_fly_once_and_never_too_many(places: int, sizes: list[int], seed: int) -> None:
    flight: BlockQueue[Sent] = BlockQueue(places)
    air = Air()
    order = list(enumerate(sizes))
    random.Random(seed).shuffle(order)
    with ThreadPoolExecutor(4) as workers, ThreadPoolExecutor(len(sizes)) as slides:
        answers = [slides.submit(fly, flight, air, workers, rank, blocks) for rank, blocks in order]
        for (rank, blocks), answer in zip(order, answers, strict=True):
            assert sorted(answer.result(timeout=60)) == [(rank, number) for number in range(blocks)]
    assert air.most <= places
    assert sorted(air.seen) == sorted((rank, number) for rank, blocks in order for number in range(blocks))
    assert flight._held == 0


# ---- more places, or fewer -------------------------------------------------------------------------------------------


def test_workers_that_come_are_used_and_those_that_leave_are_not_missed() -> None:
    flight: BlockQueue[Sent] = BlockQueue(1)
    with lanes(flight, 2, 1) as (young, old):
        assert (news(young), news(old)) == ([Slot()], [])
        flight.resize(4)
        assert (news(young), news(old)) == ([], [Slot()] * 3), "the oldest first, as ever"
        flight.resize(2)
        for number in range(3):
            flight.complete(old, (1, number))
        assert (news(young), news(old)) == ([], [(1, 0), (1, 1), (1, 2), Slot()])


def test_a_flight_without_places_has_some_when_workers_come() -> None:
    flight: BlockQueue[Sent] = BlockQueue(0)
    with lanes(flight, 1) as (lane,):
        assert news(lane) == []
        flight.resize(2)
        assert news(lane) == [Slot()] * 2


def test_who_waits_is_told_why_it_was_closed() -> None:
    flight: BlockQueue[Sent] = BlockQueue(1)
    lost = ConnectionError("gone")
    with lanes(flight, 1) as (lane,):
        flight.close(lost)
        flight.close()
        flight.ask(lane)
        assert news(lane) == [Slot(), *[Closed(lost)] * 3]
