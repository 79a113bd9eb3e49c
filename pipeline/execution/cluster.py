"""The dask workers of a run: on this machine, at the address of a running scheduler, or as cluster jobs.

Workers may join and leave during a run, so the number of blocks in flight follows theirs. Where some workers have the
resource GPU, the network's blocks run only there, and other blocks run elsewhere while there is an elsewhere. Anyone
who reaches a scheduler can run code as its user: off this machine it is reached through TLS only, with certificates on
both ends. A run whose scheduler, or whose last worker, stays away ends and can be resumed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import dask
from distributed import Client, Security

from pipeline.background import Wait, background_thread
from pipeline.config import ClusterSection
from pipeline.errors import ClusterError, ConfigError
from pipeline.execution.block_queue import BlockQueue
from pipeline.execution.dask_map import LOST, RELEASE, CompletedBlock, DaskMap
from pipeline.execution.local_cluster import GPU, GPU_THREADS, LOST_AFTER, SETTINGS, local_client, resolve_workers
from pipeline.stage_table import STAGE
from pipeline.storage.atomic_files import remove, write_bytes

ANSWER_S, LOOK_S, PATIENCE_S = 60.0, 1.0, 600.0
"""Time for a scheduler, and then for a first worker, to answer; interval of counting workers; time without workers
after which a run ends."""


@dataclass(frozen=True, slots=True)
class WorkerCounts:
    """Workers by address: the threads of those without a GPU, and the GPU slots of those with one."""

    plain: Mapping[str, int]
    gpu: Mapping[str, int]

    @classmethod
    def of(cls, client: Client) -> WorkerCounts:
        """Count the workers now.

        Raises:
            ClusterError: The scheduler is gone.
        """
        workers = client.scheduler_info()["workers"] if client.status == "running" else {}
        if client.status != "running":
            raise ClusterError(LOST)
        gpu = {address: int(info["resources"][GPU]) for address, info in workers.items() if info["resources"].get(GPU)}
        return cls({address: int(info["nthreads"]) for address, info in workers.items() if address not in gpu}, gpu)


@dataclass(slots=True)
class WorkerPool:
    """The workers of a run, and the slots of blocks in flight on them.

    Attributes:
        client: Client of the cluster.
        counts: The workers there are.
        patience_s: Time without workers after which the run ends.
        others: Slots for all blocks but the network's where there are GPUs, else for all blocks.
        network: Slots for the network's blocks; the same object as ``others`` where there are no GPUs.
    """

    client: Client
    counts: WorkerCounts
    patience_s: float = PATIENCE_S
    others: BlockQueue[CompletedBlock] = field(init=False)
    network: BlockQueue[CompletedBlock] = field(init=False)

    def __post_init__(self) -> None:
        self.others = BlockQueue(0)
        self.network = BlockQueue(0) if self.counts.gpu else self.others
        self.update(self.counts)

    @property
    def has_gpus(self) -> bool:
        """Whether there were GPUs when the run began."""
        return self.network is not self.others

    @property
    def threads(self) -> int:
        """Number of network blocks that can be computed at a time."""
        counts = self.counts
        return sum((counts.gpu if self.has_gpus else counts.plain).values())

    def update(self, counts: WorkerCounts) -> None:
        """Adapt the number of slots to the workers that are there now: two for each thread."""
        self.counts = counts
        self.others.resize(2 * sum((counts.plain or counts.gpu).values()))
        if self.has_gpus:
            self.network.resize(2 * sum(counts.gpu.values()))

    def map_for(self, rank: int, stage: str) -> DaskMap:
        """The mapper of a stage's blocks.

        Args:
            rank: Position of the slide in the batch; the lowest goes first.
            stage: Name of the stage; the stage table says whether it needs a GPU.
        """
        if STAGE[stage].needs_gpu and self.has_gpus:
            return DaskMap(self.client, self.network, rank, lambda: {"resources": {GPU: 1}})
        return DaskMap(self.client, self.others, rank, self._off_the_gpus)

    def close(self, why: Exception | None = None) -> None:
        """Send no more blocks: all mapping ends."""
        self.others.close(why)
        self.network.close(why)

    def _off_the_gpus(self) -> Mapping[str, Any]:
        plain = list(self.counts.plain)
        return {"workers": plain, "allow_other_workers": True} if self.has_gpus and plain else {}


@contextmanager
def open_worker_pool(section: ClusterSection, shared: Sequence[Path], *, on_gpu: bool = False) -> Iterator[WorkerPool]:
    """Start or reach the workers that a configuration requests.

    Args:
        section: The ``cluster`` section of the configuration.
        shared: Folders that every worker must see.
        on_gpu: Whether the network runs on GPUs.

    Yields:
        The workers; they are released at the end of the ``with`` block.

    Raises:
        ConfigError: There are no workers, or they have another release, no GPU or no access to a shared folder.
    """
    if section.address is None:
        gpus = _device_names() if on_gpu else ()
        with local_client(_workers_without_gpu(section, gpus), gpus=gpus) as client:
            yield from _closing(WorkerPool(client, WorkerCounts.of(client)))
        return
    queued = section.kind == "slurm"
    with _jobs(section, on_gpu=on_gpu) if queued else _connected(section, section.address) as client:
        _require_fit(client, shared)
        pool = WorkerPool(client, WorkerCounts.of(client), math.inf if queued else PATIENCE_S)  # a queue may be long
        if on_gpu and not pool.has_gpus:
            raise ConfigError(f"compute.device=cuda: no worker at {section.address} was started with --resources GPU=2")
        with background_thread("counting workers", partial(watch_pool, pool)):
            yield from _closing(pool)


def _device_names() -> Sequence[str]:
    from unet_core.device import device_names  # torch costs a second

    return device_names()


def _closing(pool: WorkerPool) -> Iterator[WorkerPool]:
    try:
        yield pool
    finally:
        pool.close()


def _workers_without_gpu(section: ClusterSection, gpus: Sequence[str]) -> int:
    """Number of workers without a GPU; ``auto``: one for each core, less those that serve a GPU."""
    workers = resolve_workers(section.workers)
    return max(1, workers - len(gpus)) if section.workers == "auto" else workers


# ---- a scheduler elsewhere -------------------------------------------------------------------------------------------


@contextmanager
def _connected(section: ClusterSection, address: str) -> Iterator[Client]:
    """A client of a running scheduler that has a worker; raises ConfigError when either does not answer."""
    with dask.config.set(dict(SETTINGS)):
        security = None if section.tls is None else security_of(Path(section.tls))
        try:
            client = Client(address, timeout=ANSWER_S, security=security, set_as_default=False)
        except OSError as error:
            raise ConfigError(
                f"cluster.address={address}: no dask scheduler answers there as it should ({error}). Start one ('dask "
                "scheduler'), and look at the address and the certificates"
            ) from error
        with client:
            try:
                client.wait_for_workers(1, timeout=ANSWER_S)
            except TimeoutError as error:
                raise ConfigError(
                    f"cluster.address={address}: has no workers. Start some: dask worker {address}"
                ) from error
            yield client


@contextmanager
def _jobs(section: ClusterSection, *, on_gpu: bool) -> Iterator[Client]:
    """A client of the run's own scheduler, whose workers are jobs; waits until the first of them starts."""
    jobs = resolve_workers(section.workers)
    with dask.config.set({**SETTINGS, LOST_AFTER: "5 minutes"}), slurm_cluster(section, on_gpu=on_gpu) as cluster:
        cluster.adapt(minimum_jobs=jobs, maximum_jobs=jobs)  # a job that ends is submitted again
        with Client(cluster, set_as_default=False) as client:
            client.wait_for_workers(1)
            yield client


