"""How blocks are mapped by dask workers, and how those of this machine are started.

The one decision made here: a task is one block, a worker is one process with one computing thread, and at most two
blocks a thread are in flight, of all slides together and the oldest slide's first, so neither the scheduler nor the
client grows with the slide. A block that fails is remembered while the others go on; a block that kills its worker is
tried again with nothing else in flight, so that innocents queued behind it are not blamed. Workers of another release
give no answer: their pixels might be others.
"""

from __future__ import annotations

import gc
import os
import resource
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from queue import Empty, SimpleQueue
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, TypeVar
from uuid import uuid4

import dask
from distributed import (
    Client,
    Future,
    KilledWorker,
    Nanny,
    Scheduler,
    SpecCluster,
    Worker,
    WorkerPlugin,
    fire_and_forget,
)
from distributed.system import MEMORY_LIMIT

from pipeline.background import Wait, background_thread
from pipeline.errors import ClusterError, DiskError, OvertileError, ReadTimeoutError, WorkerError
from pipeline.execution.block_queue import BlockQueue, Closed, Slot, SlotQueue
from pipeline.execution.blocks import Counts, run_block_with_retry
from pipeline.stage_table import STAGE_TABLE
from pipeline.storage.manifest import package_version
from pipeline.storage.slide_store import Index

ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**31 - 1),
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
}
"""What a worker process starts with. One heap for all its threads, which keeps what was freed for the next block: with
glibc's heap for every thread memory grows from block to block, and returned pages cost time at every layer."""

SETTINGS: Mapping[str, Any] = MappingProxyType(
    {
        "distributed.worker.memory.target": False,  # nothing is kept on workers: no spilling, no pausing
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.worker.memory.terminate": False,
        "distributed.worker.profile.enabled": False,  # watching itself costs dask 4 % of two cores
        "distributed.admin.tick.interval": "1s",
        "distributed.admin.low-level-log-length": 100,  # of the last messages to each worker, a kilobyte each
        "distributed.admin.system-monitor.interval": "10s",
        "distributed.worker.memory.monitor-interval": "10s",
        "distributed.scheduler.allowed-failures": 1,
        "distributed.nanny.pre-spawn-environ": ENVIRONMENT,
    }
)
"""What dask is told, here and (`configs/dask.yaml`) where scheduler and workers are started by hand."""

