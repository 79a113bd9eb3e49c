"""Memory of a slide of 60,000 x 60,000 px relative to 4,096 x 4,096 px.

The benchmark takes minutes, so it is run by name only. Both slides have the same tissue of 4,096 x 4,096 px; the large
one has glass around it, so that it takes minutes and not hours. All stages but the network process all of it. The
network has width 16.

    python tests/benchmarks/bench_long.py
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from bench_memory import SETTINGS, WORKER, measure_command
from support.tissue import write_slide

from unet_core.model_file.header import resolve

TISSUE_PX, LARGE_PX = 4096, 60_000


def measure_long() -> dict[str, Any]:
    """Measure the peaks of both slides in MiB, of the process tree and of the largest worker."""
    found: dict[str, Any] = {"unit": "MiB, PSS", "settings": SETTINGS}
    with tempfile.TemporaryDirectory() as name:
        for side_px, levels in ((TISSUE_PX, 4), (LARGE_PX, 7)):
            slide = write_slide(Path(name, f"{side_px}.tif"), side_px, levels, TISSUE_PX / side_px)
            peaks, seconds = measure_command(slide, Path(name, f"out{side_px}"), resolve("nuclei"))
            found[f"{side_px} px"] = {"peak": peaks.tree, "worker": peaks.of(WORKER), "seconds": seconds}
            found[f"{side_px} px"]["by_stage"] = peaks.stages
    small, large = found[f"{TISSUE_PX} px"], found[f"{LARGE_PX} px"]
    found["long_over_small"] = large["peak"] / small["peak"]
    found["worker_gib"] = large["worker"] / 1024
    return found


if __name__ == "__main__":
    print(json.dumps(measure_long(), indent=1))
