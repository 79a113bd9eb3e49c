"""The flow: a batch of slides, one Prefect task for each stage of each slide, blocks on dask inside a task.

The one decision made here: Prefect shows and schedules, it is never the ledger. What is done is what lies on disk, so
its database may be lost or lie and no pixel changes. Several slides are open at once, so that workers have blocks to do
while one slide is read, joined or drawn.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import quote

from flows.artifacts import show_artifact
from flows.batch.batch import (
    MANIFEST,
    Batch,
    BatchRequest,
    OpenSlide,
    defer_changed,
    is_complete,
    open_slide_run,
    plan_batch,
)
from flows.batch.deadline import Deadline, Taken, TimeUpError
from flows.batch.disk_quota import DiskQuota
from flows.batch.group_permissions import shared_with_group
from flows.batch.outcome import Outcome
from flows.reports.batch_files import Report, noted, slide_markdown, write_page
from flows.reports.summary_markdown import plain
from pipeline.config import MOST_SLIDES_ASKED, ClusterSection
from pipeline.errors import ClusterError, OvertileError
from pipeline.execution.blocks import Counts, MapBlocks, StageReport, serial
from pipeline.printable import printable
from pipeline.redaction import RedactErrors
from pipeline.stage_table import INGEST as READ
from pipeline.stage_table import PREDICT as NETWORK
from pipeline.storage.slide_store import Index

LEAST_SLIDES, MOST_SLIDES, BLOCKS_A_THREAD = 2, 16, 3
"""``auto``: how many slides are open, at least, at most, and until there are so many blocks left for a thread."""


class ProgressListener(Protocol):
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
class ListenerGroup:
    """Several who want to know, told in order; nobody, when there are none."""

    each: Sequence[ProgressListener] = ()

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
        missing = [outcome for outcome in batch.outcomes if not outcome.is_up_to_date]
        super().__init__(f"{len(missing)} of {len(batch.outcomes)} slides are not complete as asked")
        self.batch = batch


@dataclass(frozen=True, slots=True)
class AdmissionPolicy:
    """Who says whether one more slide may be opened: as many at once as asked for, or (``auto``) as keep workers busy.

    Two at least, so that one is read while the other is computed; more while those that are open have too few blocks
    left for the network, as small slides do.
    """

    at_once: int | Literal["auto"]
    threads: Callable[[], int]

    @classmethod
    def of(cls, cluster: ClusterSection, threads: Callable[[], int]) -> AdmissionPolicy:
        """In one process every open slide holds a block in its memory: no more than one reads while one computes."""
        alone = cluster.kind == "serial" and cluster.slides_at_once == "auto"
        return cls(LEAST_SLIDES if alone else cluster.slides_at_once, threads)

    def admits(self, blocks_left: Collection[int]) -> bool:
        """``blocks_left``: for each open slide, the blocks that the network has not answered yet."""
        if self.at_once != "auto":
            return len(blocks_left) < self.at_once
        busy = sum(blocks_left) >= BLOCKS_A_THREAD * self.threads()
        return len(blocks_left) < (LEAST_SLIDES if busy else MOST_SLIDES)


@dataclass(slots=True)
class SlideScheduler:
    """Steps slides through their stages, several at a time."""

    batch: Batch
    crew: Executor
    watcher: ProgressListener
    door: AdmissionPolicy = field(init=False)
    room: DiskQuota = field(init=False)
    deadline: Deadline = field(init=False)
    events: queue.SimpleQueue[Callable[[], None]] = field(default_factory=queue.SimpleQueue)
    stopping: threading.Event = field(default_factory=threading.Event)
    blocks_left: dict[str, int] = field(default_factory=dict)
    lost: ClusterError | None = None

    def __post_init__(self) -> None:
        config, self.deadline = self.batch.request.config, self.batch.deadline
        self.door = AdmissionPolicy.of(config.cluster, self.crew.threads)
        self.room = DiskQuota.of(self.batch.request.out, config.outputs.max_gb)

    def run(self) -> None:
        """Work until no slide waits or runs. One bad slide never stops the others."""
        waiting = list(enumerate(self.batch.todo()))
        try:
            self._admit(waiting)
            while self.blocks_left:
                self.events.get()()
                self._admit(waiting)
        finally:
            self.stopping.set()
            self.crew.stop()
        for _, outcome in waiting:
            self._leave(outcome)

    @property
    def _is_ending(self) -> bool:
        """Whether nothing may be begun any more."""
        return self.lost is not None or self.deadline.is_over()

    def _leave(self, outcome: Outcome) -> None:
        """Say why a slide was not begun: the workers are gone, the time was over, or there is no room for it."""
        if self.lost is not None:
            outcome.failed(outcome.stage, self.lost)
        elif not self.deadline.is_over():
            outcome.cause = self.room.cause(self.batch.plans[outcome.key])
        elif is_complete(self.batch, outcome):
            outcome.state = "complete before"
        else:
            outcome.state, outcome.cause = "resumable", f"not begun before {self.deadline}; the next run goes on"
        self.watcher.slide_done(outcome)

    def _admit(self, waiting: list[tuple[int, Outcome]]) -> None:
        """Open slides that have something to do, while there is room for them."""
        while not self._is_ending and self.door.admits(self.blocks_left.values()):
            chosen = next((one for one in waiting if self._has_room(one[1])), None)
            self.room.full = chosen is None
            if chosen is None:
                return
            waiting.remove(chosen)
            rank, outcome = chosen
            slide = open_slide_run(self.batch, outcome)
            if slide is None:
                self.watcher.slide_done(outcome)
                continue
            self.blocks_left[outcome.key] = self.batch.plans[outcome.key].blocks
            self._submit(slide, next(slide.stages), rank)

    def _has_room(self, outcome: Outcome) -> bool:
        """Whether a slide may be begun; one that is complete already needs no room."""
        plans = self.batch.plans
        return self.room.admits(plans[outcome.key], [plans[key] for key in self.blocks_left]) or (
            not self.room.full and is_complete(self.batch, outcome)
        )

    def _submit(self, slide: OpenSlide, stage: str, rank: int) -> None:
        self.watcher.stage_started(slide.outcome.key, stage)
        map_blocks = self._watched(slide.outcome, stage, self.crew.map_for(rank, stage))
        job: Any = quote((slide, map_blocks))  # Prefect unwraps it
        future = slide_stage.submit(printable(slide.outcome.key), stage, job)
        future.add_done_callback(lambda done: self.events.put(partial(self._follow, slide, stage, rank, done)))

    def _follow(self, slide: OpenSlide, stage: str, rank: int, future: PrefectFuture[Any]) -> None:
        """Submit what follows a stage that ended, or close the slide when it has come to its end."""
        answer = future.result(raise_on_failure=False)
        outcome = slide.outcome
        if isinstance(answer, TimeUpError):
            outcome.paused(stage, answer)
        elif isinstance(answer, BaseException):
            self.lost = answer if isinstance(answer, ClusterError) else self.lost
            slide.run.fail(stage, answer)
            outcome.failed(stage, answer)
        else:
            outcome.add(answer.report, answer.seconds)
            if stage == NETWORK:
                self.blocks_left[outcome.key] = 0
            following = self._next_stage(slide, stage)
            if following is not None:
                return self._submit(slide, following, rank)
        outcome.notices.extend(notice for notice in slide.run.notices if notice not in outcome.notices)
        slide.lock.close()
        del self.blocks_left[outcome.key]
        self.room.ended(self.batch.plans[outcome.key])
        self.watcher.slide_done(outcome)

    def _next_stage(self, slide: OpenSlide, stage: str) -> str | None:
        """The stage that follows; None when the slide is complete, was written to meanwhile, or the time is over."""
        following, outcome = next(slide.stages, None), slide.outcome
        if following is None:
            outcome.state = "complete"
        elif stage == READ and defer_changed(self.batch, outcome):
            return None
        elif following != MANIFEST and self.deadline.is_over():
            outcome.paused(following, self.deadline.error())
            return None
        return following

    def _predicted(self, key: str) -> None:
        self.blocks_left[key] -= 1

    def _watched(self, outcome: Outcome, stage: str, map_blocks: MapBlocks) -> MapBlocks:
        def mapped(function: Callable[[Index], Counts], indices: Iterable[Index]) -> Iterator[Counts]:
            taken = Taken(indices, self.deadline)
            for counts in map_blocks(function, taken):
                if self.stopping.is_set():
                    raise OvertileError("stopped. Run the same command again to go on")
                self.watcher.block_done(outcome.key, stage, counts)
                if stage == NETWORK:
                    self.events.put(partial(self._predicted, outcome.key))
                yield counts
            if taken.cut:
                raise self.deadline.error()

        return mapped


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a stage's task returns."""

    report: StageReport
    seconds: float


