"""Batches drawn ahead of the network by threads, in an order no thread decides.

Decision: the run's generator only seeds tiles, and only in the thread of the run; what a tile shows follows from its
seed. So the batches are those of drawing one by one, to the bit, with any number of threads, and the generator's state
before the next batch is all that a run needs to go on from there.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import torch
from torch import Generator, Tensor

from unet_core.samples import Batch, Sampler, stack

AHEAD = 2
"""Batches drawn or being drawn while the network works on another."""

Tiles = list[Future[tuple[Tensor, Tensor, Tensor]]]


class Batches(Iterator[Batch]):
    """All the batches a generator's state stands for, without end. To be closed, or used in a `with` statement."""

    def __init__(self, sampler: Sampler, generator: Generator, threads: int | None = None) -> None:
        self._sampler, self._generator = sampler, generator
        self._pool = ThreadPoolExecutor(threads or max(1, len(os.sched_getaffinity(0)) - 1), "tiles", _draw_alone)
        self._waiting: deque[tuple[Tensor, Tiles]] = deque()

    @property
    def state(self) -> Tensor:
        """The state of the generator from which the next batch is drawn: what a run that is to go on must store."""
        return self._waiting[0][0] if self._waiting else self._generator.get_state()

    def __next__(self) -> Batch:
        while len(self._waiting) <= AHEAD:
            state = self._generator.get_state()
            tiles = [self._pool.submit(self._sampler.tile, seed) for seed in self._sampler.seeds(self._generator)]
            self._waiting.append((state, tiles))
        _, tiles = self._waiting.popleft()
        return stack([tile.result() for tile in tiles])

    def close(self) -> None:
        """Draw nothing more."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _draw_alone() -> None:
    """Let this thread compute by itself: a tile is too small to share, and waiting for each other takes cores away."""
    torch.set_num_threads(1)
