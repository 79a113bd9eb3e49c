"""Two threads of a worker, as for CUDA: one reads and writes while the other computes, and no byte changes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.execution.blocks import Counts, run_block_with_retry
from pipeline.inference.predictor import MirroredRegion, Predictor
from pipeline.storage.layout import PROBABILITY
from pipeline.storage.slide_store import Index
from tests.support.make_store import tree_bytes
from tests.unit.pipeline.predicting import CONTEXT, cut, forward_of, network_of, slide, with_forward

PATIENCE_S = 60


def two_threads(function: Callable[[Index], Counts], indices: Iterable[Index]) -> Iterator[Counts]:
    """Map blocks as a worker with two threads does."""
    with ThreadPoolExecutor(2) as pool:
        yield from pool.map(partial(run_block_with_retry, function), indices)


@pytest.fixture
def network() -> Iterator[Predictor]:
    """The network of this process, restored at the end."""
    network = network_of(CONTEXT)
    members = network.members
    yield network
    network.members = members


def test_two_threads_write_what_one_writes(tmp_path: Path) -> None:
    image = cut(1100, 1300)
    alone, together = slide(tmp_path / "one", image), slide(tmp_path / "two", image)
    counts = alone.run().counts
    assert together.run(two_threads).counts == counts
    written = [tree_bytes(one.work.store.zarr / PROBABILITY) for one in (alone, together)]
    assert written[0] == written[1]


def test_threads_overlap_reading_and_computing_but_never_compute_together(
    tmp_path: Path, network: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first call of the network ends only when a second block has been read."""
    compute, around = forward_of(network), MirroredRegion.read_around
    reads, computing, most = [0], [0], [0]
    second_read = threading.Event()

    def counted_read(*given: Any) -> MirroredRegion:
        region = around(*given)
        reads[0] += 1
        if reads[0] == 2:
            second_read.set()
        return region

    def held(x_NCHW: torch.Tensor) -> torch.Tensor:
        computing[0] += 1
        most[0] = max(most[0], computing[0])
        assert second_read.wait(PATIENCE_S), "nothing was read while the network computed"
        answer = compute(x_NCHW)
        computing[0] -= 1
        return answer

    monkeypatch.setattr(MirroredRegion, "read_around", staticmethod(counted_read))
    network.members = with_forward(network, held).members
    report = slide(tmp_path, cut(1000, 1000)).run(two_threads)
    assert report.counts["network_calls"] > 4
    assert most == [1]
