"""Compare the estimate of ``--dry-run`` with the batch itself.

The figures are wall seconds and bytes. The batch is run by the installed command with its servers and workers, since
this is the time users wait for. Half of its slides are mostly glass, because an estimate that ignores glass is right
for none of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from support.tissue import write_slide

from flows.batch.batch import BatchRequest, plan_batch
from flows.batch.dry_run import estimate_batch
from pipeline.config import load_config

SLIDES = {
    "rich_1": (5120, 1.0),
    "rich_2": (4096, 1.0),
    "rich_3": (4608, 0.8),
    "glass_1": (7168, 0.4),
    "glass_2": (6144, 0.3),
}
"""Side in pixels, and the fraction of each side that tissue covers."""
WORKERS = 2
SETTINGS = (f"cluster.workers={WORKERS}",)


def run(folder: Path, out: Path) -> float:
    """Return the wall seconds of the command."""
    options = [word for setting in SETTINGS for word in ("--set", setting)]
    command = [
        sys.executable,
        "-c",
        "from flows.cli.main import main; main()",
        "segment",
        str(folder),
        "--out",
        str(out),
    ]
    environment = {**os.environ, "PREFECT_HOME": str(out.parent / "prefect")}
    environment.pop("PREFECT_API_URL", None)
    began = time.monotonic()
    subprocess.run([*command, *options], check=True, stdout=sys.stderr, env=environment)
    return time.monotonic() - began


def stored_bytes(out: Path) -> int:
    """Return the bytes of every file below a folder."""
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


def main() -> dict[str, Any]:
    """Return the estimate, the actual figures, and their relative errors."""
    with TemporaryDirectory(prefix="overtile-bench-") as temporary:
        folder, out = Path(temporary) / "slides", Path(temporary) / "out"
        folder.mkdir()
        for name, (side_px, part) in SLIDES.items():
            write_slide(folder / f"{name}.tif", side_px, covered=part)
        config = load_config(None, SETTINGS)
        began = time.monotonic()
        quote = estimate_batch(plan_batch(BatchRequest(inputs=(folder,), out=out, config=config), writing=False))
        quoted_s = time.monotonic() - began
        assert not out.exists(), "an estimate writes no file"
        priced = quote.total
        took_s = run(folder, out)
        took_bytes = stored_bytes(out)
    return {
        "priced_s": round(priced.seconds, 1),
        "took_s": round(took_s, 1),
        "priced_mb": round(priced.stays / 1e6, 1),
        "took_mb": round(took_bytes / 1e6, 1),
        "quoting_s": round(quoted_s, 1),
        "sampled": quote.sampled,
        "tissue_shares": {key: round(one.tissue_share, 3) for key, one in quote.extents.items()},
        "off_in_hours": round(abs(priced.seconds / took_s - 1), 3),
        "off_in_bytes": round(abs(priced.stays / took_bytes - 1), 3),
    }


if __name__ == "__main__":
    print(json.dumps(main()))
