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
from tests.faults.standing import Slide, Standing, assert_no_block_twice
from tests.faults.trees import Finished

NAMED = "overview.png"
"""Shows the slide's name, and so differs between copies."""
PATIENCE_S = 400


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
