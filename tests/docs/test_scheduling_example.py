"""The page about scheduled runs, followed on a fresh clone.

A run starts, is killed, and the next one completes it. ``pip install`` is replaced by the packages of this environment,
so that no network is needed.
"""

from __future__ import annotations

import os
import re
import site
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import tifffile
from skimage.data import immunohistochemistry

from tests.conftest import skip_or_fail
from tests.support.commands import REPOSITORY, Command, is_complete
from tests.unit.flows.serving import PATIENCE_S, children, exit_codes, running, shards, wait_for

FIRES_WITHIN_S = 120
"""On an idle machine; scaled by the load on a busy one."""


def fresh_clone(folder: Path) -> Path:
    """A clone of the committed files with its own ``.venv``."""
    if not (REPOSITORY / ".git").exists():
        skip_or_fail("no repository here to clone")
    subprocess.run(["git", "clone", "--quiet", REPOSITORY, folder], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / ".venv"], check=True)
    (packages,) = (folder / ".venv" / "lib").glob("*/site-packages")
    (packages / "here.pth").write_text("\n".join([str(folder), *site.getsitepackages()]))
    script = folder / ".venv" / "bin" / "overtile"
    script.write_text(f"#!{folder}/.venv/bin/python\nfrom flows.cli.main import main\n\nmain()\n")
    script.chmod(0o755)
    return folder


def tissue(path: Path) -> None:
    """Write stained tissue with an old modification time: 4 blocks at default settings."""
    path.parent.mkdir()
    pixels = np.tile(immunohistochemistry()[:509, :505], (8, 8, 1))
    resolution = {"resolution": (40000, 40000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", **resolution)  # type: ignore[arg-type]
    os.utime(path, (1e9, 1e9))


@pytest.mark.long
def test_killed_scheduled_run_is_completed_by_the_next(tmp_path: Path) -> None:
    clone = fresh_clone(tmp_path / "clone")
    tissue(clone / "slides" / "tissue.tif")
    page = (clone / ".github" / "docs" / "scheduling.md").read_text("utf-8")
    lines = [line for block in re.findall(r"^```bash\n(.*?)^```", page, re.M | re.S) for line in block.splitlines()]
    (try_it,) = [line for line in lines if "--every" in line]
    (ask,) = [line for line in lines if line.startswith("overtile status")]
    kept = Command.under(tmp_path, None).environment
    command = Command({**kept, "PATH": f"{clone}/.venv/bin:{kept['PATH']}"}, clone)
    out, log = clone / "results", tmp_path / "log"

    began, crowd = time.monotonic(), max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    with running(["bash", "-ec", try_it], command, log) as process:
        wait_for(lambda: "Beginning flow run" in log.read_text(), log, FIRES_WITHIN_S * crowd)
        print(f"fired after {time.monotonic() - began:.0f} s, {crowd:.1f} processes wanting each processor")
        wait_for(lambda: shards(out), log, PATIENCE_S * crowd)
        before = shards(out)
        assert not is_complete(out / "tissue")
        for one in [process, *children(process)]:
            with suppress(psutil.NoSuchProcess):
                one.kill()
    with running(["bash", "-ec", try_it], command, log):
        wait_for(lambda: 0 in exit_codes(out), log, PATIENCE_S * crowd)
    after = shards(out)
    assert len(before) < len(after) == 4, "the run was killed before its end"
    assert {name: after[name] for name in before} == before, "finished blocks were not repeated"
    assert is_complete(out / "tissue")
    done = subprocess.run(
        ["bash", "-ec", ask], env=dict(command.environment), cwd=clone, capture_output=True, text=True
    )
    assert (done.returncode, "1 of 1 slides complete" in done.stdout) == (0, True), done.stdout + done.stderr
