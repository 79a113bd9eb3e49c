"""Compare speed and memory with their bars.

Prints a table, writes bench.json, and exits with 1 if a bar is missed. Each benchmark is a script that prints JSON. It
runs in a fresh process, so that its settings (allocator, threads) do not affect others. A benchmark that fails misses
its bars.

    python tests/benchmarks/bench.py [NAME...]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from support.machine import QUIET, Clock, describe_machine

from pipeline.execution.local_cluster import ENVIRONMENT

HERE = Path(__file__).parent
RESULT = HERE.parents[1] / "bench.json"
BENCHMARKS: dict[str, dict[str, str]] = {
    "predict": ENVIRONMENT,
    "memory": {},
    "labels": ENVIRONMENT,
    "slides": {},
    "ingest": ENVIRONMENT,
    "monai": {},
    "linear": {},
    "price": {},
    "training": {},
    "scale": {},
    "inspect": {},
    "view": {},
    "models": ENVIRONMENT,
}
"""Environment of each: benchmarks that process blocks in their own process use that of a worker."""
LONG: dict[str, dict[str, str]] = {"long": {}, "scale_long": {}}
"""Benchmarks that are run by name only."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A promise in numbers: ``key`` of a benchmark's figures must be ``at least`` or ``at most`` the bound."""

    what: str
    benchmark: str
    key: str
    kind: Literal["at least", "at most"]
    bound: float

    def holds(self, figure: float | None) -> bool:
        """Return whether the figure meets the bar; False if it was not measured."""
        if figure is None:
            return False
        return figure >= self.bound if self.kind == "at least" else figure <= self.bound


BARS = (
    Bar("predict stage over bare network, per CPU second", "predict", "stage_over_bare", "at least", 0.95),
    Bar("two workers over one, wall", "predict", "two_workers_over_one", "at least", 1.8),
    Bar("peak memory, 16,384 px over 4,096 px squared", "memory", "large_over_small", "at most", 1.10),
    Bar("label + measure, MPx per CPU second", "labels", "ours_mpx_per_cpu_s", "at least", 25.0),
    Bar(
        "ingest of a JPEG pyramid over pure decoding, per CPU second", "ingest", "ingest_over_decode", "at least", 0.45
    ),
    Bar("fp32 over MONAI's sliding window, same allocator", "monai", "ours_fp32_over_monai", "at least", 1.6),
    Bar("fp32 over MONAI's sliding window as it is used", "monai", "ours_fp32_over_monai_as_shipped", "at least", 2.7),
    Bar("auto over MONAI's sliding window, same allocator", "monai", "ours_auto_over_monai", "at least", 2.9),
    Bar("auto over MONAI's sliding window as it is used", "monai", "ours_auto_over_monai_as_shipped", "at least", 5.0),
    Bar("seconds before the first tissue cell, t0", "linear", "t0_s", "at most", 12.0),
    Bar("a cell's seconds, largest difference between sizes", "linear", "c_spread", "at most", 0.05),
    Bar("estimated hours over actual hours, relative error", "price", "off_in_hours", "at most", 0.30),
    Bar("estimated bytes over stored bytes, relative error", "price", "off_in_bytes", "at most", 0.15),
    Bar("peak memory, 60,000 px over 4,096 px squared", "long", "long_over_small", "at most", 1.10),
    Bar("GiB of the largest worker at 60,000 px squared", "long", "worker_gib", "at most", 1.5),
    Bar("four workers busy with fifty small slides", "slides", "busy", "at least", 0.90),
    Bar("64 workers busy with blocks of one second", "scale", "efficiency", "at least", 0.95),
    Bar("overhead of a block on 64 workers, ms of wall", "scale", "overhead_ms", "at most", 3.0),
    Bar("64 workers busy within a run of 100,000 blocks", "scale_long", "efficiency", "at least", 0.95),
    Bar("overhead of one of 100,000 blocks, ms of wall", "scale_long", "overhead_ms", "at most", 3.0),
    Bar("MiB the scheduler grows, 2,400 to 100,000 blocks", "scale_long", "scheduler_growth_mib", "at most", 100.0),
    Bar("inspect, 100,000 px squared and a million objects, seconds", "inspect", "inspect_s", "at most", 1.0),
    Bar("view of 100,000 px squared: seconds from start to first view", "view", "first_view_s", "at most", 2.0),
    Bar("view, same slide: ms from a gesture to its last tile, p95", "view", "p95_ms", "at most", 400.0),
    Bar("view, same slide: largest number of requests of a gesture", "view", "most_requests", "at most", 80),
    Bar("view, same slide: MiB of the server", "view", "server_mib", "at most", 600.0),
    Bar(
        "default model over nuclei@1 at 0.25 um, slide pixels per CPU second",
        "models",
        "default_over_first",
        "at least",
        4.0,
    ),
    Bar("splitting objects over the network, CPU seconds", "models", "splitting_over_predict", "at most", 0.10),
    Bar("weight map of 1000 x 1000 px and 300 objects, seconds", "training", "weight_map_s", "at most", 1.0),
    Bar("training steps over a bare loop's, drawing included, wall", "training", "step_over_bare", "at least", 0.85),
)
WITHOUT_BAR = (
    ("label + measure over scikit-image in memory", "labels", "ours_over_skimage"),
    ("label + measure over dask-image labels alone", "labels", "ours_over_dask_image"),
    ("drawing a batch over a bare training step, CPU seconds", "training", "drawing_over_bare_step_cpu"),
)

