"""Wall time of ``overtile inspect`` on a large slide.

The slide has 100,000 x 100,000 px and a million objects. A run is the installed command from start to end, compared
with one that does nothing. The result is a virtual one (see virtual.py); the page cache is warm.

    python tests/benchmarks/bench_inspect.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from support.virtual import SIDE_PX, virtual_result

RUNS = 5
OBJECTS = 1_000_000


def seconds(command: list[str | Path]) -> float:
    """Return the wall seconds of the command."""
    began = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    taken = time.perf_counter() - began
    assert f"{SIDE_PX} x {SIDE_PX} px" in done.stdout
    assert f"{OBJECTS} objects" in done.stdout
    return taken


def main() -> None:
    """Print the figures as JSON."""
    overtile = Path(sys.executable).parent / "overtile"
    with TemporaryDirectory(prefix="overtile-bench-") as folder:
        store = virtual_result(Path(folder) / "slide", OBJECTS)
        files = sum(path.is_file() for path in store.root.rglob("*"))
        taken = [seconds([overtile, "inspect", store.root]) for _ in range(RUNS)]
        nothing = [seconds_of_help(overtile) for _ in range(RUNS)]
    print(json.dumps({"inspect_s": median(taken), "all_s": taken, "help_s": median(nothing), "files": files}))


def seconds_of_help(overtile: Path) -> float:
    """Return the wall seconds of a command that does nothing."""
    began = time.perf_counter()
    subprocess.run([overtile, "inspect", "--help"], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
