"""Utilisation of four workers with fifty small slides.

A worker's network is a timed wait, so that four workers fit on two cores. Everything else is real: the command,
Prefect, reading, labelling, files. Utilisation is the share of the workers' time spent in blocks, by dask's start and
stop times of tasks, from the first block of the network to the last.

    python tests/benchmarks/bench_slides.py [SLIDES]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.simulated import FOLDER, SPEED
from support.tissue import write_slide

SLIDES, SIDE_PX, WORKERS, MPX_S = 50, 3000, 4, 1.5
NETWORK = "predict_block"
HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class TaskTime:
    """A task that ran in a worker, in wall-clock time."""

    function: str
    start_s: float
    stop_s: float


def read_times(folder: Path) -> list[TaskTime]:
    """Read the tasks of all workers."""
    lines = [line for path in folder.glob("*.jsonl") for line in path.read_text("utf-8").splitlines()]
    return [TaskTime(*json.loads(line)) for line in lines]


def busy(tasks: list[TaskTime]) -> dict[str, Any]:
    """Return the share of worker time spent in blocks while the network has blocks, and the seconds by function."""
    network = [task for task in tasks if task.function == NETWORK]
    first, last = min(task.start_s for task in network), max(task.stop_s for task in network)
    spent: Counter[str] = Counter()
    for task in tasks:
        spent[task.function] += max(0.0, min(last, task.stop_s) - max(first, task.start_s))
    share = sum(spent.values()) / (WORKERS * (last - first))
    seconds = {function: round(found, 1) for function, found in spent.most_common()}
    return {"busy": share, "window_s": last - first, "seconds_by_function": seconds}


def segment(folder: Path, slides: Path) -> float:
    """Run the real command over a folder; return its wall seconds.

    Raises:
        RuntimeError: The run failed.
    """
    times = folder / "times"
    times.mkdir()
    environment = {
        **os.environ,
        "PYTHONPATH": str(HERE),
        "DASK_DISTRIBUTED__WORKER__PRELOAD": json.dumps([str(HERE / "support" / "simulated.py")]),
        FOLDER: str(times),
        SPEED: str(MPX_S),
    }
    arguments = [sys.executable, "-c", "from flows.cli.main import main; main()", "segment", str(slides)]
    arguments += ["--out", str(folder / "out"), "--set", f"cluster.workers={WORKERS}"]
    began = time.monotonic()
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"overtile segment ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return time.monotonic() - began


def measure_slides(number: int = SLIDES) -> dict[str, Any]:
    """Measure one batch of many links to one slide."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "slides").mkdir()
        slide = write_slide(folder / "slide.tif", SIDE_PX, levels=2)
        for position in range(number):
            os.link(slide, folder / "slides" / f"{position:02d}.tif")
        seconds = segment(folder, folder / "slides")
        found = busy(read_times(folder / "times"))
    return {"slides": number, "side_px": SIDE_PX, "workers": WORKERS, "command_s": seconds, **found}


if __name__ == "__main__":
    print(json.dumps(measure_slides(*map(int, sys.argv[1:])), indent=1))
