"""Workers that join and leave: where blocks run, how many are in flight, when a run without workers ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import dask
import pytest

from flows.batch.history import BatchHistory
from flows.batch.outcome import Outcome
from pipeline.config import ClusterSection, load_config
from pipeline.errors import ClusterError, ConfigError, WorkerError
from pipeline.execution import cluster
from pipeline.execution.cluster import WorkerCounts, WorkerPool, open_worker_pool, security_of, watch_pool
from pipeline.execution.dask_map import RELEASE, run_block
from pipeline.execution.local_cluster import SETTINGS
from tests.support.commands import REPOSITORY
from tests.unit.pipeline import worker_blocks as blocks

GRID = [(row, col) for row in range(6) for col in range(6)]


# ---- where blocks run ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    """One worker without a GPU, and one for each of four devices that do not exist."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(blocks.DEVICES, "0,1,2,3")
        with open_worker_pool(ClusterSection(workers=1), (), on_gpu=True) as found:
            yield found


def test_each_gpu_worker_sees_one_device_and_runs_network_blocks_only(pool: WorkerPool, tmp_path: Path) -> None:
    """While four workers run the network's blocks, those of another stage run on the fifth."""
    with ThreadPoolExecutor(2) as stages:
        network = stages.submit(list, pool.map_for(0, "predict")(partial(blocks.seen, tmp_path, "network"), GRID))
        labels = stages.submit(list, pool.map_for(0, "label")(partial(blocks.seen, tmp_path, "labels"), GRID))
        assert (len(network.result()), len(labels.result())) == (len(GRID), len(GRID))
    ran = Counter(path.name.partition(" ")[0] for path in tmp_path.iterdir())
    assert set(ran) == {"network@0", "network@1", "network@2", "network@3", "labels@"}
    assert sum(ran.values()) == 2 * len(GRID)
    assert len({path.name.split()[1] for path in tmp_path.glob("network*")}) == 4, "a process for each"
    assert pool.threads == 8


def test_without_gpus_all_stages_share_slots() -> None:
    client: Any = Client([{}])
    alone = WorkerPool(client, WorkerCounts({"a": 1, "b": 2}, {}))
    assert alone.map_for(0, "predict").queue is alone.map_for(0, "label").queue
    assert (alone.others.slots, alone.threads) == (6, 3)
    alone.update(WorkerCounts({"a": 1}, {}))
    assert (alone.others.slots, alone.threads) == (2, 1)


def test_with_gpu_workers_only_all_stages_run_on_them() -> None:
    client: Any = Client([{}])
    pool = WorkerPool(client, WorkerCounts({}, {"g": 2}))
    assert pool.map_for(0, "predict").submit_options() == {"resources": {"GPU": 1}}
    assert pool.map_for(0, "label").submit_options() == {}
    pool.update(WorkerCounts({"a": 1}, {"g": 2}))
    assert pool.map_for(0, "label").submit_options() == {"workers": ["a"], "allow_other_workers": True}


def test_worker_of_another_release_refuses_blocks() -> None:
    assert run_block(RELEASE, blocks.count, (1, 2)) == blocks.count((1, 2))
    with pytest.raises(ClusterError, match="this is older"):
        run_block("older", blocks.count, (1, 2))


# ---- present workers-------------------------------------------------------------------------------------------------


@dataclass
class Client:
    """Replaces dask's client: the scheduler's successive answers; None: the scheduler is gone."""

    answers: list[dict[str, Any] | None]
    status: str = "running"

    def scheduler_info(self) -> dict[str, Any]:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self.status = "connecting" if answer is None else "running"
        return {"workers": answer or {}}


@dataclass
class Clock:
    """Time that passes only while a task waits."""

    until: float
    now: float = 0.0
    looks: list[float] = field(default_factory=list)

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        self.looks.append(self.now)
        return self.now > self.until


ONE = {"a": {"nthreads": 1, "resources": {}}}


def watched(client: Client, until: float) -> tuple[WorkerPool, Clock, list[Exception | None]]:
    """A pool that was watched, and the reason for which each of its queues was closed."""
    dask: Any = client
    pool, clock, closed = WorkerPool(dask, WorkerCounts({"a": 1}, {})), Clock(until), list[Exception | None]()
    pool.others.close = closed.append  # type: ignore[method-assign]  # records the reason
    watch_pool(pool, clock.wait, lambda: clock.now)
    return pool, clock, closed


