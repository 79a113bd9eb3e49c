"""Memory of the command for a slide sixteen times as large.

The figure is the sum of PSS (proportional set size: a page shared by n processes counts 1/n in each) over the process
tree of the real ``overtile segment``, its workers and Prefect server included, sampled from outside. The network is
narrow to keep the run short: memory per worker is smaller, and any growth with the slide more visible.

    python tests/benchmarks/bench_memory.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from support.tissue import write_slide

SMALL_PX, LARGE_PX = 4096, 16384
INTERVAL_S = 0.25
WORKERS, WORKER = 2, "worker"
MODEL = Path(__file__).parents[1] / "exactness" / "golden" / "context.safetensors"
SETTINGS = ("compute.precision=fp32", "tiles.tile=1024", "tiles.block=2048", f"cluster.workers={WORKERS}")


@dataclass(slots=True)
class Peaks:
    """Largest sums in MiB: of the whole tree, and by stage of the run and role of the process."""

    tree: float = 0
    stages: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, by_role: dict[str, float], stage: str) -> None:
        """Add one sample."""
        total = sum(by_role.values())
        self.tree = max(self.tree, total)
        peaks = self.stages.setdefault(stage, {})
        for name, mib in {"tree": total, **by_role}.items():
            peaks[name] = max(peaks.get(name, 0), round(mib))

    def of(self, role: str) -> float:
        """Return the largest sum of one role's processes; workers are numbered, so theirs is the largest single one."""
        return max(mib for peaks in self.stages.values() for name, mib in peaks.items() if name.startswith(role))


def sample(root: psutil.Process) -> dict[str, float]:
    """Return PSS in MiB of a process and its descendants by role; processes that end meanwhile count nothing."""
    by_role: dict[str, float] = defaultdict(float)
    workers = 0
    for process in (root, *root.children(recursive=True)):
        try:
            command = " ".join(process.cmdline())
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text("ascii")
        except (psutil.Error, OSError):
            continue
        role = "command" if process == root else role_of(command)
        workers += role == WORKER
        role = f"{role} {workers}" if role == WORKER else role
        by_role[role] += next((int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")), 0)
    return {role: kib / 1024 for role, kib in by_role.items()}


def role_of(command: str) -> str:
    """Return the role of a child process."""
    if "spawn_main" in command:
        return WORKER
    return "prefect server" if "flows.prefect_server" in command else "other"


def last_stamp(folder: Path) -> str:
    """Return the last completed stage as ``after <stage>``; ``start`` before the first."""
    stamps = sorted(folder.glob("*/.work/*.stamp"), key=os.path.getmtime)
    return f"after {stamps[-1].stem}" if stamps else "start"


def measure_command(slide: Path, out: Path, model: Path = MODEL) -> tuple[Peaks, float]:
    """Run ``overtile segment`` on one slide; return its peaks and wall seconds.

    Raises:
        RuntimeError: The run failed.
    """
    arguments = [
        sys.executable,
        "-c",
        "from flows.cli.main import main; main()",
        "segment",
        str(slide),
        "--out",
        str(out),
    ]
    arguments += ["--model", str(model), *(word for setting in SETTINGS for word in ("--set", setting))]
    peaks, began = Peaks(), time.monotonic()
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(arguments, stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        root = psutil.Process(process.pid)
        while process.poll() is None:
            peaks.add(sample(root), last_stamp(out))
            time.sleep(INTERVAL_S)
        log.seek(0)
        if process.returncode:
            raise RuntimeError(f"overtile segment ended with {process.returncode}:\n{log.read().decode()}")
    return peaks, time.monotonic() - began


def measure_memory() -> dict[str, Any]:
    """Measure the peaks of a small and a large slide with the same tissue and settings, and their ratio."""
    found: dict[str, Any] = {"unit": "MiB, sum of PSS over the process tree", "settings": SETTINGS}
    peaks: dict[int, Peaks] = {}
    with tempfile.TemporaryDirectory() as folder:
        for side_px in (SMALL_PX, LARGE_PX):
            slide = write_slide(Path(folder, f"tissue{side_px}.tif"), side_px)
            peaks[side_px], seconds = measure_command(slide, Path(folder, f"out{side_px}"))
            found[f"{side_px} px"] = {
                "peak": peaks[side_px].tree,
                "prefect_server": peaks[side_px].of("prefect server"),
                "by_stage": peaks[side_px].stages,
                "seconds": seconds,
            }
    found["large_over_small"] = peaks[LARGE_PX].tree / peaks[SMALL_PX].tree
    return found


if __name__ == "__main__":
    print(json.dumps(measure_memory(), indent=1))
