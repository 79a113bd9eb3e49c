"""Workers that die, decoders that abort, a Prefect server that stops.

The installed command is run on real files.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import Server, serving
from tests.support.commands import CLASSES, NO_SERVER, Command, installed_command, is_complete, result_digests
from tests.support.faults.disk_state import DiskState, Slide, assert_no_block_twice
from tests.support.faults.pictures import draw, red_and_blue, write
from tests.support.faults.preload import Preload, Rule, times
from tests.support.faults.trees import Finished
from tests.unit.flows.serving import running, wait_for

NAMED = "overview.png"
"""Contains the slide's name, and so differs between copies."""
PATIENCE_S = 200


@pytest.mark.long
@pytest.mark.timeout(900)
def test_fault_6_11_13_workers_die_once_and_always(
    overtile: Command, preload: Preload, finished: Finished, tmp_path: Path, record_property: Any
) -> None:
    """The decoder of one slide always aborts its process, another slide loses a worker once; the rest complete.

    For the run, a worker that the system killed for its memory is the same as one that aborted.
    """
    slides, out = tmp_path / "slides", tmp_path / "out"
    slides.mkdir()
    for name in ("aborts", "once", "neighbour"):
        os.link(finished.slide, slides / f"{name}.tif")
    rules = (
        Rule("worker read", "/slides/aborts.tif", "abort"),
        Rule("worker rename", "/once/slide.ome.zarr/probability/0/c/", "kill", 2, 2),
    )
    command, counters = preload.under(overtile, *rules)
    ran = command.segment(slides, out, "cluster.kind=local", "cluster.workers=2")
    assert ran.code == 3, ran.transcript
    assert ran.states() == {"aborts": "failed", "neighbour": "complete", "once": "complete"}
    line = ran.error_of("aborts")
    assert line.startswith("aborts: failed at ingest: ")
    assert "its worker process died every time, also alone" in line
    assert "out of memory" in line
    assert "aborts on this slide" in line
    assert 2 <= times(counters[0]) <= 12, "bounded retries"
    assert times(counters[1]) >= 3, "the block was computed again"
    assert not is_complete(out / "aborts")
    for name in ("once", "neighbour"):
        assert result_digests(out / name) | {NAMED: ""} == result_digests(finished.result) | {NAMED: ""}
    again = overtile.segment(slides, out)
    assert again.code == 0, again.transcript
    assert again.computed("once") == again.computed("neighbour") == {}
    record_property("recomputed", f"after the decoder was mended {again.computed('aborts')}, of the others nothing")


@dataclass(frozen=True, slots=True)
class UnreliableServer:
    """A run whose Prefect server fails after the network stage has started."""

    process: psutil.Process
    server: Server
    home: Path
    out: Path
    log: Path

    def awaited(self, what: Path) -> None:
        """Wait until the file exists."""
        wait_for(what.exists, self.log)

    def ended(self) -> str:
        """Return the output of the command, which must end with a complete slide and no traceback."""
        assert self.process.wait(PATIENCE_S) == 0, self.log.read_text()
        output = self.log.read_text()
        assert "1 of 1 slides complete" in output
        for wall in ("Traceback", "ERROR", "Error logging"):
            assert wall not in output, output
        return output


@pytest.fixture
def unreliable(
    overtile: Command, finished: Finished, tmp_path: Path, record_property: Any
) -> Iterator[UnreliableServer]:
    """A run whose result must equal the undisturbed one; neither it nor the next run may repeat a block."""
    home, out, log = tmp_path / "server", tmp_path / "out", tmp_path / "log"
    settings = ["cluster.kind=serial", "tiles.block=512", "compute.precision=fp32"]
    arguments = ["segment", finished.slide, "--out", out, "--model", CLASSES]
    arguments += [word for setting in settings for word in ("--set", setting)]
    line = [*installed_command(), *map(str, arguments)]
    with serving(home) as server, running(line, Command.under(tmp_path, server.api), log) as process:
        run = UnreliableServer(process, server, home, out, log)
        run.awaited(out / "slide" / "slide.ome.zarr" / "probability" / "0" / "c" / "0" / "0")
        assert not is_complete(out / "slide")
        yield run
    assert is_complete(out / "slide")
    before = DiskState.of(Slide(out / "slide"))
    again = overtile.run(*arguments, out=out)
    assert again.code == 0, again.transcript
    assert result_digests(out / "slide") == result_digests(finished.result)
    totals = {line["stage"]: line["blocks"] for line in Slide(finished.result).history()}
    assert_no_block_twice(before, Slide(out / "slide"), totals)
    record_property("recomputed", f"by the next run {again.computed('slide') or 0}, none twice")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_fault_8_the_prefect_server_dies_in_mid_run(unreliable: UnreliableServer) -> None:
    unreliable.server.kill()
    assert f"note: lost Prefect's server at {unreliable.server.api}/" in unreliable.ended()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_fault_8_the_database_of_the_prefect_server_is_locked(unreliable: UnreliableServer) -> None:
    """The database stays locked until the slide is complete; nothing may wait for it before that."""
    with closing(sqlite3.connect(unreliable.home / "prefect.db", isolation_level=None, timeout=60)) as database:
        database.execute("BEGIN EXCLUSIVE")
        unreliable.awaited(unreliable.out / "slide" / "manifest.json")
        database.execute("ROLLBACK")
    unreliable.ended()


def test_a_server_that_is_not_there_is_named_before_anything_is_begun(overtile: Command, tmp_path: Path) -> None:
    slide = write(tmp_path / "slide.tif", draw((64, 64), red_and_blue((64, 64))))
    command = overtile.with_environment(PREFECT_API_URL=NO_SERVER, PREFECT_CLIENT_MAX_RETRIES="0")
    ran = command.segment(slide, tmp_path / "out")
    assert ran.code == 4, ran.transcript
    assert ran.only_error.startswith(f"no Prefect server responds at {NO_SERVER}/")
    assert "unset PREFECT_API_URL" in ran.only_error
    assert not (tmp_path / "out" / "slide").exists()
