"""Workers that die, decoders that abort, a Prefect server that goes away: by the installed command, on real files."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.commands import CLASSES, Command, Ran, installed_command, is_complete, result_digests
from tests.conftest import serving
from tests.faults.preload import Preload, Rule, times
from tests.faults.standing import Slide, Standing, assert_no_block_twice
from tests.faults.trees import Finished

NAMED = "overview.png"
"""Shows the slide's name, and so differs between copies."""
PATIENCE_S = 400


@pytest.mark.long
@pytest.mark.timeout(900)
def test_fault_6_11_13_workers_die_once_and_always(
    overtile: Command, preload: Preload, finished: Finished, tmp_path: Path, record_property: Any
) -> None:
    """One slide's decoder aborts its process every time, another loses a worker once: the others never notice.

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
    assert ran.code == 3, ran.said
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
    assert again.code == 0, again.said
    assert again.computed("once") == again.computed("neighbour") == {}
    record_property("recomputed", f"after the decoder was mended {again.computed('aborts')}, of the others nothing")


@contextmanager
def started(command: Command, *words: str | Path) -> Iterator[subprocess.Popen[str]]:
    """The command while it runs; killed with all it started when it is still there at the end."""
    process = subprocess.Popen(
        [*installed_command(), *map(str, words)],
        env=dict(command.environment),
        cwd=command.folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def await_here(running: subprocess.Popen[str], so: Callable[[], bool]) -> None:
    """Until something is so."""
    for _ in range(int(PATIENCE_S / 0.05)):
        if so():
            return
        with suppress(subprocess.TimeoutExpired):
            running.wait(timeout=0.05)
    pytest.fail("it never came to that")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_fault_8_the_prefect_server_dies_in_mid_run(
    overtile: Command, finished: Finished, tmp_path: Path, record_property: Any
) -> None:
    """It may fail the run, which is not waited for once the slide is complete. What was done is not done again."""
    out = tmp_path / "out"
    settings = ["cluster.kind=serial", "tiles.block=512", "compute.precision=fp32"]
    words = ["segment", finished.slide, "--out", out, "--model", CLASSES]
    words += [word for setting in settings for word in ("--set", setting)]
    shards = out / "slide" / "slide.ome.zarr" / "probability" / "0" / "c" / "0" / "0"
    with serving(tmp_path / "server") as server, started(Command.under(tmp_path, server.api), *words) as running:
        await_here(running, lambda: shards.is_dir())
        server.kill()
        await_here(running, lambda: running.poll() is not None or is_complete(out / "slide"))
    before = Standing.of(Slide(out / "slide"))
    print(f"exit {running.returncode}, stamped {sorted(before.stamped)}")
    again: Ran = overtile.run(*words, out=out)
    assert again.code == 0, again.said
    assert result_digests(out / "slide") == result_digests(finished.result)
    totals = {line["stage"]: line["blocks"] for line in Slide(finished.result).history()}
    assert_no_block_twice(before, Slide(out / "slide"), totals)
    record_property("recomputed", f"by the next run {again.computed('slide') or 0}, none twice")
