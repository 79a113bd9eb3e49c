"""Blocks that a scheduler delivers twice.

A lost result looks like a lost block, so a block may run twice, even at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.execution.blocks import Counts, run_block_with_retry
from pipeline.runs.slide_run import SlideRun
from pipeline.storage.slide_store import Index, SlideStore
from tests.support.commands import result_digests
from tests.support.run_slide import plans_of_discs, run


def twice_at_once(function: Callable[[Index], Counts], indices: Iterable[Index]) -> Iterator[Counts]:
    """Process every block in two threads at the same time."""
    with ThreadPoolExecutor(2) as threads:
        for index in indices:
            first, second = (
                threads.submit(run_block_with_retry, function, index),
                threads.submit(run_block_with_retry, function, index),
            )
            second.result()
            yield first.result()


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")  # rasterio hides it for one thread only
def test_fault_14_blocks_delivered_twice_at_once_are_the_same_bytes(tmp_path: Path) -> None:
    plan = plans_of_discs(tmp_path, (700, 1100))("outputs.overview=false")
    run(plan, tmp_path / "once")
    slide = SlideRun(plan, SlideStore(tmp_path / "twice"))
    slide.prepare()
    for stage in plan.hashes:
        slide.step(stage, twice_at_once)
    slide.finish()
    assert result_digests(tmp_path / "twice") == result_digests(tmp_path / "once")
    assert not list((tmp_path / "twice").rglob("*.partial"))
