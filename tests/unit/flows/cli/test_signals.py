"""Signals: the exit code names the signal, no process is left, and the same command resumes."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Sequence, Set
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import tifffile
from skimage.data import immunohistochemistry

from tests.support.commands import CONTEXT, Command, installed_command

Stop = tuple[tuple[int, ...], str]
QUICK: tuple[Stop, ...] = (((signal.SIGTERM,), "serial"),)
POLITE: tuple[Stop, ...] = (((signal.SIGTERM,), "local"), ((signal.SIGINT,), "serial"))
HURRIED: tuple[Stop, ...] = (((signal.SIGINT, signal.SIGINT), "local"),)


@pytest.mark.parametrize(
    "stops",
    [QUICK, pytest.param(POLITE, marks=pytest.mark.long), pytest.param(HURRIED, marks=pytest.mark.long)],
    ids=["once", "workers", "twice"],
)
def test_fault_10_signal_stops_the_run_soon_and_it_is_resumable(
    overtile: Command, tmp_path: Path, stops: tuple[Stop, ...]
) -> None:
    """Each run resumes the one before."""
    slide, out = tmp_path / "slide.tif", tmp_path / "out"
    tifffile.imwrite(slide, np.tile(immunohistochemistry()[:509, :505], (3, 4, 1)), tile=(256, 256), photometric="rgb")
    settings = ["cluster.workers=1", "tiles.block=512", "tiles.tile=512", "tissue=null", "objects.min_area_um2=20"]
    options = ["--mpp", "0.25", "--model", CONTEXT, *(word for setting in settings for word in ("--set", setting))]
    line = ["segment", slide, "--out", out, *options, "--set"]
    shards = out / "slide" / "slide.ome.zarr" / "probability" / "0" / "c" / "0"
    done: set[tuple[str, int]] = set()
    for numbers, kind in stops:
        said = stopped(overtile, [*line, f"cluster.kind={kind}"], numbers, partial(has_three_more, shards, done))
        assert len(numbers) == 2 or said.splitlines()[-1] == "error: stopped. Run the same command again to go on"
        assert "Traceback" not in said
        assert not (out / "slide" / "manifest.json").exists()
        assert done < written(shards), "what was done was done again"
        done = written(shards)
    again = overtile.run(*line, "cluster.kind=serial", out=out)
    assert again.code == 0, again.transcript
    assert again.computed("slide")["predict"] == 12 - len(done)


def written(shards: Path) -> set[tuple[str, int]]:
    """Shards with their inodes; a rewritten shard has another inode."""
    return {(str(path), path.stat().st_ino) for path in shards.glob("*/[0-9]")}


def has_three_more(shards: Path, done: Set[tuple[str, int]]) -> bool:
    """Than were there before."""
    return len(written(shards) - done) >= 3


def stopped(command: Command, line: Sequence[str | Path], numbers: Sequence[int], until: Callable[[], bool]) -> str:
    """Start the command, send signals under a condition, and return its output once all its processes have ended."""
    running = subprocess.Popen(
        [*installed_command(), *map(str, line)], env=dict(command.environment), stderr=subprocess.PIPE, text=True
    )
    while not until():
        with pytest.raises(subprocess.TimeoutExpired):
            running.wait(timeout=0.05)
    children = psutil.Process(running.pid).children(recursive=True)
    for number in numbers:
        running.send_signal(number)
    _, said = running.communicate(timeout=30)
    assert running.returncode == 128 + numbers[-1]
    assert not psutil.wait_procs(children, timeout=30)[1]
    return said
