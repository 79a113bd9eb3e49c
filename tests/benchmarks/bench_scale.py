"""Overhead with many workers and blocks.

Measured are the cost of a block, the efficiency, and the memory of the scheduler. A block's work is a wait. Everything
else is real: a scheduler in a process of its own, workers connected by sockets, the bounded queue of blocks, one task a
block. 2,400 blocks are a slide of 100,000 x 100,000 px. All simulated workers share one process, and so one core
instead of one each: the figures are worse than those of many machines.

    python tests/benchmarks/bench_scale.py [BLOCKS [SECONDS [WORKERS...]]]
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from support.napping import nap

from pipeline.config import ClusterSection
from pipeline.execution.cluster import WorkerPool, open_worker_pool

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "DASK_CONFIG": str(HERE.parents[1] / "configs" / "dask.yaml"), "PYTHONPATH": str(HERE)}
SLIDE, SECONDS, WORKERS = 2_400, 1.0, (1, 8, 64)
MIB = 2**20


@contextmanager
def scheduler(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Run a dask scheduler on this machine; yield its address and its process."""
    log = folder / "log"
    line = [sys.executable, "-m", "dask", "scheduler", "--host", "127.0.0.1", "--port", "0"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*line, "--dashboard-address", "127.0.0.1:0"], env=ENVIRONMENT, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        while not (found := re.search(r"Scheduler at:\s+(tcp://\S+)\n", log.read_text())):
            if process.poll() is not None:
                raise RuntimeError(f"the scheduler ended:\n{log.read_text()}")
            time.sleep(0.1)
        yield found[1], psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


@contextmanager
def waiting_workers(address: str, workers: int) -> Iterator[WorkerPool]:
    """Run this many waiting workers; yield them as a worker pool."""
    line = [sys.executable, str(HERE / "support" / "napping.py"), address, str(workers)]
    naps = subprocess.Popen(line, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    try:
        with open_worker_pool(ClusterSection(kind="address", address=address), ()) as found:
            found.client.wait_for_workers(workers)
            while found.threads < workers:
                time.sleep(0.1)
            yield found
    finally:
        naps.kill()
        naps.wait()


def wall_s(found: WorkerPool, blocks: int, seconds: float) -> float:
    """Return the wall seconds of ``blocks`` blocks that each wait ``seconds``."""
    began = time.monotonic()
    done = sum(figures["blocks"] for figures in found.map_for(0, "predict")(partial(nap, seconds), grid(blocks)))
    assert done == blocks
    return time.monotonic() - began


def grid(blocks: int) -> Iterator[tuple[int, int]]:
    """Yield indices as they are needed."""
    return ((0, number) for number in range(blocks))


def measure(blocks: int, seconds: float, workers: int) -> dict[str, Any]:
    """Measure overhead and scheduler CPU time per block, memory of the scheduler, and the workers' efficiency."""
    with tempfile.TemporaryDirectory() as name, scheduler(Path(name)) as (address, process):
        with waiting_workers(address, workers) as found:
            wall_s(found, 4 * workers, 0)  # imports everything on the workers
            before = process.cpu_times()
            empty_s = wall_s(found, blocks, 0)
            after = process.cpu_times()
            figures = {
                "overhead_ms": 1e3 * empty_s / blocks,
                "scheduler_cpu_ms": 1e3 * (after.user + after.system - before.user - before.system) / blocks,
                "scheduler_mib": process.memory_info().rss / MIB,
            }
            if seconds:
                working = min(blocks, 40 * workers)  # more rounds than forty give the same figure
                figures["efficiency"] = working * seconds / workers / wall_s(found, working, seconds)
        return figures


def measure_all(blocks: int = SLIDE, seconds: float = SECONDS, *workers: int) -> dict[str, Any]:
    """Measure each number of workers; the top-level figures are those of the largest."""
    found = {number: measure(blocks, seconds, number) for number in workers or WORKERS}
    return {"blocks": blocks, "seconds": seconds, **found[max(found)], "by_workers": found}


if __name__ == "__main__":
    given = sys.argv[1:]
    print(json.dumps(measure_all(*map(int, given[:1]), *map(float, given[1:2]), *map(int, given[2:])), indent=1))
