"""matplotlib is needed by reports of training and evaluation, and by nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.faults.trees import Finished

BLOCKED = "import sys; sys.modules['matplotlib'] = None; "


def python(code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Python code in which ``import matplotlib`` fails."""
    return subprocess.run([sys.executable, "-c", BLOCKED + code, *arguments], capture_output=True, text=True)


def test_missing_matplotlib_is_reported_with_the_extra_that_installs_it() -> None:
    for module in ("flows.reports.evaluation_html", "flows.training.report_html"):
        ran = python(f"import {module}")
        error = ran.stderr.splitlines()[-1]
        assert error.startswith("pipeline.errors.ConfigError: reports of training and evaluation: expected the library")
        assert error.endswith("Install it: pip install 'overtile[train]'")


def test_batch_report_is_written_without_matplotlib(finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished.result, tmp_path / "slide")
    ran = python("from pathlib import Path; from flows.reports.batch_html import write_report; "
                 "print(write_report(Path(sys.argv[1])))", tmp_path)  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "1 of 1 slides complete" in Path(ran.stdout.strip()).read_text("utf-8")