@pytest.fixture
def patchable_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Block queues whose methods can be replaced."""
    queue: Any = type("BlockQueue", (cluster.BlockQueue,), {})
    monkeypatch.setattr(cluster, "BlockQueue", queue)


@pytest.mark.usefixtures("patchable_queue")
def test_slots_follow_number_of_workers() -> None:
    pool, _, closed = watched(Client([ONE, ONE | {"b": {"nthreads": 3, "resources": {}}}]), 5)
    assert (pool.others.slots, closed) == (8, [])


@pytest.mark.usefixtures("patchable_queue")
def test_lost_scheduler_closes_pool_at_once() -> None:
    _, clock, closed = watched(Client([ONE, ONE, None]), 1000)
    assert "scheduler went away" in str(closed[0])
    assert isinstance(closed[0], ClusterError)
    assert clock.now <= 5


@pytest.mark.usefixtures("patchable_queue")
def test_pool_without_workers_closes_after_ten_minutes() -> None:
    _, clock, closed = watched(Client([{}]), 5000)
    assert 600 <= clock.now <= 610
    assert "no worker for 10 minutes" in str(closed[0])
    _, _, closed = watched(Client([*[{}] * 500, ONE, *[{}] * 500, ONE]), 1400)
    assert closed == []


def test_lost_workers_leave_slide_resumable(tmp_path: Path) -> None:
    outcome = Outcome("slide", Path("slide.svs"), attempt="asked for like this")
    outcome.failed("predict", ClusterError("gone"))
    assert (outcome.state, outcome.stage, outcome.cause, outcome.attempt) == ("resumable", "predict", "gone", "")
    assert not outcome.is_up_to_date
    assert BatchHistory.read(tmp_path).failures() == {}
    outcome.attempt = "asked for like this"
    outcome.failed("predict", WorkerError("bad"))
    assert (outcome.state, outcome.attempt) == ("failed", "asked for like this")


def test_dask_yaml_has_settings_of_own_workers() -> None:
    (documented,) = dask.config.collect_yaml([REPOSITORY / "configs" / "dask.yaml"])
    for key, value in SETTINGS.items():
        assert dask.config.get(key, config=documented) == value


# ---- what is refused -------------------------------------------------------------------------------------------------

ADDRESS = "cluster.kind=address"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([ADDRESS], "with kind: address or slurm"),
        (["cluster.address=tls://h:1", "cluster.tls=t"], "with kind: address or slurm"),
        ([ADDRESS, "cluster.address=tcp://10.0.0.5:8786"], "anything as you. Start it with --protocol tls"),
        ([ADDRESS, "cluster.address=tcp://head:8786"], "leaves this machine without TLS"),
        ([ADDRESS, "cluster.address=tcp://head:8786", "cluster.tls=t"], "leaves this machine without TLS"),
        ([ADDRESS, "cluster.address=tcp://127.0.0.1:8786", "cluster.tls=t"], "begins with tls:// together with tls"),
        ([ADDRESS, "cluster.address=tls://head:8786"], "begins with tls:// together with tls"),
        ([ADDRESS, "cluster.address=head:8786", "cluster.tls=t"], "expected tls://HOST:PORT"),
        ([ADDRESS, "cluster.address=tls://head", "cluster.tls=t"], "expected tls://HOST:PORT"),
        (["cluster.kind=slurm", "cluster.workers=2"], "with kind: address or slurm"),
        (["cluster.kind=slurm", "cluster.workers=2", "cluster.address=tcp://10.0.0.5:0"], "leaves this machine"),
        (["cluster.kind=slurm", "cluster.address=tls://h:0", "cluster.tls=t"], "how many jobs"),
        (["cluster.sbatch=[--mem=1G]"], "sbatch is for kind: slurm"),
        (["cluster.tls=t"], "begins with tls:// together with tls"),
    ],
)
def test_remote_scheduler_requires_tls(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, settings)
    assert message in str(caught.value)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "tcp://localhost:1", "tcp://[::1]:1", "tcp://127.3.2.1:1"])
def test_loopback_scheduler_needs_no_tls(address: str) -> None:
    assert load_config(None, [ADDRESS, f"cluster.address={address}"]).cluster.is_elsewhere


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    for name in ("ca", "cert", "key"):
        (tmp_path / f"{name}.pem").touch(mode=0o600)
    return tmp_path


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "ca.pem").unlink(), "ca.pem is missing"),
        (lambda folder: (folder / "key.pem").chmod(0o640), "chmod 600"),
        (lambda folder: (folder / "key.pem").chmod(0o604), "chmod 600"),
    ],
)
def test_tls_folder_needs_all_certificates_and_private_key(
    certificates: Path, harm: Callable[[Path], None], message: str
) -> None:
    assert security_of(certificates).require_encryption
    harm(certificates)
    with pytest.raises(ConfigError, match=message):
        security_of(certificates)


def test_worker_without_access_to_output_is_named(tmp_path: Path) -> None:
    class Blind(Client):
        def run_on_scheduler(self, function: Callable[[], Any]) -> Any:
            return function()

        def run(self, function: Callable[[], Any]) -> dict[str, Any]:
            for probe in tmp_path.iterdir():
                probe.unlink()  # as on a machine where another folder is mounted there
            return {"tls://worker:1": function()}

    blind: Any = Blind([{}])
    with pytest.raises(ConfigError, match=f"{tmp_path}: the worker tls://worker:1 does not see it"):
        cluster._require_fit(blind, [tmp_path])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("answer", "message"), [("older", "has overtile older"), (None, "has no overtile")])
def test_workers_of_another_release_are_refused_at_start(answer: str | None, message: str) -> None:
    class Old(Client):
        def run_on_scheduler(self, function: Callable[[], Any]) -> Any:
            return function()

        def run(self, _: Callable[[], Any]) -> dict[str, Any]:
            if answer is None:
                raise ModuleNotFoundError("No module named 'pipeline'")
            return {"tls://worker:1": answer}

    old: Any = Old([{}])
    with pytest.raises(ConfigError, match=message):
        cluster._require_fit(old, [])
