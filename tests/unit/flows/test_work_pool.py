"""Scheduled runs on many machines: configs/prefect.yaml in a process work pool, by the documented commands.

The server has a password, CSRF protection and one allowed origin, as documented for a shared server.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import psutil
import pytest
import tifffile
from skimage.data import immunohistochemistry

from tests.support.commands import REPOSITORY, Command, is_complete
from tests.unit.flows.serving import PATIENCE_S, exit_codes, lines_of, running, wait_for

AUTH = "somebody:something long"
DOCS = (REPOSITORY / ".github" / "docs" / "scheduling.md").read_text("utf-8")


def documented(beginning: str) -> str:
    """The only line of the documentation that begins like this."""
    (found,) = re.findall(rf"^{re.escape(beginning)}.*$", DOCS, re.M)
    return str(found)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tissue(path: Path) -> Path:
    """Stained tissue of 1018 x 1010 px, no longer being written."""
    path.parent.mkdir()
    pixels = np.tile(immunohistochemistry()[:509, :505], (2, 2, 1))
    resolution = {"resolution": (40000, 40000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", **resolution)  # type: ignore[arg-type]
    os.utime(path, (1e9, 1e9))
    return path


@pytest.mark.long
def test_killed_run_of_a_work_pool_is_crashed_and_the_next_completes_it(tmp_path: Path) -> None:
    tissue(tmp_path / "slides" / "tissue.tif")
    out, log, port = tmp_path / "out", tmp_path / "log", free_port()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    server = Command.under(tmp_path, None).with_environment(
        PATH=path,
        PREFECT_SERVER_API_AUTH_STRING=AUTH,
        PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED="true",
        PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS=f"http://127.0.0.1:{port}",
        DO_NOT_TRACK="1",
    )
    api = f"http://127.0.0.1:{port}/api"
    sha256 = re.search(r"sha256 (\w{64})", server.run("model", "info", "nuclei").stdout)
    assert sha256 is not None
    command = Command.under(tmp_path, api).with_environment(
        PATH=path,
        PREFECT_API_AUTH_STRING=AUTH,
        OVERTILE_SLIDES=str(tmp_path / "slides"),
        OVERTILE_OUT=str(out),
        OVERTILE_SHA256=sha256[1],
    )
    (command.folder / "configs").mkdir()
    example = (REPOSITORY / "configs" / "prefect.yaml").read_text("utf-8")
    cron = re.compile(r'cron: "0 1 \* \* \*"\n +timezone: Europe/Berlin')
    (command.folder / "configs" / "prefect.yaml").write_text(cron.sub("interval: 30", example))

    def told() -> list[str]:
        """Names of the states of runs that are late or failed."""
        states = [word for state in ("Late", "Crashed", "Cancelled") for word in ("--state", state)]
        line = ["prefect", "flow-run", "ls", *states, "--limit", "50", "--output", "json"]
        done = subprocess.run(line, env=dict(command.environment), capture_output=True, text=True)
        return re.findall(r'"name": "([A-Z][a-z]+)"', done.stdout)

    start = documented("prefect server start").split()
    with running([*start, "--port", str(port), "--no-ui"], server, log):
        wait_for(lambda: answers(f"{api}/health"), log)
        assert not answers(f"{api}/flow_runs/count"), "it wants a password"
        for line in ("prefect work-pool create", "prefect deploy"):
            done = subprocess.run(
                ["bash", "-ec", documented(line)],
                env=dict(command.environment),
                cwd=command.folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stdout + done.stderr
        wait_for(lambda: told().count("Late") >= 2, log)
        with running(documented("prefect worker start").split(), command, log):
            (began,) = wait_for(lambda: lines_of(out, "began"), log)
            psutil.Process(began["pid"]).kill()
            states = wait_for(lambda: "Crashed" in (found := told()) and found, log)
            assert "Cancelled" in states, "of those that are late one begins"
            wait_for(lambda: 0 in exit_codes(out), log, 2 * PATIENCE_S)
    assert is_complete(out / "tissue")


def answers(url: str) -> bool:
    """Whether a page is served without authentication."""
    try:
        urllib.request.urlopen(url, timeout=30).close()
    except (OSError, urllib.error.HTTPError):
        return False
    return True
