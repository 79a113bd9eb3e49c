"""A frozen worker that continues after its block was reassigned.

The worker counts as lost; later it writes the block too. Causes are a suspended machine, a migrated guest or a hung
file server; dask cannot tell them from a dead worker.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from tests.clusters.test_machines import Running
from tests.support.commands import Command, history, result_digests
from tests.support.faults.preload import Preload, Rule, times
from tests.support.faults.trees import SHARDS, Finished
from tests.support.machines import Machines, machines

PATIENCE = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "5s"}
"""Time that the scheduler waits for a heartbeat: the minimum of dask."""
BLOCKS = 3
"""Blocks of the slide."""

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def frozen(there: Machines) -> list[str]:
    """Names of the stopped workers."""
    status = {name: psutil.Process(process.pid).status() for name, process in there.processes.items()}
    return [name for name in status if status[name] == psutil.STATUS_STOPPED]


def thaw(there: Machines) -> None:
    """Let all stopped workers continue."""
    for name in frozen(there):
        os.kill(there.processes[name].pid, signal.SIGCONT)


@pytest.mark.parametrize(("stage", "workers"), [("ingest", 2), ("predict", 2), ("predict", 1)])
def test_fault_14_a_block_that_two_workers_write_is_the_same_bytes(
    overtile: Command, preload: Preload, finished: Finished, tmp_path: Path, stage: str, workers: int
) -> None:
    """Workers stop between writing and renaming one shard: both, until then; or one, until the end of the run."""
    shard = tmp_path / "out" / "slide" / SHARDS[stage]
    rules = Rule("rename", SHARDS[stage], "stop", 1, workers), Rule("rename", f"{Path(SHARDS[stage]).parent}/", 0)
    freezing, (_, renamed) = preload.under(Command({}, tmp_path), *rules)
    with machines(tmp_path, environment=PATIENCE) as there:
        for name in ("one", "two"):
            there.start_worker(name, "--no-nanny", environment=freezing.environment)  # a nanny kills stopped workers
        running = Running(overtile, finished.slide, tmp_path / "out", there.settings)
        running.until(lambda: bool(frozen(there)))
        (first,) = frozen(there)
        if workers == 2:
            running.until(lambda: len(frozen(there)) == 2)
            assert len(list(shard.parent.glob(f".{shard.name}.*.partial"))) == 2, "each worker has written its own file"
            assert not shard.exists()
            thaw(there)
        code, output = running.end()
        assert code == 0, output
        thaw(there)
        there.processes.pop(first).wait(timeout=60)  # the scheduler has removed it
        assert "failed to heartbeat" in (tmp_path / "scheduler.log").read_text()
    assert times(renamed) > BLOCKS, "no block was written twice"
    assert result_digests(tmp_path / "out" / "slide") == result_digests(finished.result)
    assert not list((tmp_path / "out").rglob("*.partial"))
    assert sum(done["computed"] for done in history(tmp_path / "out" / "slide") if done["stage"] == stage) == BLOCKS
