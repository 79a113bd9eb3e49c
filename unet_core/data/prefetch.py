"""Batches drawn by threads, in an order that does not depend on the threads.

On a GPU, batches are drawn while the network computes. On a CPU, the network waits while one tile per core is drawn: a
network's threads wait for the slowest of them at every layer, so one that shares its core with a tile delays all.

The run's generator only seeds tiles, in the thread of the run, and a tile follows from its seed. So batches equal those
of drawing one by one, to the bit, for any number of threads, and the generator's state before the next batch is enough
to resume a run.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Self

import torch
from torch import Generator, Tensor

from unet_core.data.sampler import SampleBatch, Sampler, stack

AHEAD = 2
"""Batches drawn or being drawn while a GPU works on another."""

Tiles = list[Future[tuple[Tensor, ...]]]


class Batches(Iterator[SampleBatch]):
    """Endless iterator over the batches of a generator; a context manager.

    Args:
        sampler: Draws tiles.
        generator: Source of the tiles' seeds.
        threads: Number of threads; None: according to device and cores.
        ahead: Batches drawn while the network computes; 0: the network waits; None: according to the device.
    """

    def __init__(
        self, sampler: Sampler, generator: Generator, threads: int | None = None, ahead: int | None = None
    ) -> None:
        self._sampler, self._generator = sampler, generator
        beside = torch.device(sampler.device).type != "cpu"
        self._ahead = (AHEAD if beside else 0) if ahead is None else ahead
        cores = len(os.sched_getaffinity(0))
        self._threads = threads or (max(1, cores - 1) if self._ahead else cores)
        self._pool = ThreadPoolExecutor(self._threads, "tiles", _draw_alone)
        self._waiting: deque[tuple[Tensor, Tiles]] = deque()

    @property
    def state(self) -> Tensor:
        """State of the generator before the next batch; a run stores it to resume."""
        return self._waiting[0][0] if self._waiting else self._generator.get_state()

    def __next__(self) -> SampleBatch:
        if self._ahead:
            while len(self._waiting) <= self._ahead:
                self._begin()
        elif not self._waiting:
            while sum(len(tiles) for _, tiles in self._waiting) < self._threads:
                self._begin()
            wait(tile for _, tiles in self._waiting for tile in tiles)
        _, tiles = self._waiting.popleft()
        return stack([tile.result() for tile in tiles])

    def _begin(self) -> None:
        """Submit one more batch."""
        state = self._generator.get_state()
        tiles = [self._pool.submit(self._sampler.tile, seed) for seed in self._sampler.seeds(self._generator)]
        self._waiting.append((state, tiles))

    def close(self) -> None:
        """Stop drawing."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _draw_alone() -> None:
    """Use one torch thread in this thread: a tile is too small to share among threads."""
    torch.set_num_threads(1)
