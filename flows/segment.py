"""The flow: a batch of slides, one Prefect task for each stage of each slide, blocks on dask inside a task.

The one decision made here: Prefect shows and schedules, it is never the ledger. What is done is what lies on disk, so
its database may be lost or lie and no pixel changes. One slide computes while the next is read.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

from httpx import HTTPError  # what Prefect lets through when its server cannot be reached
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import PrefectException
from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import quote

from flows.batch import MANIFEST, Batch, BatchRequest, OpenSlide, Outcome, open_slide_run, plan_batch
from flows.plain import printable
from flows.report import Report, slide_markdown
from pipeline.errors import OvertileError
from pipeline.store import Index
from pipeline.work import Counts, MapBlocks, StageReport, serial

SLIDES_AT_ONCE = 2
"""One computes while the next is read from the slide."""


class Watcher(Protocol):
    """Who wants to know how it goes: the progress display, or nobody."""

    def batch_planned(self, batch: Batch) -> None:
        """The slides are known."""

    def stage_started(self, key: str, stage: str) -> None:
        """A stage of a slide starts."""

    def block_done(self, key: str, stage: str, counts: Counts) -> None:
        """One block is done."""

    def slide_done(self, outcome: Outcome) -> None:
        """A slide is complete, or it failed."""


@dataclass(frozen=True, slots=True)
class Watchers:
    """Several who want to know, told in order; nobody, when there are none."""

    each: Sequence[Watcher] = ()

    def batch_planned(self, batch: Batch) -> None:
        """The slides are known."""
        for watcher in self.each:
            watcher.batch_planned(batch)

    def stage_started(self, key: str, stage: str) -> None:
        """A stage of a slide starts."""
        for watcher in self.each:
            watcher.stage_started(key, stage)

    def block_done(self, key: str, stage: str, counts: Counts) -> None:
        """One block is done."""
        for watcher in self.each:
            watcher.block_done(key, stage, counts)

    def slide_done(self, outcome: Outcome) -> None:
        """A slide is complete, or it failed."""
        for watcher in self.each:
            watcher.slide_done(outcome)


class IncompleteError(OvertileError):
    """The batch ended and some slides are not as asked; ``batch`` says which and why."""

    def __init__(self, batch: Batch) -> None:
        missing = [outcome for outcome in batch.outcomes if not outcome.as_asked]
        super().__init__(f"{len(missing)} of {len(batch.outcomes)} slides are not complete as asked")
        self.batch = batch


@dataclass(slots=True)
class Conductor:
    """Steps slides through their stages: at most ``SLIDES_AT_ONCE`` open, the next one let in once one predicts."""

    batch: Batch
    map_blocks: MapBlocks
    watcher: Watcher
    finished: queue.SimpleQueue[tuple[OpenSlide, str, PrefectFuture[Any]]] = field(default_factory=queue.SimpleQueue)
    stopping: threading.Event = field(default_factory=threading.Event)

    def conduct(self) -> None:
        """Work until no slide waits or runs. One bad slide never stops the others."""
        waiting = iter(self.batch.todo())
        running = self._admit(waiting)
        try:
            while running:
                slide, stage, future = self.finished.get()
                following = self._follow(slide, stage, future)
                if following is None:
                    running -= 1
                if following in (None, "predict") and running < SLIDES_AT_ONCE:
                    running += self._admit(waiting)
        finally:
            self.stopping.set()

    def _admit(self, waiting: Iterator[Outcome]) -> int:
        """Open the next slide that has something to do; how many were let in (0 or 1)."""
        for outcome in waiting:
            slide = open_slide_run(self.batch, outcome)
            if slide is not None:
                self._submit(slide, next(slide.stages))
                return 1
            self.watcher.slide_done(outcome)
        return 0

    def _submit(self, slide: OpenSlide, stage: str) -> None:
        self.watcher.stage_started(slide.outcome.key, stage)
        job: Any = quote((slide, self._watched(slide.outcome, stage)))  # Prefect unwraps it
        future = slide_stage.submit(printable(slide.outcome.key), stage, job)
        future.add_done_callback(lambda done: self.finished.put((slide, stage, done)))

    def _follow(self, slide: OpenSlide, stage: str, future: PrefectFuture[Any]) -> str | None:
        """Submit what follows a stage that ended, and return it; None when the slide has come to its end."""
        answer = future.result(raise_on_failure=False)
        outcome = slide.outcome
        if isinstance(answer, BaseException):
            slide.run.fail(stage, answer)
            outcome.failed(stage, answer)
        else:
            outcome.add(answer.report, answer.seconds)
            following = next(slide.stages, None)
            if following is not None:
                self._submit(slide, following)
                return following
            outcome.state = "complete"
        outcome.notices.extend(notice for notice in slide.run.notices if notice not in outcome.notices)
        slide.lock.close()
        self.watcher.slide_done(outcome)
        return None

    def _watched(self, outcome: Outcome, stage: str) -> MapBlocks:
        def mapped(function: Callable[[Index], Counts], indices: Iterable[Index]) -> Iterator[Counts]:
            for counts in self.map_blocks(function, indices):
                if self.stopping.is_set():
                    raise OvertileError("stopped. Run the same command again to go on")
                self.watcher.block_done(outcome.key, stage, counts)
                yield counts

        return mapped


@dataclass(frozen=True, slots=True)
class Answer:
    """What a stage's task returns."""

    report: StageReport
    seconds: float


