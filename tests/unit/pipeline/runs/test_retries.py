"""Each kind of failure is retried in one place: blocks by the mapper, everything around them by the slide run."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.errors import DiskError, WorkerError
from pipeline.execution.blocks import RETRIES, Counts, StageReport, serial
from pipeline.runs import stage_runner
from pipeline.runs.slide_run import SlideRun
from pipeline.storage.slide_store import Index, SlideStore


def step(root: Path, run_stage: Callable[[], StageReport], monkeypatch: pytest.MonkeyPatch) -> StageReport:
    """One step of a slide run whose stage does nothing but ``run_stage``."""
    monkeypatch.setattr(stage_runner, "run_stage", lambda *_: run_stage())
    plan: Any = SimpleNamespace(hashes={"predict": "0" * 64})
    (root / ".work").mkdir()
    return SlideRun(plan, SlideStore(root)).step("predict", serial)


def test_io_error_of_block_is_not_retried_again_by_slide_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[Index] = []

    def block(index: Index) -> Counts:
        attempts.append(index)
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(WorkerError, match=rf"row 0, col 0.*{RETRIES + 1} times in a row"):
        step(tmp_path, lambda: StageReport("predict", counts=next(serial(block, [(0, 0)]))), monkeypatch)
    assert len(attempts) == RETRIES + 1


@pytest.mark.parametrize("failures", [1, RETRIES])
def test_transient_io_error_outside_blocks_is_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    attempts: list[int] = []

    def run_stage() -> StageReport:
        attempts.append(len(attempts))
        if len(attempts) <= failures:
            raise OSError(errno.ESTALE, "Stale file handle")
        return StageReport("predict", computed=7)

    assert step(tmp_path, run_stage, monkeypatch).computed == 7
    assert len(attempts) == failures + 1


def test_full_disk_is_not_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[int] = []

    def run_stage() -> StageReport:
        attempts.append(len(attempts))
        raise DiskError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DiskError):
        step(tmp_path, run_stage, monkeypatch)
    assert attempts == [0]
