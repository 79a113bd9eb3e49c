"""Cost of the default model of nuclei on a slide scanned at 0.25 um per pixel, compared with that of nuclei@1.

Also the cost of splitting objects at the maxima of a map, compared with that of the network. Stages run in turn in this
process, with one thread, and are compared in CPU seconds. Splitting is the label stage with and without it.

    python tests/benchmarks/bench_models.py
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from support.tissue import write_slide

from flows.batch.batch import BatchRequest, plan_batch
from pipeline.config import load_config
from pipeline.execution.blocks import serial
from pipeline.runs.slide_run import SlideRun
from pipeline.storage.slide_store import SlideStore

ROUNDS, SIDE_PX = 3, 4096
SETTINGS = {
    "default": ("model.weights=nuclei",),
    "components": ("model.weights=nuclei", "objects.method=components"),
    "first": ("model.weights=nuclei@1",),
}
"""Settings of each compared run."""


def cpu_seconds(slide: Path, root: Path, settings: Sequence[str], stages: Sequence[str]) -> dict[str, float]:
    """Run the stages of a slide up to the last one named; return the CPU seconds of each named stage."""
    request = BatchRequest(inputs=(slide,), out=root.parent, config=load_config(None, list(settings)))
    (plan,) = plan_batch(request, writing=False).plans.values()
    run, seconds = SlideRun(plan, SlideStore(root)), {}
    run.prepare(forced=False)
    for stage in plan.hashes:
        began = time.process_time()
        run.step(stage, serial)
        seconds[stage] = time.process_time() - began
        if stage == stages[-1]:
            break
    return {stage: seconds[stage] for stage in stages}


def measure(rounds: int = ROUNDS) -> dict[str, float]:
    """Return the medians over the rounds, and the median of each round's ratios."""
    found: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as name:
        slide = write_slide(Path(name, "slide.tif"), SIDE_PX)
        for number in range(rounds):
            found.append({})
            for which in sorted(SETTINGS, reverse=bool(number % 2)):
                root = Path(name, f"{which}{number}", "slide")
                found[-1][which] = cpu_seconds(slide, root, SETTINGS[which], ("predict", "label"))
    mpx = SIDE_PX**2 / 1e6
    splitting = [one["default"]["label"] - one["components"]["label"] for one in found]
    ratios = [one["first"]["predict"] / one["default"]["predict"] for one in found]
    return {
        "rounds": rounds,
        "default_mpx_per_cpu_s": mpx / statistics.median(one["default"]["predict"] for one in found),
        "first_mpx_per_cpu_s": mpx / statistics.median(one["first"]["predict"] for one in found),
        "default_over_first": statistics.median(ratios),
        "label_cpu_s": statistics.median(one["default"]["label"] for one in found),
        "splitting_cpu_s": statistics.median(splitting),
        "splitting_over_predict": statistics.median(
            spent / one["default"]["predict"] for spent, one in zip(splitting, found, strict=True)
        ),
    }


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]) if sys.argv[1:] else ROUNDS), indent=1))