def slurm_cluster(section: ClusterSection, *, on_gpu: bool) -> Any:
    """A dask-jobqueue cluster that has submitted no jobs yet.

    Raises:
        ConfigError: dask-jobqueue is not installed.
    """
    try:
        from dask_jobqueue.slurm import SLURMCluster
    except ImportError as error:
        raise ConfigError("cluster.kind=slurm: expected dask-jobqueue. Run: pip install 'overtile[slurm]'") from error
    assert section.address is not None, "checked with the configuration"
    assert section.tls is not None, "checked with the configuration"
    address = urlsplit(section.address)
    exports = [
        f"export DASK_{key.upper().replace('.', '__').replace('-', '_')}={quote(str(SETTINGS[key]))}"
        for key in SETTINGS
    ]
    worker_options = ["--memory-limit", "0", "--dashboard-address", "127.0.0.1:0"]
    worker_options += ["--resources", f"{GPU}={GPU_THREADS}"] if on_gpu else []
    return SLURMCluster(
        cores=GPU_THREADS if on_gpu else 1,
        processes=1,
        memory="1GB",  # required by dask-jobqueue; its line is left out, because `sbatch` sets the memory
        job_directives_skip=["--mem=", "-t "],
        job_extra_directives=list(section.sbatch),
        job_script_prologue=exports,
        worker_extra_args=worker_options,
        job_name="overtile",
        security=security_of(Path(section.tls).absolute()),
        scheduler_options={"host": address.hostname, "port": address.port, "dashboard_address": "127.0.0.1:0"},
        silence_logs=50,
    )


