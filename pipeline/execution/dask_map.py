"""Map blocks on dask workers.

A task is one block. At most two blocks a thread run or wait at a worker, of all slides together and the oldest slide's
first, so neither the scheduler nor the client grows with the slide. A block that fails is recorded while the others
go on. A block whose worker died is retried with no other block running, so that blocks that waited at the same worker
are not blamed. This module owns the retries after the death of a worker; see ``pipeline.execution.blocks`` for those of
I/O errors. A worker of another release refuses its blocks, because its pixels might differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib import import_module
from queue import Empty, SimpleQueue
from typing import Any, TypeVar
from uuid import uuid4

from distributed import Client, Future, KilledWorker, fire_and_forget

from pipeline.errors import ClusterError, DiskError, OvertileError, ReadTimeoutError, WorkerError
from pipeline.execution.block_queue import BlockQueue, Closed, Slot, SlotQueue
from pipeline.execution.blocks import Counts, run_block_with_retry
from pipeline.stage_table import STAGE_TABLE
from pipeline.storage.manifest import package_version
from pipeline.storage.slide_store import Index

RELEASE = f"{package_version('overtile')}, stages {'.'.join(str(stage.version) for stage in STAGE_TABLE)}"
"""What decides, beside the plan, which pixels a block gets."""

T = TypeVar("T")

STOPPED = "the workers were stopped. Run the same command again to go on"
LOST = "the dask scheduler went away. What is done is kept: start it and run the same command again"


def run_block(release: str, function: Callable[[Index], Counts], index: Index) -> Counts:
    """Run one block in a worker.

    Raises:
        ClusterError: The worker is not of the release that sent the block.
    """
    if release != RELEASE:
        raise ClusterError(f"a worker has overtile {RELEASE}, this is {release}. Start workers of the same version")
    return run_block_with_retry(function, index)


@dataclass(slots=True)
class Failures:
    """Blocks that failed, to be raised when the others are done."""

    causes: dict[Index, BaseException] = field(default_factory=dict)

    def raise_first(self) -> None:
        """Raise the first failure in block order, with the number of others; return when there is none."""
        if not self.causes:
            return
        index, cause = min(self.causes.items())
        more = f" ({len(self.causes) - 1} more blocks failed)" if len(self.causes) > 1 else ""
        if isinstance(cause, OvertileError) and (not more or len(cause.args) > 1):
            raise cause  # a copy with another message would lose its other arguments
        if isinstance(cause, OvertileError):
            raise type(cause)(f"{cause}{more}") from cause
        raise WorkerError(f"block (row {index[0]}, col {index[1]}): {type(cause).__name__}: {cause}{more}") from cause


@dataclass(frozen=True, slots=True)
class CompletedBlock:
    """A block that has ended, with or without an error."""

    index: Index
    future: Future[Counts]


@dataclass(frozen=True, slots=True)
class DaskMap:
    """Map blocks on a dask cluster.

    Attributes:
        client: Client of the cluster.
        queue: Slots of running blocks, shared by all slides.
        rank: Position of the slide in the batch; the lowest goes first.
        submit_options: Returns arguments of dask's ``submit`` that decide where a block runs.
    """

    client: Client
    queue: BlockQueue[CompletedBlock]
    rank: int = 0
    submit_options: Callable[[], Mapping[str, Any]] = dict

    def __call__(self, function: Callable[[Index], Counts], indices: Iterable[Index]) -> Iterator[Counts]:
        """Yield the counts of blocks as they finish.

        Raises:
            OvertileError: The first failure in block order, after the other blocks are done.
        """
        failures = Failures()
        suspects: list[Index] = []
        for index, result in self._submit_bounded(function, iter(indices)):
            if isinstance(result, KilledWorker):
                suspects.append(index)
            elif isinstance(result, BaseException):
                failures.causes[index] = result
            else:
                yield result
        for suspect in suspects:
            for index, result in self._submit_bounded(function, iter([suspect]), alone=True):
                if isinstance(result, BaseException):
                    failures.causes[index] = _explain(index, result)
                else:
                    yield result
        failures.raise_first()

    def prepare(self, module: str) -> None:
        """Let every worker import a module that its blocks will need; do not wait for it."""
        for worker in self.client.scheduler_info()["workers"]:
            fire_and_forget(self.client.submit(import_module, module, workers=[worker], pure=False))

    def ranked(self, rank: int) -> DaskMap:
        """The same workers and slots for another slide."""
        return replace(self, rank=rank)

    def _submit_bounded(
        self, function: Callable[[Index], Counts], indices: Iterator[Index], *, alone: bool = False
    ) -> Iterator[tuple[Index, Counts | BaseException]]:
        """Send blocks as slots become free, until there are none left or the disk failed."""
        sending, running = True, set[Future[Counts]]()
        with self.queue.slot_queue(self.rank, alone=alone) as slots:
            try:
                while sending or running:
                    events = list(_all_events(slots.inbox))
                    results = self._results([event for event in events if isinstance(event, CompletedBlock)])
                    for event in events:
                        match event:
                            case Slot():
                                index = next(indices, None) if sending else None
                                sending = index is not None
                                if index is None:
                                    self.queue.give_back(slots)
                                    continue
                                running.add(self._send(function, index, slots))
                                self.queue.request(slots)
                            case CompletedBlock(index, future):
                                running.remove(future)
                                result = results[future]
                                sending = sending and not isinstance(
                                    result, DiskError | ClusterError | ReadTimeoutError
                                )
                                future.release()
                                yield index, result
                            case Closed(why):
                                raise why or WorkerError(STOPPED)
            finally:
                for future in running:  # their results are not needed any more
                    future.release()

    def _results(self, blocks: Sequence[CompletedBlock]) -> dict[Future[Counts], Counts | BaseException]:
        """Results of completed blocks, fetched together because each request goes all the way through dask."""
        finished = {block.future.key: block.future for block in blocks if block.future.status == "finished"}
        gathered = self.client.gather(finished, errors="skip") if finished else {}
        pairs = ((block.future, gathered.get(block.future.key)) for block in blocks)
        return {future: _result(future) if counts is None else counts for future, counts in pairs}

    def _send(
        self, function: Callable[[Index], Counts], index: Index, slots: SlotQueue[CompletedBlock]
    ) -> Future[Counts]:
        name = getattr(getattr(function, "func", function), "__name__", "block")
        options = {"key": f"{name}-{uuid4()}", "priority": -self.rank, **self.submit_options()}
        future = self.client.submit(run_block, RELEASE, function, index, **options)
        future.add_done_callback(lambda done: self.queue.complete(slots, CompletedBlock(index, done)))
        return future


def _all_events(inbox: SimpleQueue[T]) -> Iterator[T]:
    """All that is in the inbox; waits for the first event."""
    yield inbox.get()
    with suppress(Empty):
        while True:
            yield inbox.get_nowait()


def _result(future: Future[Counts]) -> Counts | BaseException:
    if future.status == "cancelled":
        return ClusterError(LOST)
    error: BaseException | None = future.exception()
    if error is not None:
        return error
    try:
        counts: Counts = future.result()
    except KilledWorker as killed:  # the result was lost with its worker, and those that recomputed it died as well
        return killed
    return counts


def _explain(index: Index, error: BaseException) -> BaseException:
    if not isinstance(error, KilledWorker):
        return error
    return WorkerError(
        f"block (row {index[0]}, col {index[1]}): its worker process died every time, also alone: out of "
        "memory (use a smaller tiles.block or fewer cluster.workers) or a decoder that aborts on this slide"
    )
