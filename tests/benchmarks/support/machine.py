"""Description of the machine of a benchmark, and its load by other processes.

The share of the processors used by others is measured and written with each result, because ratios of wall seconds
from a busy machine are unreliable.
"""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from pipeline.storage.manifest import PACKAGES, package_version

MORE_PACKAGES = ("scipy", "distributed", "zarr", "dask-image")
QUIET = 0.10
"""Largest share of the processors used by others at which a machine counts as quiet."""


def describe_machine() -> dict[str, Any]:
    """Return processor, memory, system and package versions, and the date."""
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {package: package_version(package) for package in sorted({*PACKAGES, *MORE_PACKAGES})},
    }


@dataclass(frozen=True, slots=True)
class Clock:
    """Processor seconds of the whole machine and of this process's ended children, at one moment."""

    wall_s: float
    busy_s: float
    children_s: float

    @classmethod
    def read(cls) -> Self:
        """Read the current values. Time stolen by the machine's host counts as busy."""
        fields = [int(text) for text in Path("/proc/stat").read_text("ascii").split("\n", 1)[0].split()[1:9]]
        user, nice, system, _idle, _waiting, interrupts, soft, steal = fields
        ticks = user + nice + system + interrupts + soft + steal
        times = os.times()
        return cls(time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), times.children_user + times.children_system)

    def others_share(self, since: Self) -> float:
        """Return the share of the processors, 0..1, neither idle nor used by this process's children since then."""
        available_s = (self.wall_s - since.wall_s) * (os.cpu_count() or 1)
        others_s = (self.busy_s - since.busy_s) - (self.children_s - since.children_s)
        return max(0.0, others_s / available_s)
