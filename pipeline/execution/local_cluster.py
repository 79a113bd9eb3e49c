"""Dask workers of this machine, and the settings of every worker.

A worker is one process with one computing thread. A worker that dies is restarted; one that dask gives up is replaced.
"""

from __future__ import annotations

import gc
import os
import resource
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import dask
from distributed import Client, Nanny, Scheduler, SpecCluster, Worker, WorkerPlugin
from distributed.system import MEMORY_LIMIT

from pipeline.background import Wait, background_thread
from pipeline.execution.block_queue import BlockQueue
from pipeline.execution.dask_map import CompletedBlock, DaskMap

ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**31 - 1),
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
}
"""Environment of a worker process. All threads share one heap, which keeps freed memory for the next block: with
glibc's heap for every thread memory grows from block to block, and returned pages cost time at every layer."""

SETTINGS: Mapping[str, Any] = MappingProxyType(
    {
        "distributed.worker.memory.target": False,  # workers keep nothing: no spilling, no pausing
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.worker.memory.terminate": False,
        "distributed.worker.profile.enabled": False,  # profiling costs dask 4 % of two cores
        "distributed.admin.tick.interval": "1s",
        "distributed.admin.low-level-log-length": 100,  # messages kept for each worker, a kilobyte each
        "distributed.admin.system-monitor.interval": "10s",
        "distributed.worker.memory.monitor-interval": "10s",
        "distributed.scheduler.allowed-failures": 1,
        "distributed.nanny.pre-spawn-environ": ENVIRONMENT,
    }
)
"""Dask settings, here and (`configs/dask.yaml`) where scheduler and workers are started by hand."""

CEILING_BYTES = max(4 << 30, MEMORY_LIMIT // 2)
"""Memory limit of a worker: a slide made to fill the memory fails by name, before the system kills other processes."""

LOOK_S = 5.0
"""Interval at which dead workers of this machine are looked for."""

DEVICES, GPU, GPU_THREADS = "CUDA_VISIBLE_DEVICES", "GPU", 2
"""The resource of a worker with a GPU: as many as threads, of which one computes while the other reads and writes."""

LOST_AFTER, FOR_EVER = "distributed.deploy.lost-worker-timeout", "8760 hours"
"""Time after which dask removes a lost worker. With a short time dask also ends a worker that is just restarting after
another death, and the block that it received meanwhile counts as one that kills. ``_restart_dead_workers`` replaces
workers that stay away."""

STEALING = "distributed.scheduler.work-stealing"
"""Switched off where there are GPUs: an idle worker with a GPU would steal blocks that are meant for the others."""


@dataclass(frozen=True, slots=True)
class MemoryLimit(WorkerPlugin):
    """Limit the memory of a worker to ``bytes``, or to its present limit: larger requests raise MemoryError.

    Workers with a GPU have no limit, because CUDA reserves far more than it uses.
    """

    bytes: int

    def setup(self, worker: Worker) -> None:
        """Set the limit in a worker that starts."""
        if GPU not in worker.state.total_resources and worker.state.nthreads == 1:
            now, hardest = resource.getrlimit(resource.RLIMIT_DATA)
            lowest = min([self.bytes, *(limit for limit in (now, hardest) if limit != resource.RLIM_INFINITY)])
            resource.setrlimit(resource.RLIMIT_DATA, (lowest, hardest))


@contextmanager
def local_client(workers: int, threads: int = 1, gpus: Sequence[str] = ()) -> Iterator[Client]:
    """Start worker processes on this machine, all sockets on 127.0.0.1; they end with the ``with`` block.

    Args:
        workers: Number of workers without a GPU.
        threads: Threads of each; more than 1 is for CUDA, where one thread computes while others read and write.
        gpus: Values of CUDA_VISIBLE_DEVICES. Each gets one more worker, which sees that device alone and has the
            resource GPU.

    Yields:
        A client of the cluster.
    """
    address = {"host": "127.0.0.1", "protocol": "tcp://"}
    nanny = {**address, "dashboard": False, "memory_limit": None, "silence_logs": 50}
    no_gpu = {"env": {DEVICES: ""}} if gpus else {}
    specs: dict[int | str, dict[str, Any]] = {
        number: {"cls": Nanny, "options": {**nanny, **no_gpu, "nthreads": threads}} for number in range(workers)
    }
    for gpu in gpus:
        pinned = {"env": {DEVICES: gpu}, "resources": {GPU: GPU_THREADS}, "nthreads": GPU_THREADS}
        specs[f"gpu-{gpu}"] = {"cls": Nanny, "options": {**nanny, **pinned}}
    scheduler = {"cls": Scheduler, "options": {**address, "port": 0, "dashboard_address": "127.0.0.1:0"}}
    with (
        TemporaryDirectory(prefix="overtile-") as scratch,
        dask.config.set({**SETTINGS, "temporary-directory": scratch, STEALING: not gpus, LOST_AFTER: FOR_EVER}),
        SpecCluster(workers=specs, scheduler=scheduler, silence_logs=50) as cluster,
        Client(cluster, set_as_default=False) as client,
        background_thread("restarting workers", partial(_restart_dead_workers, cluster, len(specs))),
    ):
        client.register_plugin(MemoryLimit(CEILING_BYTES))
        yield client
        client.run(gc.freeze)  # saves the last garbage collection of all imports in each worker: half a second


def _restart_dead_workers(cluster: SpecCluster, workers: int, wait: Wait) -> None:
    """Replace workers that dask has given up.

    dask restarts a worker that died, but gives it up for good when it dies again before it was ready, as happens where
    a block that kills waits for it. Without workers a run would wait for ever.
    """
    dead: set[tuple[int | str, Nanny]] = set()
    while not wait(LOOK_S):
        dead = cluster.sync(_restart_workers, cluster, workers, dead)


async def _restart_workers(
    cluster: SpecCluster, workers: int, dead: set[tuple[int | str, Nanny]]
) -> set[tuple[int | str, Nanny]]:
    """Replace workers that have had no process since the last look; return those that have none now."""
    now = {(name, nanny) for name, nanny in cluster.workers.items() if not nanny.is_alive()}
    for name, nanny in now & dead:
        del cluster.workers[name]
        await nanny.close()
    cluster.scale(workers)  # changes nothing when all workers are there
    return now - dead


@contextmanager
def local_cluster(workers: int, threads: int = 1) -> Iterator[DaskMap]:
    """Map blocks on worker processes of this machine."""
    with local_client(workers, threads) as client:
        queue: BlockQueue[CompletedBlock] = BlockQueue(2 * workers * threads)
        try:
            yield DaskMap(client, queue)
        finally:
            queue.close()


def resolve_workers(workers: int | str) -> int:
    """Number of workers; ``auto`` is one for each core that this process may use."""
    return len(os.sched_getaffinity(0)) if workers == "auto" else int(workers)