@task(name="slide stage", task_run_name="{key}: {stage}", cache_policy=NO_CACHE, persist_result=False)
def slide_stage(key: str, stage: str, job: tuple[OpenSlide, MapBlocks]) -> StageResult:
    """Run one stage of one slide, or write its manifest and show it."""
    slide, map_blocks = job
    began = time.monotonic()
    with RedactErrors(slide.run.plan.alias, _on_a_line):
        if stage == MANIFEST:
            slide.run.finish()
            show_artifact("slide", plain(key), slide_markdown(slide.run))
            report = StageReport(stage)
        else:
            report = slide.run.step(stage, map_blocks)
    return StageResult(report, time.monotonic() - began)


def _on_a_line(text: str) -> str:
    """What Prefect logs, it logs as it is."""
    return printable(" ".join(text.split()))


def _batch_name() -> str:
    from prefect.runtime import flow_run

    request = flow_run.parameters["request"]
    return printable(f"{request.inputs[0].name} -> {request.out.name}")


@dataclass(frozen=True, slots=True)
class Executor:
    """Who does the blocks: ``map_for`` is given a slide's rank, the oldest has 0, and a stage; ``stop`` ends all of it.

    ``threads``: how many compute for the network now.
    """

    map_for: Callable[[int, str], MapBlocks]
    threads: Callable[[], int]
    stop: Callable[[], None]


