"""A run stopped by a deadline at any block: completed blocks are kept and later runs complete the slide."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from flows.batch import scheduler
from flows.batch.batch import Batch, BatchRequest, plan_batch
from flows.batch.deadline import Deadline, read_clock
from flows.batch.scheduler import Executor, SlideScheduler, StageJob, StageResult
from flows.reports.batch_files import Report, record_in_history
from pipeline.config import load_config
from pipeline.execution.blocks import serial
from pipeline.slides.modification_time import file_states
from tests.support.commands import CLASSES, files_of, is_complete, result_digests
from tests.support.faults.pictures import draw, red_and_blue, write

BLOCKS = 6


@dataclass(frozen=True, slots=True)
class CountedDeadline(Deadline):
    """A deadline that passes after it was checked so many times."""

    left: list[int] = field(default_factory=list)

    def is_over(self) -> bool:
        self.left[0] -= 1
        return self.left[0] < 0


def submit(job: StageJob) -> Future[StageResult | BaseException]:
    """Run a stage at once, in this thread."""
    future: Future[StageResult | BaseException] = Future()
    try:
        future.set_result(job.run())
    except Exception as error:
        future.set_result(error)
    return future


@pytest.fixture
def run(tmp_path: Path) -> Callable[[str, int], Batch]:
    """Segment one slide of six blocks, with a deadline that passes after so many checks."""
    slide = write(tmp_path / "slides" / "slide.tif", draw((700, 1100), red_and_blue((700, 1100))))
    settings = [f"model.weights={CLASSES}", "cluster.kind=serial", "tiles.block=512", "compute.precision=fp32"]

    def once(name: str, looks: int) -> Batch:
        request = BatchRequest(inputs=(slide,), out=tmp_path / name, config=load_config(None, settings))
        batch = plan_batch(request)
        batch.deadline = CountedDeadline(0.0, read_clock("07:00"), [looks])
        report = Report(batch)
        report.batch_planned(batch)
        with record_in_history(batch):
            SlideScheduler(batch, Executor(lambda *_: serial, lambda: 1, lambda: None), report, submit).run()
            report.finish()
        return batch

    return once


def shards(out: Path) -> dict[str, Any]:
    return {name: state for name, state in files_of(out).items() if "/c/" in name and "/0/c/" in name}


def test_run_stopped_repeatedly_gives_the_same_bytes_and_repeats_no_block(
    run: Callable[[str, int], Batch], tmp_path: Path
) -> None:
    whole = run("whole", 10**6)
    assert whole.exit_code() == 0, whole.outcomes
    causes, before = [], {}
    for looks in range(3, 40):
        batch = run("stopped", looks)
        (outcome,) = batch.outcomes
        after = shards(tmp_path / "stopped")
        assert {name: after[name] for name in before if name in after} == before, "no shard was rewritten"
        before = after
        if outcome.is_up_to_date:
            break
        assert (outcome.state, batch.exit_code()) == ("resumable", 3)
        assert not is_complete(tmp_path / "stopped" / "slide")
        summary = (tmp_path / "stopped" / "summary.md").read_text()
        assert "1 resumable" in summary
        assert "07:00" in summary
        causes.append(f"{outcome.stage}: {outcome.cause}")
    assert outcome.is_up_to_date
    assert {cause.partition(":")[0] for cause in causes} >= {"ingest", "predict"}, "it was stopped in these stages"
    assert "predict: stopped at 07:00; completed blocks are kept, and the next run resumes" in causes
    assert result_digests(tmp_path / "stopped" / "slide") == result_digests(tmp_path / "whole" / "slide")


def test_slide_not_started_in_time_is_resumable_and_complete_ones_stay_complete(
    run: Callable[[str, int], Batch], tmp_path: Path
) -> None:
    batch = run("out", 0)
    (outcome,) = batch.outcomes
    assert (outcome.state, batch.exit_code()) == ("resumable", 3)
    assert outcome.cause == "not started before 07:00; the next run resumes"
    assert run("out", 10**6).exit_code() == 0
    batch = run("out", 0)
    assert (batch.outcomes[0].state, batch.exit_code()) == ("complete before", 0)


def test_slide_that_grows_while_it_is_read_is_deferred(
    run: Callable[[str, int], Batch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 24, detected by the scheduler: the pixels read may be incomplete."""
    slide = tmp_path / "slides" / "slide.tif"
    before, look = file_states(slide), scheduler.defer_changed

    def grow(batch: Batch, outcome: Any) -> bool:
        batch.files[outcome.key] = before
        if (batch.request.out / "slide" / ".work" / "ingest.stamp").exists():
            with slide.open("ab") as file:
                file.write(b"more")
        return look(batch, outcome)

    monkeypatch.setattr(scheduler, "defer_changed", grow)
    batch = run("out", 10**6)
    (outcome,) = batch.outcomes
    assert (outcome.state, set(outcome.computed)) == ("deferred", {"ingest"})
    assert not is_complete(tmp_path / "out" / "slide")
