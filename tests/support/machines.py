"""A dask scheduler and workers as separate processes with TLS.

They are started as on several machines. The certificates are made by the command of the documentation.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.commands import REPOSITORY

PAGE = REPOSITORY / ".github" / "docs" / "clusters.md"
DASK = [sys.executable, "-m", "dask"]


def make_certificates(folder: Path) -> Path:
    """Run the page's first commands, which make the folder ``tls``, and return it."""
    block = re.search(r"```bash\n(mkdir .*?)```", PAGE.read_text("utf-8"), re.S)
    assert block, "the page contains the commands that make certificates"
    subprocess.run(["bash", "-euc", block[1]], cwd=folder, check=True, capture_output=True)
    return folder / "tls"


@dataclass(slots=True)
class Machines:
    """Processes that stand for machines, all on 127.0.0.1 unless the scheduler's ``host`` is another."""

    folder: Path
    tls: Path
    host: str = "127.0.0.1"
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """Address of the scheduler."""
        (found,) = re.findall(r"Scheduler at:\s+(tls://\S+)\n", (self.folder / "scheduler.log").read_text())
        return str(found)

    @property
    def settings(self) -> list[str]:
        """Settings of the command for this cluster."""
        return ["cluster.kind=address", f"cluster.address={self.address}", f"cluster.tls={self.tls}"]

    def start_scheduler(self, environment: Mapping[str, str] | None = None) -> None:
        """Start the scheduler and wait until it has an address."""
        arguments = ["--host", self.host, "--port", "0", "--protocol", "tls", "--dashboard-address", "127.0.0.1:0"]
        self._start("scheduler", arguments, environment or {})
        self._until("scheduler", lambda: "dashboard at" in (self.folder / "scheduler.log").read_text())

    def start_worker(
        self, name: str, *options: str, environment: Mapping[str, str] | None = None, within: Sequence[str] = ()
    ) -> None:
        """Start one process with one thread in its own folder and wait until the scheduler has registered it.

        Args:
            name: Name of the worker.
            options: Further options of the worker.
            environment: Further environment variables.
            within: Words of a command that runs the worker somewhere else.
        """
        arguments = [self.address, "--host", "127.0.0.1", "--nworkers", "1", "--nthreads", "1", "--memory-limit", "0"]
        arguments += ["--dashboard-address", "127.0.0.1:0", "--local-directory", str(self.folder / f"{name}.scratch")]
        self._start("worker", [*arguments, "--name", name, *options], environment or {}, name, within)
        self._until(name, lambda: "Registered to" in (self.folder / f"{name}.log").read_text())

    def kill(self, name: str) -> None:
        """Kill the process and its children with SIGKILL, as if the machine was gone."""
        process = self.processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def dismiss(self, name: str) -> None:
        """Terminate the worker in order, with SIGTERM."""
        process = self.processes.pop(name)
        process.terminate()
        process.wait(timeout=60)

    def _start(
        self,
        kind: str,
        arguments: list[str],
        environment: Mapping[str, str],
        name: str | None = None,
        within: Sequence[str] = (),
    ) -> None:
        name = name or kind
        working_folder = self.folder / f"{name}.started-here"
        working_folder.mkdir()
        files = [part for one in ("ca-file ca", "cert cert", "key key") for part in self._option(*one.split())]
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [*within, *DASK, kind, *arguments, *files],
                env={**os.environ, "DASK_CONFIG": str(REPOSITORY / "configs" / "dask.yaml"), **environment},
                cwd=working_folder,
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
def machines(
    folder: Path, *workers: str, environment: Mapping[str, str] | None = None, host: str = "127.0.0.1"
) -> Iterator[Machines]:
    """Run a scheduler, with additional environment variables, and workers of these names; kill all at the end."""
    found = Machines(folder, make_certificates(folder), host)
    try:
        found.start_scheduler(environment)
        for name in workers:
            found.start_worker(name)
        yield found
    finally:
        for name in list(found.processes):
            found.kill(name)


@contextmanager
def network(*names: str) -> Iterator[dict[str, str]]:
    """Create a network namespace for each name, connected to this machine; yield addresses by name, "" for this one.

    Raises:
        CalledProcessError: A namespace cannot be made.
    """
    stem, third = f"ovt{os.getpid() % 10000}", os.getpid() % 250 + 1
    addresses = {name: f"10.231.{third}.{number + 2}" for number, name in enumerate(names)}
    here, bridge = f"10.231.{third}.1", f"{stem}br"
    try:
        _ip(f"link add {bridge} type bridge", f"addr add {here}/24 dev {bridge}", f"link set {bridge} up")
        for name, address in addresses.items():
            end, there = f"{stem}{name}", f"-n {stem}{name}"
            _ip(f"netns add {end}", f"link add {end} type veth peer name eth0 netns {end}")
            _ip(f"link set {end} master {bridge} up", f"{there} addr add {address}/24 dev eth0")
            _ip(f"{there} link set eth0 up", f"{there} link set lo up")
        yield {"": here, **addresses}
    finally:
        for command in (*(f"netns del {stem}{name}" for name in names), f"link del {bridge}"):
            subprocess.run(["ip", *command.split()], check=False, capture_output=True)


def inside(name: str) -> list[str]:
    """Return the words that run a command in the network of that name."""
    return ["ip", "netns", "exec", f"ovt{os.getpid() % 10000}{name}"]


def _ip(*commands: str) -> None:
    for command in commands:
        subprocess.run(["ip", *command.split()], check=True, capture_output=True)