CEILING_BYTES = max(4 << 30, MEMORY_LIMIT // 2)
"""What one worker may hold: a slide made to fill the memory fails by name, before the system ends somebody else's."""

LOOK_S = 5.0
"""So often it is seen to that all workers of this machine are there."""

DEVICES, GPU, GPU_THREADS = "CUDA_VISIBLE_DEVICES", "GPU", 2
"""The resource of a worker with a GPU: as many as threads, of which one computes while the other reads and writes."""

LOST_AFTER, FOR_EVER = "distributed.deploy.lost-worker-timeout", "8760 hours"
"""When dask looks again for a worker that was gone, and ends one that is just being started anew after another death:
the block it got meanwhile counts as one that kills. ``_keep_up`` looks for those that stay away."""

STEALING = "distributed.scheduler.work-stealing"
"""Off where there are GPUs: an idle worker that has one would steal blocks that are for the others."""

RELEASE = f"{package_version('overtile')}, stages {'.'.join(str(stage.version) for stage in STAGE_TABLE)}"
"""What decides, beside the plan, which pixels a block gets."""

T = TypeVar("T")

STOPPED = "the workers were stopped. Run the same command again to go on"
LOST = "the dask scheduler went away. What is done is kept: start it and run the same command again"


def run_block(release: str, function: Callable[[Index], Counts], index: Index) -> Counts:
    """Run one block in a worker. Raises ClusterError when it is not of the release that sent the block."""
    if release != RELEASE:
        raise ClusterError(f"a worker has overtile {RELEASE}, this is {release}. Start workers of the same version")
    return run_block_with_retry(function, index)


@dataclass(slots=True)
class Failures:
    """The blocks that failed, to be raised when the others are done."""

    causes: dict[Index, BaseException] = field(default_factory=dict)

    def raise_first(self) -> None:
        """Raise the first failure in block order, saying how many there are; return when there is none."""
        if not self.causes:
            return
        index, cause = min(self.causes.items())
        more = f" ({len(self.causes) - 1} more blocks failed)" if len(self.causes) > 1 else ""
        if isinstance(cause, OvertileError) and (not more or len(cause.args) > 1):
            raise cause  # a number or a place it carries would be lost in a copy with another message
        if isinstance(cause, OvertileError):
            raise type(cause)(f"{cause}{more}") from cause
        raise WorkerError(f"block (row {index[0]}, col {index[1]}): {type(cause).__name__}: {cause}{more}") from cause


@dataclass(frozen=True, slots=True)
class CompletedBlock:
    """A block that is done, well or not."""

    index: Index
    future: Future[Counts]


@dataclass(frozen=True, slots=True)
class DaskMap:
    """Map blocks on a dask cluster through ``client``. All slides share one ``flight``; lower ``rank`` goes first.

    ``place`` says where a block may run now, in the words of dask's ``submit``.
    """

    client: Client
    flight: BlockQueue[CompletedBlock]
    rank: int = 0
    place: Callable[[], Mapping[str, Any]] = dict

    def __call__(self, function: Callable[[Index], Counts], indices: Iterable[Index]) -> Iterator[Counts]:
        """Answers as blocks finish. Raises the first failure after the others are done."""
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
        """Let every worker import a module that its blocks will need, and do not wait for it."""
        for worker in self.client.scheduler_info()["workers"]:
            fire_and_forget(self.client.submit(import_module, module, workers=[worker], pure=False))

    def ranked(self, rank: int) -> DaskMap:
        """The same workers and flight for another slide."""
        return replace(self, rank=rank)

    def _submit_bounded(
        self, function: Callable[[Index], Counts], indices: Iterator[Index], *, alone: bool = False
    ) -> Iterator[tuple[Index, Counts | BaseException]]:
        """Send blocks as places become free, until there are none left or the disk failed."""
        sending, in_air = True, set[Future[Counts]]()
        with self.flight.lane(self.rank, alone=alone) as lane:
            try:
                while sending or in_air:
                    news = list(_all_there(lane.inbox))
                    results = self._results([new for new in news if isinstance(new, CompletedBlock)])
                    for new in news:
                        match new:
                            case Slot():
                                index = next(indices, None) if sending else None
                                sending = index is not None
                                if index is None:
                                    self.flight.give_back(lane)
                                    continue
                                in_air.add(self._send(function, index, lane))
                                self.flight.ask(lane)
                            case CompletedBlock(index, future):
                                in_air.remove(future)
                                result = results[future]
                                sending = sending and not isinstance(
                                    result, DiskError | ClusterError | ReadTimeoutError
                                )
                                future.release()
                                yield index, result
                            case Closed(why):
                                raise why or WorkerError(STOPPED)
            finally:
                for future in in_air:  # nobody listens any more
                    future.release()

    def _results(self, landed: Sequence[CompletedBlock]) -> dict[Future[Counts], Counts | BaseException]:
        """What came of blocks: fetched together, for each question goes all the way through dask."""
        done = {one.future.key: one.future for one in landed if one.future.status == "finished"}
        answers = self.client.gather(done, errors="skip") if done else {}
        found = ((one.future, answers.get(one.future.key)) for one in landed)
        return {future: _result(future) if answer is None else answer for future, answer in found}

    def _send(
        self, function: Callable[[Index], Counts], index: Index, lane: SlotQueue[CompletedBlock]
    ) -> Future[Counts]:
        name = getattr(getattr(function, "func", function), "__name__", "block")
        how = {"key": f"{name}-{uuid4()}", "priority": -self.rank, **self.place()}
        future = self.client.submit(run_block, RELEASE, function, index, **how)
        future.add_done_callback(lambda done: self.flight.complete(lane, CompletedBlock(index, done)))
        return future


def _all_there(inbox: SimpleQueue[T]) -> Iterator[T]:
    """What is in the queue, waited for if it is empty."""
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
    except KilledWorker as killed:  # the worker died with the answer, and so did those that were to compute it again
        return killed
    return counts


def _explain(index: Index, error: BaseException) -> BaseException:
    if not isinstance(error, KilledWorker):
        return error
    return WorkerError(
        f"block (row {index[0]}, col {index[1]}): its worker process died every time, also alone: out of "
        "memory (use a smaller tiles.block or fewer cluster.workers) or a decoder that aborts on this slide"
    )


@dataclass(frozen=True, slots=True)
class MemoryLimit(WorkerPlugin):
    """Let a worker hold no more than so many bytes, or than it may already: what asks for more gets a MemoryError.

    Not one with a GPU, for which CUDA reserves far more than it uses.
    """

    bytes: int

    def setup(self, worker: Worker) -> None:
        """Set it, in a worker that starts."""
        if GPU not in worker.state.total_resources and worker.state.nthreads == 1:
            now, hardest = resource.getrlimit(resource.RLIMIT_DATA)
            lowest = min([self.bytes, *(one for one in (now, hardest) if one != resource.RLIM_INFINITY)])
            resource.setrlimit(resource.RLIMIT_DATA, (lowest, hardest))


@contextmanager
def local_client(workers: int, threads: int = 1, gpus: Sequence[str] = ()) -> Iterator[Client]:
    """Worker processes on this machine, all sockets on 127.0.0.1, gone when the block ends.

    Beside those there is one for each of ``gpus``, names for CUDA_VISIBLE_DEVICES, which alone sees it and has the
    resource GPU. ``threads`` above 1 is for CUDA, where one computes while others read and write.
    """
    place = {"host": "127.0.0.1", "protocol": "tcp://"}
    nanny = {**place, "dashboard": False, "memory_limit": None, "silence_logs": 50}
    blind = {"env": {DEVICES: ""}} if gpus else {}
    team: dict[int | str, dict[str, Any]] = {
        number: {"cls": Nanny, "options": {**nanny, **blind, "nthreads": threads}} for number in range(workers)
    }
    for gpu in gpus:
        pinned = {"env": {DEVICES: gpu}, "resources": {GPU: GPU_THREADS}, "nthreads": GPU_THREADS}
        team[f"gpu-{gpu}"] = {"cls": Nanny, "options": {**nanny, **pinned}}
    scheduler = {"cls": Scheduler, "options": {**place, "port": 0, "dashboard_address": "127.0.0.1:0"}}
    with (
        TemporaryDirectory(prefix="overtile-") as scratch,
        dask.config.set({**SETTINGS, "temporary-directory": scratch, STEALING: not gpus, LOST_AFTER: FOR_EVER}),
        SpecCluster(workers=team, scheduler=scheduler, silence_logs=50) as cluster,
        Client(cluster, set_as_default=False) as client,
        background_thread("keeping workers", partial(_restart_dead_workers, cluster, len(team))),
    ):
        client.register_plugin(MemoryLimit(CEILING_BYTES))
        yield client
        client.run(gc.freeze)  # workers end without a last collection of all that they imported: half a second


def _restart_dead_workers(cluster: SpecCluster, workers: int, wait: Wait) -> None:
    """Start anew whatever worker was given up.

    dask restarts a worker that died, but gives it up for good when it dies again before it was ready, as it does where
    a block that kills waits for it. Without workers a run would wait for ever.
    """
    without: set[tuple[int | str, Nanny]] = set()
    while not wait(LOOK_S):
        without = cluster.sync(_restart_workers, cluster, workers, without)


async def _restart_workers(
    cluster: SpecCluster, workers: int, without: set[tuple[int | str, Nanny]]
) -> set[tuple[int | str, Nanny]]:
    """Who has no process now. Of those, who was ``without`` one a look ago is let go, and another one started."""
    now = {(name, nanny) for name, nanny in cluster.workers.items() if not nanny.is_alive()}
    for name, nanny in now & without:
        del cluster.workers[name]
        await nanny.close()
    cluster.scale(workers)  # changes nothing where all are there
    return now - without


@contextmanager
def local_cluster(workers: int, threads: int = 1) -> Iterator[DaskMap]:
    """Map blocks on worker processes of this machine."""
    with local_client(workers, threads) as client:
        flight: BlockQueue[CompletedBlock] = BlockQueue(2 * workers * threads)
        try:
            yield DaskMap(client, flight)
        finally:
            flight.close()


def resolve_workers(workers: int | str) -> int:
    """``auto`` is one worker per core this process may use."""
    return len(os.sched_getaffinity(0)) if workers == "auto" else int(workers)
