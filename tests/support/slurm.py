"""A SLURM of one node for tests.

Controller and node are separate processes on loopback. The node claims 64 processors and 256 GiB, so that jobs are
accepted as on a cluster. Identity is not checked (auth/none), since SLURM is reachable only from this machine.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "sinfo")
CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/none
CredType=cred/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=64 RealMemory=262144
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def lacking() -> str:
    """Return why SLURM cannot run here; empty if it can."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"no SLURM here ({', '.join(missing)}): make slurm installs it where Debian's may be"
    return "" if os.getuid() == 0 else "a node of SLURM takes root"


@contextmanager
def running_slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Run SLURM while the context is open; yield the environment variables that a command needs to use it."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host = socket.gethostname()
    ports = dict(zip(("controller_port", "node_port"), free_ports(2), strict=True))
    (folder / "slurm.conf").write_text(CONF.format(host=host, folder=folder, **ports))
    environment = {"SLURM_CONF": str(folder / "slurm.conf")}
    with ExitStack() as stack:
        controller = stack.enter_context(_running(["slurmctld", "-D"], folder, environment))
        stack.enter_context(_running(["slurmd", "-D", "-N", host], folder, environment))
        for _ in range(300):
            state = subprocess.run(["sinfo", "-h", "-o", "%t"], env=os.environ | environment, capture_output=True)
            if state.stdout.strip() == b"idle":
                break
            with suppress(subprocess.TimeoutExpired):
                controller.wait(timeout=0.2)
        else:
            raise AssertionError((folder / "slurmctld.log").read_text() + (folder / "slurmd.log").read_text())
        yield environment


def free_ports(number: int) -> list[int]:
    """Return unused ports of loopback."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@contextmanager
def _running(command: list[str], folder: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / f"{command[0]}.log").open("wb") as log:
        process = subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