def security_of(folder: Path) -> Security:
    """TLS with the certificates in a folder.

    Raises:
        ConfigError: A certificate is missing, or others may read the key.
    """
    found = {name: folder / f"{name}.pem" for name in ("ca", "cert", "key")}
    for path in found.values():
        if not path.is_file():
            raise ConfigError(
                f"cluster.tls={folder}: expected ca.pem, cert.pem and key.pem there, {path.name} is missing"
            )
    if found["key"].stat().st_mode & 0o077:
        raise ConfigError(f"{found['key']}: others can read it, and run anything as you with it. Run: chmod 600 it")
    files = {"tls_ca_file": str(found["ca"])}
    for role in ("client", "worker", "scheduler"):
        files |= {f"tls_{role}_{name}": str(found[name]) for name in ("cert", "key")}
    return Security(require_encryption=True, **files)


def _require_fit(client: Client, shared: Sequence[Path]) -> None:
    """Raise ConfigError when the scheduler or a worker has another release, or a worker does not see a folder."""
    try:
        releases = {"the scheduler": client.run_on_scheduler(_release), **client.run(_release)}
    except ImportError as error:
        raise ConfigError(f"scheduler or a worker has no overtile ({error}). Install {RELEASE} there") from error
    for process, release in releases.items():
        if release != RELEASE:
            raise ConfigError(f"{process} has overtile {release}, this is {RELEASE}. Install the same there")
    for folder in shared:
        probe = folder / f".overtile.{uuid4().hex}.partial"
        write_bytes(probe, b"")
        try:
            blind = [address for address, sees in client.run(partial(_sees, probe)).items() if not sees]
        finally:
            remove(probe)
        if blind:
            raise ConfigError(f"{folder}: the worker {blind[0]} does not see it. Mount it there, at the same path")


def _release() -> str:
    return RELEASE


def _sees(path: Path) -> bool:
    list(path.parent.iterdir())  # makes a network file system look again
    return path.exists()


def watch_pool(pool: WorkerPool, wait: Wait, clock: Callable[[], float] = time.monotonic) -> None:
    """Count workers until ``wait`` returns True. A pool without scheduler, or too long without workers, is closed."""
    seen = clock()
    while not wait(LOOK_S):
        try:
            pool.update(WorkerCounts.of(pool.client))
        except ClusterError as error:
            return pool.close(error)
        seen = clock() if pool.threads else seen
        if clock() - seen > pool.patience_s:
            kind = "worker with a GPU" if pool.has_gpus else "worker"
            why = f"no {kind} for {pool.patience_s / 60:.0f} minutes. Start some and run the same command again"
            return pool.close(ClusterError(why))
