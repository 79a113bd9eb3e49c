"""A hundred thousand blocks on 64 workers.

Cost per block and memory of the scheduler must not grow with the number of blocks. python
tests/benchmarks/bench_scale_long.py
"""

from __future__ import annotations

import json

from bench_scale import SECONDS, SLIDE, measure

MANY, WORKERS = 100_000, 64


if __name__ == "__main__":
    slide, many = (measure(blocks, seconds, WORKERS) for blocks, seconds in ((SLIDE, 0.0), (MANY, SECONDS)))
    growth = many["scheduler_mib"] - slide["scheduler_mib"]
    print(json.dumps({"blocks": MANY, **many, "scheduler_growth_mib": growth, "one_slide": slide}, indent=1))
