"""Unpack the frozen files, and repeat the commands that made them."""

from __future__ import annotations

import hashlib
import json
import platform
import tarfile
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

from tests.support.commands import Command
from tests.unit.flows.serving import api, ask, serving, wait_for

FROZEN = Path(__file__).parent
MADE, MODELS, DEPLOYMENT = (
    json.loads((FROZEN / f"{name}.json").read_text()) for name in ("made", "models", "deployment")
)
TERMINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


def unpack(name: str, folder: Path) -> Path:
    """Unpack an archive into a folder. Modification times are those in the archive."""
    with tarfile.open(FROZEN / f"{name}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def command_words(name: str, out: str) -> list[str]:
    """Arguments of the command that made a fixture, with another output folder."""
    words = list(MADE["commands"][name][1:])
    if "--out" not in words:
        return [*words, "--out", out]
    words[words.index("--out") + 1] = out
    return words


def at(command: Command, folder: Path) -> Command:
    """The command, started in a folder: the frozen commands name relative paths."""
    return replace(command, folder=folder)


def same_arithmetic() -> bool:
    """Whether network arithmetic gives the recorded bytes: same instruction set, machine and torch release."""
    here = {
        "capability": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "torch": version("torch").partition("+")[0],
    }
    return bool(here == MADE["cpu"])


# ---- schedule --------------------------------------------------------------------------------------------------------


def stored_request(folder: Path) -> dict[str, Any]:
    """Stored parameters of the deployment, for files in ``folder`` instead of the folder they were made in."""
    text = json.dumps(DEPLOYMENT["parameters"])
    return dict(json.loads(text.replace(DEPLOYMENT["folder"], str(folder))))


def deployment_name(out: Path) -> str:
    """Name of the deployment of an output folder: a deployment of the same name is replaced."""
    return f"{out.name}-{hashlib.sha256(json.dumps(str(out)).encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Served:
    """A schedule that is being served, and its Prefect server."""

    log: Path

    def deployment(self, out: Path) -> dict[str, Any]:
        """The registered deployment of an output folder."""
        wanted = {"deployments": {"name": {"any_": [deployment_name(out)]}}}
        (found,) = ask(self.log, "deployments/filter", wanted)
        return dict(found)

    def read(self, path: str) -> dict[str, Any]:
        """The JSON answer to a GET request."""
        with urllib.request.urlopen(f"{api(self.log)}/{path}", timeout=30) as answer:
            return dict(json.load(answer))

    def run(self, deployment: Mapping[str, Any], parameters: Mapping[str, Any]) -> str:
        """Run the deployment once with these parameters; return the name of the final state."""
        begun = ask(self.log, f"deployments/{deployment['id']}/create_flow_run", {"parameters": dict(parameters)})

        def final() -> str | None:
            found = self.read(f"flow_runs/{begun['id']}")
            return str(found["state_name"]) if found["state_type"] in TERMINAL else None

        return str(wait_for(final, self.log))


@contextmanager
def served_schedule(command: Command, log: Path) -> Iterator[Served]:
    """Serve the schedule of the recorded command while the block runs."""
    with serving(command, log, *DEPLOYMENT["command"][2:]) as process:
        wait_for(lambda: "runs are shown at" in log.read_text() or process.status() == psutil.STATUS_ZOMBIE, log)
        assert "runs are shown at" in log.read_text(), log.read_text()
        yield Served(log)
