"""Stopped politely: the exit code says by what, nothing is left running, and the same command goes on."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import numpy as np
import psutil
import pytest
import tifffile
from skimage.data import immunohistochemistry

from tests.commands import CONTEXT, Command, installed_command


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGTERM, "local"), (signal.SIGINT, "serial")])
def test_fault_10_a_signal_ends_it_soon_and_resumable(
    overtile: Command, tmp_path: Path, number: int, kind: str
) -> None:
    slide = tmp_path / "slide.tif"
    tifffile.imwrite(slide, np.tile(immunohistochemistry()[:509, :505], (5, 5, 1)), tile=(256, 256), photometric="rgb")
    settings = [
        f"cluster.kind={kind}",
        "cluster.workers=1",
        "tiles.block=512",
        "tiles.tile=512",
        "tissue=null",
        "objects.min_area_um2=20",
    ]
    options = ["--mpp", "0.25", "--model", CONTEXT, *(word for setting in settings for word in ("--set", setting))]
    line = ["segment", slide, "--out", tmp_path / "out", *options]

    running = subprocess.Popen(
        [*installed_command(), *map(str, line)], env=dict(overtile.environment), stderr=subprocess.PIPE, text=True
    )
    shards = tmp_path / "out" / "slide" / "slide.ome.zarr" / "probability" / "0" / "c" / "0"
    while len(list(shards.glob("*/*"))) < 3:
        with pytest.raises(subprocess.TimeoutExpired):
            running.wait(timeout=0.05)
    children = psutil.Process(running.pid).children(recursive=True)
    running.send_signal(number)
    _, said = running.communicate(timeout=30)
    assert running.returncode == 128 + number
    assert said.splitlines()[-1] == "error: stopped. Run the same command again to go on"
    assert "Traceback" not in said
    assert not psutil.wait_procs(children, timeout=30)[1]

    done = len(list(shards.glob("*/[0-9]*")))
    assert not (tmp_path / "out" / "slide" / "manifest.json").exists()
    again = overtile.run(*line, out=tmp_path / "out")
    assert again.code == 0, again.said
    assert again.computed("slide")["predict"] == 25 - done