@task(name="slide stage", task_run_name="{key}: {stage}", cache_policy=NO_CACHE, persist_result=False)
def slide_stage(key: str, stage: str, job: tuple[OpenSlide, MapBlocks]) -> Answer:
    """Run one stage of one slide, or write its manifest and show it."""
    slide, map_blocks = job
    began = time.monotonic()
    if stage == MANIFEST:
        slide.run.finish()
        _show(key, slide_markdown(slide.run))
        report = StageReport(stage)
    else:
        report = slide.run.step(stage, map_blocks)
    return Answer(report, time.monotonic() - began)


def _show(key: str, markdown: str) -> None:
    """Put the slide's figures where Prefect shows them, if its server takes them: the slide is complete either way."""
    try:
        create_markdown_artifact(markdown, key="slide", description=key)
    except (PrefectException, HTTPError) as error:
        get_run_logger().warning("no artifact for %s: %s", key, error)


def _batch_name() -> str:
    from prefect.runtime import flow_run

    request = flow_run.parameters["request"]
    return printable(f"{request.inputs[0].name} -> {request.out.name}")


@flow(
    name="segment-folder",
    flow_run_name=_batch_name,
    task_runner=ThreadPoolTaskRunner(max_workers=SLIDES_AT_ONCE + 1),  # type: ignore[arg-type]  # its futures are ours
    persist_result=False,
)
def segment_folder(request: BatchRequest, watcher: Any = None, planned: Any = None) -> Batch:
    """Segment every slide of a folder; what is complete already is left as it is.

    ``planned`` makes the batch of the request, for a caller who has planned it already: a function, because Prefect
    would show whatever else it is given, and patients are nobody's business.
    Raises IncompleteError, after all slides were tried, when one is not complete as asked; ConfigError, ModelError or
    DiskError when nothing could start.
    """
    batch: Batch = (planned or plan_batch)(request)
    report = Report(batch)
    watching = Watchers([report] if watcher is None else [report, watcher])
    watching.batch_planned(batch)
    with _mapper(batch) as map_blocks:
        Conductor(batch, map_blocks, watching).conduct()
    report.finish()
    if any(not outcome.as_asked for outcome in batch.outcomes):
        raise IncompleteError(batch)
    return batch


def _mapper(batch: Batch) -> AbstractContextManager[MapBlocks]:
    cluster = batch.request.config.cluster
    if cluster.kind == "serial":
        return nullcontext(serial)
    from pipeline.workers import local_cluster, resolve_workers

    on_gpu = any(one.compute.device == "cuda" for one in batch.equipment.values())
    return local_cluster(resolve_workers(cluster.workers), threads=2 if on_gpu else 1)
