"""What every stage is handed and what it hands back.

A stage module has two public functions: ``<verb>_block(work, section, index)`` opens, reads, computes, writes its own
shard and returns counts, never pixels; ``<verb>_slide(work, section, map_blocks)`` creates the array, maps the blocks
that are not done, finishes and stamps. The one decision made here: who maps (this process, dask) is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pipeline.errors import DiskError, WorkerError
from pipeline.geometry import Box, TileGrid
from pipeline.storage.slide_store import Index, SlideStore

T = TypeVar("T")

Counts = dict[str, int]
"""A block's small answer to the caller: what it did, in numbers."""


class MapBlocks(Protocol):
    """Apply a function to blocks and yield the answers in any order. Raises WorkerError after the others are done."""

    def __call__(self, function: Callable[[Index], Counts], indices: Iterable[Index]) -> Iterator[Counts]:
        """Answers, as blocks finish."""
        ...


@dataclass(frozen=True, slots=True)
class StageContext:
    """Where a stage works: the slide's folder, the image it covers and the plan it belongs to."""

    root: Path
    shape_yx: tuple[int, int]
    block_px: int
    plan: str

    @property
    def store(self) -> SlideStore:
        """The slide's folder."""
        return SlideStore(self.root)

    @property
    def grid(self) -> TileGrid:
        """The blocks: cores of one shard, no halo."""
        return TileGrid(Box.of_shape(self.shape_yx), self.block_px)

    def core(self, index: Index) -> Box:
        """Pixels that the block at (row, col) owns."""
        return self.grid.tile(*index).core


@dataclass(slots=True)
class StageReport:
    """What a run did for one stage of one slide."""

    stage: str
    blocks: int = 0
    computed: int = 0
    counts: Counts = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def add(self, counts: Counts) -> None:
        """Count one finished block."""
        self.computed += 1
        for name, number in counts.items():
            self.counts[name] = self.counts.get(name, 0) + number


def run_blocks(
    stage: str, work: StageContext, done: set[Index], function: Callable[[Index], Counts], map_blocks: MapBlocks
) -> StageReport:
    """Map ``function`` over the blocks that are not done and count what was computed."""
    todo = [tile.index for tile in work.grid if tile.index not in done]
    report = StageReport(stage, blocks=len(work.grid))
    for counts in map_blocks(function, todo):
        report.add(counts)
    return report


RETRIES = 2
"""How often something is tried again after an I/O error that may pass."""


def serial(function: Callable[[Index], Counts], indices: Iterable[Index]) -> Iterator[Counts]:
    """Map blocks in this process, one after the other; the first failure ends it."""
    return (run_block_with_retry(function, index) for index in indices)


def run_block_with_retry(function: Callable[[Index], Counts], index: Index) -> Counts:
    """Run one block, again after an I/O error that may pass.

    Raises WorkerError naming the block when it stays, or when the block asks for more memory than it may have.
    """
    where = f"block (row {index[0]}, col {index[1]})"
    try:
        return retry_io(lambda: function(index))
    except DiskError:
        raise
    except OSError as error:
        raise WorkerError(f"{where}: {error}, {RETRIES + 1} times in a row") from error
    except MemoryError as error:
        raise WorkerError(
            f"{where}: it asks for more memory than a worker may have: {error}. Use a smaller tiles.block"
        ) from error


def retry_io(call: Callable[[], T]) -> T:
    """Call; again after an I/O error that may pass (not when the disk is full or read-only)."""
    for _ in range(RETRIES):
        try:
            return call()
        except DiskError:
            raise
        except OSError:
            continue
    return call()
