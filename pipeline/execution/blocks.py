"""What a stage receives and what it returns, and how blocks are run and retried.

A stage module has two public functions: ``<verb>_block(context, inputs, index)`` opens, reads, computes, writes its own
shard and returns counts, never pixels; ``<verb>_slide(context, inputs, map_blocks)`` creates the array, maps the blocks
that are not done, finishes and stamps. How blocks are mapped (in this process, by dask) is an argument.

Each kind of failure is retried in one place:

    I/O error in a block            run_block_with_retry, in the process that runs the block; then it is a WorkerError,
                                    which is not retried
    death of a worker               dask_map.DaskMap
    I/O error outside blocks        retry_io around the step (SlideRun.step and .finish, planning); this includes a lost
                                    connection to the scheduler, and never the errors of blocks
    full or read-only disk          nowhere
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
"""Counters returned for one block."""


class MapBlocks(Protocol):
    """Apply a function to blocks and yield the counts in any order."""

    def __call__(self, function: Callable[[Index], Counts], indices: Iterable[Index]) -> Iterator[Counts]:
        """Yield the counts of blocks as they finish.

        Args:
            function: Computes and writes the block at (row, col).
            indices: (row, col) of the blocks; drawn as workers become free.

        Raises:
            OvertileError: The first failure of a block, after the other blocks are done.
        """
        ...


@dataclass(frozen=True, slots=True)
class StageContext:
    """Where a stage works.

    Attributes:
        root: The slide's folder.
        shape_yx: Height and width of the image in pixels.
        block_px: Side of a block, which is one shard, in pixels.
        plan_hash: Hash of the stage's plan; what the stage writes belongs to it.
    """

    root: Path
    shape_yx: tuple[int, int]
    block_px: int
    plan_hash: str

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
    """What a run did for one stage of one slide.

    Attributes:
        stage: Name of the stage.
        blocks: Number of blocks of the slide.
        computed: Number of blocks computed by this run.
        counts: Sums of the counters of these blocks.
        facts: What the stage records in its stamp.
    """

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
    stage: str, context: StageContext, done: set[Index], function: Callable[[Index], Counts], map_blocks: MapBlocks
) -> StageReport:
    """Map ``function`` over the blocks that are not done, and count what was computed."""
    todo = [tile.index for tile in context.grid if tile.index not in done]
    report = StageReport(stage, blocks=len(context.grid))
    for counts in map_blocks(function, todo):
        report.add(counts)
    return report


RETRIES = 2
"""Number of retries after an I/O error that may be transient."""


def serial(function: Callable[[Index], Counts], indices: Iterable[Index]) -> Iterator[Counts]:
    """Map blocks in this process, one after the other; stop at the first failure."""
    return (run_block_with_retry(function, index) for index in indices)


def run_block_with_retry(function: Callable[[Index], Counts], index: Index) -> Counts:
    """Run one block, and retry after an I/O error that may be transient.

    Raises:
        WorkerError: The error persists, or the block needs more memory than the worker may have. Names the block.
        DiskError: The disk is full or read-only.
    """
    block = f"block (row {index[0]}, col {index[1]})"
    try:
        return retry_io(lambda: function(index))
    except DiskError:
        raise
    except OSError as error:
        raise WorkerError(f"{block}: {error}, {RETRIES + 1} times in a row") from error
    except MemoryError as error:
        raise WorkerError(
            f"{block}: it needs more memory than a worker may have: {error}. Use a smaller tiles.block"
        ) from error


def retry_io(call: Callable[[], T]) -> T:
    """Call a function, and retry after an OSError that may be transient; not when the disk is full or read-only."""
    for _ in range(RETRIES):
        try:
            return call()
        except DiskError:
            raise
        except OSError:
            continue
    return call()