Results = dict[str, dict[str, Any]]


def run(benchmark: str) -> dict[str, Any]:
    """Run one benchmark; return its figures with its wall time and the load by other processes, or ``error``."""
    print(f"{benchmark} ...", flush=True)
    began = Clock.read()
    done = subprocess.run(
        [sys.executable, str(HERE / f"bench_{benchmark}.py")],
        env=os.environ | {**BENCHMARKS, **LONG}[benchmark],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    ended = Clock.read()
    result: dict[str, Any] = (
        json.loads(done.stdout) if done.returncode == 0 else {"error": f"ended with {done.returncode}"}
    )
    result["wall_s"] = round(ended.wall_s - began.wall_s, 1)
    result["others_share_of_processors"] = round(ended.others_share(began), 3)
    figures = {key: result[key] for bar in BARS if (key := bar.key) in result}
    print(f"{benchmark}: {figures or result} in {result['wall_s']:.0f} s", flush=True)
    return result


def judge(results: Results) -> list[dict[str, Any]]:
    """Return each bar of the benchmarks that were run with its figure and verdict."""
    figures = [(bar, results[bar.benchmark].get(bar.key)) for bar in BARS if bar.benchmark in results]
    return [
        {"what": bar.what, "figure": figure, "bar": f"{bar.kind} {bar.bound:g}", "holds": bar.holds(figure)}
        for bar, figure in figures
    ]


def table(verdicts: Iterable[dict[str, Any]], results: Results) -> str:
    """Format the verdicts, the figures without a bar, and warnings about other load."""
    rows = [("", "figure", "bar", "verdict")]
    rows += [(one["what"], _text(one["figure"]), one["bar"], "holds" if one["holds"] else "MISSED") for one in verdicts]
    rows += [(what, _text(results[name].get(key)), "-", "") for what, name, key in WITHOUT_BAR if name in results]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for name, result in results.items():
        share = result["others_share_of_processors"]
        if share > QUIET:
            lines.append(f"not quiet: while {name} ran, others used {share:.0%} of the processors; measure again")
    return "\n".join(lines)


def _text(figure: float | None) -> str:
    return "not measured" if figure is None else f"{figure:.3f}"


def main(names: list[str]) -> int:
    """Run the named benchmarks, or all; return 0 if every bar holds, else 1."""
    results = {name: run(name) for name in names or BENCHMARKS}
    verdicts = judge(results)
    content = {"machine": describe_machine(), "bars": verdicts, "results": results}
    RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(table(verdicts, results))
    print(f"written: {RESULT}")
    return 0 if all(verdict["holds"] for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
