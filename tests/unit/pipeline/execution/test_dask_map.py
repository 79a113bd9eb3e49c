"""Dask workers of this machine give the results of a plain loop, also when workers die."""

from __future__ import annotations

import errno
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from distributed import KilledWorker, Scheduler

from pipeline.errors import DiskError, SlideError, WorkerError
from pipeline.execution.blocks import Counts, MapBlocks, serial
from pipeline.execution.dask_map import DaskMap, _result
from pipeline.execution.local_cluster import CEILING_BYTES, local_cluster, resolve_workers
from pipeline.geometry import Box
from pipeline.slide_reader import TileError, TileIndex
from pipeline.storage.slide_store import Index
from tests.unit.pipeline import worker_blocks as blocks

WORKERS = 2
IN_FLIGHT = 2 * WORKERS
GRID = [(row, col) for row in range(4) for col in range(5)]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskMap]:
    """Two workers for the whole file; no process or file of them is left at the end."""
    before = set(psutil.Process().children(recursive=True))
    scratch = tmp_path_factory.mktemp("scratch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(scratch))
        with local_cluster(WORKERS) as mapper:
            assert any(scratch.iterdir())
            yield mapper
    left = set(psutil.Process().children(recursive=True)) - before
    assert not [child for child in left if "resource_tracker" not in " ".join(child.cmdline())]
    assert not any(scratch.iterdir())


@pytest.fixture
def cluster(started: DaskMap) -> DaskMap:
    """The cluster of this file, with all its workers restarted after the previous test."""
    started.client.wait_for_workers(WORKERS, timeout=180)
    return started


@pytest.fixture(params=["serial", "dask"])
def mapper(request: pytest.FixtureRequest) -> MapBlocks:
    """Both mappers."""
    return serial if request.param == "serial" else request.getfixturevalue("cluster")


def tried(folder: Path) -> Counter[str]:
    """Number of attempts at each block."""
    return Counter(path.name.rpartition(".")[0].rpartition(".")[0] for path in folder.iterdir())


def consume(answers: Iterator[Counts]) -> tuple[list[Counts], BaseException | None]:
    """All counts, and the error at the end."""
    found: list[Counts] = []
    try:
        for answer in answers:
            found.append(answer)
    except Exception as error:
        return found, error
    return found, None


def totals(answers: list[Counts]) -> Counter[str]:
    return sum((Counter(answer) for answer in answers), Counter())


def test_all_threads_of_a_worker_share_one_heap(cluster: DaskMap) -> None:
    """With one heap for each thread, every thread keeps the memory of its largest block."""
    assert {answer["heaps"] for answer in cluster(blocks.heaps, GRID[:4])} <= {1, -1}


def test_fault_50_block_that_needs_too_much_memory_fails_alone(cluster: DaskMap) -> None:
    """The limit also holds in restarted workers."""
    cluster.client.restart(timeout=60)
    limits = cluster.client.run(resource.getrlimit, resource.RLIMIT_DATA)
    assert {soft for soft, _ in limits.values()} == {CEILING_BYTES}
    found, error = consume(cluster(partial(blocks.hoard, CEILING_BYTES), GRID))
    assert isinstance(error, WorkerError)
    assert "block (row 0, col 0): it needs more memory than a worker may have" in str(error)
    assert "tiles.block" in str(error)
    assert len(found) == len(GRID) - 1
    assert set(cluster.client.run(resource.getrlimit, resource.RLIMIT_DATA)) == set(limits), "no worker died of it"


# ---- the same results ---------------------------------------------------------------------------------------------


def test_counts_equal_those_of_plain_loop(mapper: MapBlocks) -> None:
    found = list(mapper(blocks.count, GRID))
    assert sorted(map(sorted, (answer.items() for answer in found))) == sorted(
        map(sorted, (blocks.count(index).items() for index in GRID))
    )


def test_no_blocks_give_no_counts(mapper: MapBlocks) -> None:
    assert list(mapper(blocks.count, [])) == []


def test_every_block_runs_once_and_all_workers_take_part(cluster: DaskMap, tmp_path: Path) -> None:
    assert len(list(cluster(partial(blocks.noted, tmp_path), GRID))) == len(GRID)
    assert set(tried(tmp_path).values()) == {1}
    processes = {path.suffix for path in tmp_path.iterdir()}
    assert len(processes) == WORKERS
    assert f".{os.getpid()}" not in processes


def test_same_block_given_twice_runs_twice(cluster: DaskMap, tmp_path: Path) -> None:
    """Dask caches nothing between calls: shards record what is done."""
    assert len(list(cluster(blocks.count, [(0, 0), (0, 0)]))) == 2


# ---- bounded -------------------------------------------------------------------------------------------------------


def test_number_of_blocks_in_flight_is_bounded(cluster: DaskMap) -> None:
    drawn = 0

    def source() -> Iterator[Index]:
        nonlocal drawn
        for number in range(80):
            drawn += 1
            yield 0, number

    answered = 0
    most = 0
    for _ in cluster(blocks.count, source()):
        most = max(most, drawn - answered)
        answered += 1
    assert (drawn, answered) == (80, 80)
    assert most <= IN_FLIGHT


def in_flight(dask_scheduler: Scheduler) -> int:
    """Number of tasks that have not ended, from the scheduler."""
    return sum(task.state in ("queued", "no-worker", "processing") for task in dask_scheduler.tasks.values())


def test_slides_share_slots(cluster: DaskMap) -> None:
    """Three slides at once have no more in flight than one, and every block is done."""
    most = [0]

    def source(slide: int) -> Iterator[Index]:
        for number in range(30):
            most.append(cluster.client.run_on_scheduler(in_flight))
            yield slide, number

    def mapped(slide: int) -> int:
        return totals(list(cluster.ranked(slide)(blocks.count, source(slide))))["blocks"]

    with ThreadPoolExecutor(3) as slides:
        assert list(slides.map(mapped, range(3))) == [30] * 3
    assert 1 < max(most) <= IN_FLIGHT


def test_blocks_of_oldest_slide_run_first(cluster: DaskMap, tmp_path: Path) -> None:
    """A younger slide that is mapped first yields as soon as an older one is mapped."""
    grid = [(0, number) for number in range(40)]
    young = cluster.ranked(7)(partial(blocks.ordered, tmp_path, 7), grid)
    next(young)
    with ThreadPoolExecutor(1) as aside:
        old = aside.submit(list, cluster.ranked(2)(partial(blocks.ordered, tmp_path, 2), grid))
        assert (len(list(young)), len(old.result(timeout=60))) == (39, 40)
    order = (tmp_path / "order").read_text().split()
    while_old = order[order.index("2") : len(order) - order[::-1].index("2")]
    assert while_old.count("7") <= 10, order


def test_serial_draws_one_at_a_time() -> None:
    drawn: list[int] = []
    answers = serial(blocks.count, ((0, number) for number in range(9) if drawn.append(number) is None))
    next(answers)
    assert drawn == [0]


def test_closed_iterator_leaves_cluster_usable(cluster: DaskMap) -> None:
    answers = cluster(blocks.count, GRID)
    next(answers)
    answers.close()  # type: ignore[attr-defined]  # it is a generator
    assert len(list(cluster(blocks.count, GRID))) == len(GRID)


# ---- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 2])
def test_transient_io_error_is_retried(mapper: MapBlocks, tmp_path: Path, times: int) -> None:
    answers = list(mapper(partial(blocks.fails_first, tmp_path, times, errno.EIO), GRID))
    assert totals(answers) == totals([blocks.count(index) for index in GRID])
    assert tried(tmp_path)["1.1"] == times + 1
    assert sum(tried(tmp_path).values()) == len(GRID) + times


def test_persistent_io_error_is_raised_after_three_attempts_and_names_block(mapper: MapBlocks, tmp_path: Path) -> None:
    _, error = consume(mapper(partial(blocks.fails_first, tmp_path, 99, errno.EIO), GRID))
    assert isinstance(error, WorkerError)
    assert "row 1, col 1" in str(error)
    assert "Input/output error" in str(error)
    assert isinstance(error.__cause__, OSError)
    assert tried(tmp_path)["1.1"] == 3


def test_persistent_io_error_fails_its_block_only(cluster: DaskMap, tmp_path: Path) -> None:
    found, _ = consume(cluster(partial(blocks.fails_first, tmp_path, 99, errno.EIO), GRID))
    assert len(found) == len(GRID) - 1


def test_full_disk_is_not_retried_and_stops_new_blocks(mapper: MapBlocks, tmp_path: Path) -> None:
    found, error = consume(mapper(partial(blocks.disk_full, tmp_path), [(0, number) for number in range(1000)]))
    assert isinstance(error, DiskError)
    assert "No space left" in str(error)
    assert tried(tmp_path)["0.3"] == 1
    assert len(found) < 500
    assert sum(tried(tmp_path).values()) < 500


def test_one_bad_block_does_not_stop_the_others(cluster: DaskMap, tmp_path: Path) -> None:
    found, error = consume(cluster(partial(blocks.bad_slide, tmp_path, ((0, 2),)), GRID))
    assert type(error) is SlideError
    assert str(error) == "slide.svs: tile (0, 2) is damaged", "the message of the stage"
    assert len(found) == len(GRID) - 1
    assert set(tried(tmp_path).values()) == {1}


def test_first_of_several_failures_is_raised_with_number_of_others(cluster: DaskMap, tmp_path: Path) -> None:
    found, error = consume(cluster(partial(blocks.bad_slide, tmp_path, ((3, 1), (0, 2), (2, 4))), GRID))
    assert type(error) is SlideError
    assert "tile (0, 2)" in str(error)
    assert "2 more blocks failed" in str(error)
    assert len(found) == len(GRID) - 3


def test_error_arrives_with_all_its_arguments(cluster: DaskMap, tmp_path: Path) -> None:
    for bad in [((0, 2),), ((0, 2), (1, 1))]:
        _, error = consume(cluster(partial(blocks.bad_tile, tmp_path, bad), GRID))
        assert isinstance(error, TileError)
        assert error.place == TileIndex(0, 0, 2, Box(0, 512, 256, 768))
    _, error = consume(cluster(partial(blocks.disk_full, tmp_path), GRID))
    assert isinstance(error, DiskError)
    assert error.errno == errno.ENOSPC


def test_unexpected_error_names_block_and_type(cluster: DaskMap, tmp_path: Path) -> None:
    found, error = consume(cluster(partial(blocks.bug, tmp_path, ((2, 3),)), GRID))
    assert isinstance(error, WorkerError)
    assert "row 2, col 3" in str(error)
    assert "ZeroDivisionError: division by zero" in str(error)
    assert isinstance(error.__cause__, ZeroDivisionError), "its traceback is kept"
    assert len(found) == len(GRID) - 1


# ---- death ---------------------------------------------------------------------------------------------------------


def test_fault_6_worker_that_dies_once_changes_no_result(cluster: DaskMap, tmp_path: Path) -> None:
    answers = list(cluster(partial(blocks.poison, tmp_path, ((1, 3),), 1), GRID))
    assert totals(answers) == totals([blocks.count(index) for index in GRID])


def test_fault_11_13_block_that_always_kills_its_worker_is_named_and_others_complete(
    cluster: DaskMap, tmp_path: Path
) -> None:
    """Dead workers are restarted, and a worker that is just starting is not replaced."""
    assert cluster.client.cluster is not None
    workers_before = dict(cluster.client.cluster.workers)
    found, error = consume(cluster(partial(blocks.poison, tmp_path, ((0, 1),), 99), GRID))
    assert isinstance(error, WorkerError)
    assert "row 0, col 1" in str(error)
    assert "died" in str(error)
    assert totals(found) == totals([blocks.count(index) for index in GRID if index != (0, 1)])
    assert tried(tmp_path)["0.1"] <= 4, "bounded retries"
    assert len(list(cluster(blocks.count, GRID))) == len(GRID), "and the workers are back"
    assert cluster.client.cluster.workers == workers_before


def test_fault_13_block_that_kills_its_worker_does_not_affect_other_slides(cluster: DaskMap, tmp_path: Path) -> None:
    """It is retried while no block of any slide runs."""
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    with ThreadPoolExecutor(2) as slides:
        bad = slides.submit(consume, cluster.ranked(0)(partial(blocks.poison, tmp_path / "one", ((0, 1),), 99), GRID))
        good = slides.submit(consume, cluster.ranked(1)(partial(blocks.noted, tmp_path / "two"), GRID * 3))
        found, error = bad.result(timeout=120)
        others, none = good.result(timeout=120)
    assert (len(found), len(others), none) == (len(GRID) - 1, 3 * len(GRID), None)
    assert "row 0, col 1" in str(error)


def test_fault_13_result_lost_with_its_worker_is_retried_alone() -> None:
    """The block was done, but its worker died before the result was fetched, and so did those that recomputed it."""

    def gone() -> None:
        raise KilledWorker("block", None, 2)

    future: Any = SimpleNamespace(status="finished", exception=lambda: None, result=gone)
    assert isinstance(_result(future), KilledWorker)


@pytest.mark.long
def test_fault_13_workers_given_up_by_dask_are_replaced() -> None:
    """dask gives up a worker that dies before it is ready, and would never start another."""
    with local_cluster(1) as mapper:
        assert mapper.client.cluster is not None
        mapper.client.cluster.sync(mapper.client.cluster.workers[0].close)
        answers = ThreadPoolExecutor(1).submit(lambda: list(mapper(blocks.count, GRID)))
        assert totals(answers.result(timeout=60)) == totals([blocks.count(index) for index in GRID])


# ---- network sockets ----------------------------------------------------------------------------------------------


def test_every_listening_socket_is_on_this_machine_only(cluster: DaskMap) -> None:
    everyone = [psutil.Process(), *psutil.Process().children(recursive=True)]
    listening = [
        connection.laddr
        for process in everyone
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN or connection.type == socket.SOCK_DGRAM
    ]
    assert len(listening) >= 1 + WORKERS, "the scheduler and each worker"
    assert {address.ip for address in listening} == {"127.0.0.1"}


def test_workers_compute_on_one_thread(cluster: DaskMap) -> None:
    assert set(cluster.client.nthreads().values()) == {1}
    assert set(cluster.client.run(os.environ.get, "OMP_NUM_THREADS").values()) == {"1"}


START = """
import os, signal
from pipeline.execution.local_cluster import local_cluster
if __name__ == "__main__":
    with local_cluster(1) as mapper:
        print(*mapper.client.run(os.getpid).values(), flush=True)
        signal.pause()
"""


def test_workers_end_when_run_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "start.py"
    script.write_text(START)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4]), "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment) as run:
        assert run.stdout is not None
        worker = os.pidfd_open(int(run.stdout.readline()))
        run.send_signal(signal.SIGKILL)
    poll = select.poll()
    poll.register(worker, select.POLLIN)
    try:
        assert poll.poll(30_000), "a worker outlived the run that started it"
    finally:
        os.close(worker)


def test_auto_is_one_worker_a_core() -> None:
    assert resolve_workers("auto") == len(os.sched_getaffinity(0))
    assert resolve_workers(3) == 3
