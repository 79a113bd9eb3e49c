"""Run time as t0 + c * tissue cells.

This shows the start-up cost, and whether a cell costs the same at every size. Measured are wall seconds of the real
command, which is what users wait for. t0 is the intercept of the straight line through all sizes, c the slope between
neighbouring sizes. Sizes are run in turn, equally often, and the fastest run of each counts, since disturbances only
add time.

    python tests/benchmarks/bench_linear.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from support.tissue import write_slide

SIDES_PX, ROUNDS, CELL_PX, WORKERS = (4096, 8192, 12288), 3, 512, 2


def seconds_of(slide: Path, out: Path) -> float:
    """Return the wall seconds of one run.

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
    began = time.monotonic()
    done = subprocess.run(
        [*arguments, "--set", f"cluster.workers={WORKERS}"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"overtile segment ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return time.monotonic() - began


def fit(cells: list[int], seconds: list[float]) -> dict[str, float]:
    """Return t0, c, and the range of slopes between neighbouring sizes relative to c."""
    slope, intercept = np.polyfit(cells, seconds, 1)
    slopes = np.diff(seconds) / np.diff(cells)
    return {"t0_s": float(intercept), "c_ms_per_cell": 1000 * float(slope), "c_spread": float(np.ptp(slopes) / slope)}


def measure_linear() -> dict[str, Any]:
    """Fit the times of slides that are all tissue."""
    seconds: dict[int, list[float]] = {side_px: [] for side_px in SIDES_PX}
    with tempfile.TemporaryDirectory() as name:
        slides = {side_px: write_slide(Path(name, f"{side_px}.tif"), side_px) for side_px in SIDES_PX}
        for number in range(ROUNDS):
            for side_px, slide in slides.items():
                seconds[side_px].append(seconds_of(slide, Path(name, f"out{side_px}.{number}")))
    fastest = [min(found) for found in seconds.values()]
    return {"seconds": seconds, **fit([(side_px // CELL_PX) ** 2 for side_px in SIDES_PX], fastest)}


if __name__ == "__main__":
    print(json.dumps(measure_linear(), indent=1))
