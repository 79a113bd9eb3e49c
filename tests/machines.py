"""A dask scheduler and workers as separate processes, under TLS, as they would be started on several machines.

The certificates are made by the very command that the documentation states.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.commands import REPOSITORY

PAGE = REPOSITORY / ".github" / "docs" / "machines.md"
DASK = [sys.executable, "-m", "dask"]


def make_certificates(folder: Path) -> Path:
    """The folder ``tls`` that the page's first commands make."""
    block = re.search(r"```bash\n(mkdir .*?)```", PAGE.read_text("utf-8"), re.S)
    assert block, "the page says how certificates are made"
    subprocess.run(["bash", "-euc", block[1]], cwd=folder, check=True, capture_output=True)
    return folder / "tls"


@dataclass(slots=True)
class Machines:
    """Processes that stand for machines, all on 127.0.0.1."""

    folder: Path
    tls: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """Of the scheduler."""
        (found,) = re.findall(r"Scheduler at:\s+(tls://\S+)\n", (self.folder / "scheduler.log").read_text())
        return str(found)

    @property
    def settings(self) -> list[str]:
        """What the command is told."""
        return ["cluster.kind=address", f"cluster.address={self.address}", f"cluster.tls={self.tls}"]

    def start_scheduler(self, environment: Mapping[str, str] | None = None) -> None:
        """Start it, and wait until it has an address."""
        words = ["--host", "127.0.0.1", "--port", "0", "--protocol", "tls", "--dashboard-address", "127.0.0.1:0"]
        self._start("scheduler", words, environment or {})
        self._until("scheduler", lambda: "dashboard at" in (self.folder / "scheduler.log").read_text())

    def start_worker(self, name: str, *options: str, environment: Mapping[str, str] | None = None) -> None:
        """Start one process with one thread, in a folder of its own, and wait until the scheduler knows it."""
        words = [self.address, "--host", "127.0.0.1", "--nworkers", "1", "--nthreads", "1", "--memory-limit", "0"]
        words += ["--dashboard-address", "127.0.0.1:0", "--local-directory", str(self.folder / f"{name}.scratch")]
        self._start("worker", [*words, "--name", name, *options], environment or {}, name)
        self._until(name, lambda: "Registered to" in (self.folder / f"{name}.log").read_text())

    def kill(self, name: str) -> None:
        """SIGKILL of the process and all that it started: the machine is gone."""
        process = self.processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def dismiss(self, name: str) -> None:
        """SIGTERM: it leaves in order."""
        process = self.processes.pop(name)
        process.terminate()
        process.wait(timeout=60)

    def _start(self, kind: str, words: list[str], environment: Mapping[str, str], name: str | None = None) -> None:
        name = name or kind
        place = self.folder / f"{name}.started-here"
        place.mkdir()
        files = [part for one in ("ca-file ca", "cert cert", "key key") for part in self._option(*one.split())]
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [*DASK, kind, *words, *files],
                env={**os.environ, "DASK_CONFIG": str(REPOSITORY / "configs" / "dask.yaml"), **environment},
                cwd=place,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _option(self, option: str, file: str) -> list[str]:
        return [f"--tls-{option}", str(self.tls / f"{file}.pem")]

    def _until(self, name: str, is_so) -> None:  # type: ignore[no-untyped-def]  # tests are not typed
        while not is_so():
            try:
                code = self.processes[name].wait(timeout=0.1)
            except subprocess.TimeoutExpired:
                continue
            raise AssertionError(f"{name} ended with {code}:\n{(self.folder / f'{name}.log').read_text()}")


@contextmanager
def machines(folder: Path, *workers: str, environment: Mapping[str, str] | None = None) -> Iterator[Machines]:
    """A scheduler, with more in its environment, and workers of these names; all gone at the end."""
    found = Machines(folder, make_certificates(folder))
    try:
        found.start_scheduler(environment)
        for name in workers:
            found.start_worker(name)
        yield found
    finally:
        for name in list(found.processes):
            found.kill(name)
