"""The scheduler and its seams: how stages are submitted and what their errors do."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

import pytest

from flows.batch.batch import Batch, BatchRequest, plan_batch
from flows.batch.scheduler import Executor, ListenerGroup, SlideScheduler, StageJob, StageResult
from pipeline.config import load_config
from pipeline.errors import ClusterError
from pipeline.execution.blocks import MapBlocks, serial
from pipeline.stage_table import STAGE, STAGES
from tests.support.commands import CLASSES
from tests.support.faults.pictures import draw, red_and_blue, write

SETTINGS = [f"model.weights={CLASSES}", "cluster.kind=serial", "tiles.block=512", "cluster.slides_at_once=1"]


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    for name in ("a", "b", "c"):
        write(tmp_path / "slides" / f"{name}.tif", draw((100, 100), red_and_blue((100, 100))))
    return plan_batch(
        BatchRequest(inputs=(tmp_path / "slides",), out=tmp_path / "out", config=load_config(None, SETTINGS))
    )


def executor_of(stops: list[str]) -> Executor:
    return Executor(lambda *_: serial, lambda: 1, lambda: stops.append("stopped"))


def test_error_of_the_submitter_ends_the_batch_and_stops_the_executor(batch: Batch) -> None:
    """A stage that could not be run at all is no failure of its slide."""

    def submit(job: StageJob) -> Future[StageResult | BaseException]:
        future: Future[StageResult | BaseException] = Future()
        future.set_exception(ConnectionError("the server is gone"))
        return future

    stops: list[str] = []
    scheduler = SlideScheduler(batch, executor_of(stops), ListenerGroup(), submit)
    with pytest.raises(ConnectionError, match="the server is gone"):
        scheduler.run()
    assert stops == ["stopped"]
    assert scheduler.stopping.is_set()
    assert {outcome.state for outcome in batch.outcomes} == {"waiting"}


def test_error_of_a_stage_fails_its_slide_and_the_others_run(batch: Batch) -> None:
    submitted: list[tuple[str, str]] = []

    def submit(job: StageJob) -> Future[StageResult | BaseException]:
        submitted.append((job.slide.outcome.key, job.stage))
        future: Future[StageResult | BaseException] = Future()
        future.set_result(ValueError("no pixels"))
        return future

    SlideScheduler(batch, executor_of([]), ListenerGroup(), submit).run()
    assert submitted == [("a", "ingest"), ("b", "ingest"), ("c", "ingest")], "one at a time, in order"
    assert {outcome.state for outcome in batch.outcomes} == {"failed"}
    assert all("no pixels" in outcome.cause for outcome in batch.outcomes)


def test_lost_workers_end_the_batch_and_count_against_no_slide(batch: Batch) -> None:
    submitted: list[str] = []

    def submit(job: StageJob) -> Future[StageResult | BaseException]:
        submitted.append(job.slide.outcome.key)
        future: Future[StageResult | BaseException] = Future()
        future.set_result(ClusterError("no worker is left"))
        return future

    SlideScheduler(batch, executor_of([]), ListenerGroup(), submit).run()
    assert submitted == ["a"], "no further slide is opened"
    assert [outcome.state for outcome in batch.outcomes] == ["resumable"] * 3
    assert {outcome.attempt for outcome in batch.outcomes} == {""}


def test_mappers_are_requested_for_stages_only(batch: Batch) -> None:
    """The manifest has no blocks, and workers know the stages of the stage table only."""
    mapped: list[str] = []

    def map_for(_rank: int, stage: str) -> MapBlocks:
        mapped.append(STAGE[stage].name)
        return serial

    def submit(job: StageJob) -> Future[StageResult | BaseException]:
        future: Future[StageResult | BaseException] = Future()
        future.set_result(job.run())
        return future

    executor = Executor(map_for, lambda: 1, lambda: None)
    SlideScheduler(batch, executor, ListenerGroup(), submit).run()
    assert {outcome.state for outcome in batch.outcomes} == {"complete"}
    assert mapped == [*STAGES] * 3