@contextmanager
def make_executor(batch: Batch) -> Iterator[Executor]:
    """Workers as the batch asks for them, or this process alone."""
    request = batch.request
    cluster, scratch = request.config.cluster, request.config.outputs.scratch
    if cluster.kind == "serial":
        yield Executor(lambda _rank, _stage: serial, lambda: 1, lambda: None)
        return
    from pipeline.execution.cluster import open_worker_pool

    on_gpu = any(one.compute.device == "cuda" for one in batch.equipment.values())
    shared = [request.out, *(() if scratch is None else (Path(scratch),))]
    with open_worker_pool(cluster, shared, on_gpu=on_gpu) as team:
        team.map_for(0, NETWORK).prepare("pipeline.runs.stage_runner")
        yield Executor(team.map_for, lambda: team.threads, team.close)


@contextmanager
def _begin(request: BatchRequest) -> Iterator[tuple[Batch, Executor]]:
    with shared_with_group(request):
        batch = plan_batch(request)
        with make_executor(batch) as crew:
            yield batch, crew


@flow(
    name="segment-folder",
    flow_run_name=_batch_name,
    task_runner=ThreadPoolTaskRunner(max_workers=MOST_SLIDES_ASKED),  # type: ignore[arg-type]  # its futures are ours
    persist_result=False,
    result_serializer="json",  # Prefect keeps what a flow raises, by default as a pickle of all it holds
)
def segment_folder(request: BatchRequest, watcher: Any = None, begun: Any = None) -> Batch:
    """Segment every slide of a folder; what is complete already is left as it is.

    ``begun`` gives the batch of the request and its crew, for a caller who has both already: a function, because
    Prefect would show whatever else it is given, and patients are nobody's business.
    Raises IncompleteError, after all slides were tried, when one is not complete as asked; ConfigError, ModelError or
    DiskError when nothing could start.
    """
    with (begun or _begin)(request) as (batch, crew), noted(batch):
        report = Report(batch)
        watching = ListenerGroup([report] if watcher is None else [report, watcher])
        watching.batch_planned(batch)
        SlideScheduler(batch, crew, watching).run()
        report.finish()
    write_page(batch)
    if any(not outcome.is_up_to_date for outcome in batch.outcomes):
        raise IncompleteError(batch)
    return batch
