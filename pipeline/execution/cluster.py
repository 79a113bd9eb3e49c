"""Where the dask workers of a run are: on this machine, at the address of a scheduler that others started, or in jobs.

The one decision made here: workers may come and go while a run goes on, so what may be in flight follows their number,
and where some have the resource GPU the network's blocks run there alone, the others' elsewhere while there is an
elsewhere. Who reaches a scheduler can run anything as its user: off this machine it is reached through TLS only, with
certificates that both ends show. A run whose scheduler, or whose last worker, stays away ends and can be resumed.
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
from pipeline.execution.dask_map import (
    GPU,
    GPU_THREADS,
    LOST,
    LOST_AFTER,
    RELEASE,
    SETTINGS,
    CompletedBlock,
    DaskMap,
    local_client,
    resolve_workers,
)
from pipeline.stage_table import STAGE
from pipeline.storage.atomic_files import remove, write_bytes

ANSWER_S, LOOK_S, PATIENCE_S = 60.0, 1.0, 600.0
"""How long a scheduler, and then a first worker, may take to answer; how often workers are counted; how long none of
them may be there."""


@dataclass(frozen=True, slots=True)
class WorkerCounts:
    """The workers there are, by address: threads of those without a GPU, and places on those with one."""

    plain: Mapping[str, int]
    gpu: Mapping[str, int]

    @classmethod
    def of(cls, client: Client) -> WorkerCounts:
        """Now. Raises ClusterError when the scheduler is gone."""
        workers = client.scheduler_info()["workers"] if client.status == "running" else {}
        if client.status != "running":
            raise ClusterError(LOST)
        gpu = {address: int(one["resources"][GPU]) for address, one in workers.items() if one["resources"].get(GPU)}
        return cls({address: int(one["nthreads"]) for address, one in workers.items() if address not in gpu}, gpu)


@dataclass(slots=True)
class WorkerPool:
    """Workers, and how many blocks may be in flight on them; where there are GPUs those of the network apart."""

    client: Client
    census: WorkerCounts
    patience_s: float = PATIENCE_S
    others: BlockQueue[CompletedBlock] = field(init=False)
    network: BlockQueue[CompletedBlock] = field(init=False)

    def __post_init__(self) -> None:
        self.others = BlockQueue(0)
        self.network = BlockQueue(0) if self.census.gpu else self.others
        self.count(self.census)

    @property
    def has_gpus(self) -> bool:
        """Whether there were any when the run began."""
        return self.network is not self.others

    @property
    def threads(self) -> int:
        """Blocks of the network that can be computed at a time."""
        census = self.census
        return sum((census.gpu if self.has_gpus else census.plain).values())

    def count(self, census: WorkerCounts) -> None:
        """Take note of who is there now."""
        self.census = census
        self.others.resize(2 * sum((census.plain or census.gpu).values()))
        if self.has_gpus:
            self.network.resize(2 * sum(census.gpu.values()))

    def map_for(self, rank: int, stage: str) -> DaskMap:
        """Who maps the blocks of a stage of the slide with this rank."""
        if STAGE[stage].needs_gpu and self.has_gpus:
            return DaskMap(self.client, self.network, rank, lambda: {"resources": {GPU: 1}})
        return DaskMap(self.client, self.others, rank, self._off_the_gpus)

    def close(self, why: Exception | None = None) -> None:
        """No more blocks: all mapping ends."""
        self.others.close(why)
        self.network.close(why)

    def _off_the_gpus(self) -> Mapping[str, Any]:
        plain = list(self.census.plain)
        return {"workers": plain, "allow_other_workers": True} if self.has_gpus and plain else {}


@contextmanager
def open_worker_pool(section: ClusterSection, shared: Sequence[Path], *, on_gpu: bool = False) -> Iterator[WorkerPool]:
    """The workers that a configuration asks for; folders in ``shared`` must be seen by all of them.

    Raises ConfigError when there are none, or when they are not fit.
    """
    if section.address is None:
        gpus = _device_names() if on_gpu else ()
        with local_client(_beside(section, gpus), gpus=gpus) as client:
            yield from _led(WorkerPool(client, WorkerCounts.of(client)))
        return
    queued = section.kind == "slurm"
    with _jobs(section, on_gpu=on_gpu) if queued else _connected(section, section.address) as client:
        _require_fit(client, shared)
        team = WorkerPool(client, WorkerCounts.of(client), math.inf if queued else PATIENCE_S)  # a queue may be long
        if on_gpu and not team.has_gpus:
            raise ConfigError(f"compute.device=cuda: no worker at {section.address} was started with --resources GPU=2")
        with background_thread("census", partial(watch_pool, team)):
            yield from _led(team)


def _device_names() -> Sequence[str]:
    from unet_core.device import device_names  # torch costs a second

    return device_names()


def _led(team: WorkerPool) -> Iterator[WorkerPool]:
    try:
        yield team
    finally:
        team.close()


def _beside(section: ClusterSection, gpus: Sequence[str]) -> int:
    """Workers without a GPU: of ``auto`` one a core, less those whose worker has one."""
    workers = resolve_workers(section.workers)
    return max(1, workers - len(gpus)) if section.workers == "auto" else workers


# ---- a scheduler elsewhere -------------------------------------------------------------------------------------------


@contextmanager
def _connected(section: ClusterSection, address: str) -> Iterator[Client]:
    """A client of a running scheduler that has a worker. Raises ConfigError when either does not answer."""
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
    """A client of a scheduler of its own, whose workers are jobs; waits in the queue for the first of them."""
    jobs = resolve_workers(section.workers)
    with dask.config.set({**SETTINGS, LOST_AFTER: "5 minutes"}), slurm_cluster(section, on_gpu=on_gpu) as cluster:
        cluster.adapt(minimum_jobs=jobs, maximum_jobs=jobs)  # one that ends is submitted again
        with Client(cluster, set_as_default=False) as client:
            client.wait_for_workers(1)
            yield client


def slurm_cluster(section: ClusterSection, *, on_gpu: bool) -> Any:
    """A dask-jobqueue cluster without jobs yet. Raises ConfigError when that is not installed."""
    try:
        from dask_jobqueue.slurm import SLURMCluster
    except ImportError as error:
        raise ConfigError("cluster.kind=slurm: expected dask-jobqueue. Run: pip install 'overtile[slurm]'") from error
    assert section.address is not None, "checked with the configuration"
    assert section.tls is not None, "checked with the configuration"
    where = urlsplit(section.address)
    told = [
        f"export DASK_{key.upper().replace('.', '__').replace('-', '_')}={quote(str(SETTINGS[key]))}"
        for key in SETTINGS
    ]
    words = ["--memory-limit", "0", "--dashboard-address", "127.0.0.1:0"]
    words += ["--resources", f"{GPU}={GPU_THREADS}"] if on_gpu else []
    return SLURMCluster(
        cores=GPU_THREADS if on_gpu else 1,
        processes=1,
        memory="1GB",  # what dask asks for; the line is left out: `sbatch` says how much
        job_directives_skip=["--mem=", "-t "],
        job_extra_directives=list(section.sbatch),
        job_script_prologue=told,
        worker_extra_args=words,
        job_name="overtile",
        security=security_of(Path(section.tls).absolute()),
        scheduler_options={"host": where.hostname, "port": where.port, "dashboard_address": "127.0.0.1:0"},
        silence_logs=50,
    )


def security_of(folder: Path) -> Security:
    """TLS with the certificates in a folder. Raises ConfigError when one is missing or the key is not kept secret."""
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
    """Raise ConfigError when scheduler or a worker has another release, or a worker does not see a folder."""
    try:
        releases = {"the scheduler": client.run_on_scheduler(_release), **client.run(_release)}
    except ImportError as error:
        raise ConfigError(f"scheduler or a worker has no overtile ({error}). Install {RELEASE} there") from error
    for who, release in releases.items():
        if release != RELEASE:
            raise ConfigError(f"{who} has overtile {release}, this is {RELEASE}. Install the same there")
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
    list(path.parent.iterdir())  # a network file system looks again
    return path.exists()


def watch_pool(team: WorkerPool, wait: Wait, clock: Callable[[], float] = time.monotonic) -> None:
    """Keep the census until ``wait`` is true. A team without scheduler, or too long without workers, is closed."""
    seen = clock()
    while not wait(LOOK_S):
        try:
            team.count(WorkerCounts.of(team.client))
        except ClusterError as error:
            return team.close(error)
        seen = clock() if team.threads else seen
        if clock() - seen > team.patience_s:
            kind = "worker with a GPU" if team.has_gpus else "worker"
            why = f"no {kind} for {team.patience_s / 60:.0f} minutes. Start some and run the same command again"
            return team.close(ClusterError(why))
