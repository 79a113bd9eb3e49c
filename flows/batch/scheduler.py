"""Step the slides of a batch through their stages, several slides at a time.

The scheduler runs in one thread and reacts to events: a stage ended, a block was predicted. How a stage is run is an
argument (`SubmitStage`), so a batch runs on a plain thread pool or as Prefect tasks in the same order. Several slides
are open at once, so that workers have blocks to compute while another slide is read, joined or drawn.
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

from flows.batch.batch import MANIFEST, Batch, OpenSlide, defer_changed, is_complete, open_slide_run
from flows.batch.deadline import Deadline, Taken, TimeUpError
from flows.batch.disk_quota import DiskQuota
from flows.batch.outcome import Outcome
from pipeline.config import ClusterSection
from pipeline.errors import ClusterError, ConfigError, OvertileError
from pipeline.execution.blocks import Counts, MapBlocks, StageReport, serial
from pipeline.printable import printable
from pipeline.redaction import RedactErrors
from pipeline.stage_table import INGEST, PREDICT
from pipeline.storage.slide_store import Index

LEAST_SLIDES, MOST_SLIDES, BLOCKS_A_THREAD = 2, 16, 3
"""``auto``: the least and the most open slides, and the blocks left per thread above which no more are opened."""


class ProgressListener(Protocol):
    """Receives the progress of a batch. Blocks are reported from several threads."""

    def batch_planned(self, batch: Batch) -> None:
        """The slides are planned."""

    def stage_started(self, key: str, stage: str) -> None:
        """A stage of a slide starts."""

    def block_done(self, key: str, stage: str, counts: Counts) -> None:
        """One block is done."""

    def slide_done(self, outcome: Outcome) -> None:
        """A slide is complete, or it stopped."""


@dataclass(frozen=True, slots=True)
class ListenerGroup:
    """Several listeners, called in order."""

    listeners: Sequence[ProgressListener] = ()

    def batch_planned(self, batch: Batch) -> None:
        """The slides are planned."""
        for listener in self.listeners:
            listener.batch_planned(batch)

    def stage_started(self, key: str, stage: str) -> None:
        """A stage of a slide starts."""
        for listener in self.listeners:
            listener.stage_started(key, stage)

    def block_done(self, key: str, stage: str, counts: Counts) -> None:
        """One block is done."""
        for listener in self.listeners:
            listener.block_done(key, stage, counts)

    def slide_done(self, outcome: Outcome) -> None:
        """A slide is complete, or it stopped."""
        for listener in self.listeners:
            listener.slide_done(outcome)


@dataclass(frozen=True, slots=True)
class StageResult:
    """The report of a stage and the seconds it took."""

    report: StageReport
    seconds: float


@dataclass(frozen=True, slots=True)
class StageJob:
    """One stage of one slide, ready to be run in any thread."""

    slide: OpenSlide
    stage: str
    map_blocks: MapBlocks

    def run(self) -> StageResult:
        """Run the stage, or write the slide's manifest. What it raises is redacted and printable."""
        began = time.monotonic()
        with self.redact_errors():
            if self.stage == MANIFEST:
                self.slide.run.finish()
                report = StageReport(self.stage)
            else:
                report = self.slide.run.step(self.stage, self.map_blocks)
        return StageResult(report, time.monotonic() - began)

    def redact_errors(self) -> RedactErrors:
        """A context in which errors lose the slide's name and are put on one line."""
        return RedactErrors(self.slide.run.plan.alias, _on_one_line)


def _on_one_line(text: str) -> str:
    """Printable text on one line, because Prefect logs error messages unchanged."""
    return printable(" ".join(text.split()))


class StageFuture(Protocol):
    """A submitted stage. A `concurrent.futures.Future` is one."""

    def add_done_callback(self, fn: Callable[[Any], None], /) -> None:
        """Call ``fn`` with this future once the stage has ended, from any thread."""

    def result(self) -> StageResult | BaseException:
        """Return the result of the stage, or the error with which it ended.

        Raises:
            Exception: The stage could not be run at all. This ends the batch.
        """


class SubmitStage(Protocol):
    """Starts a stage without waiting for it."""

    def __call__(self, job: StageJob) -> StageFuture:
        """Submit the stage."""
        ...


@dataclass(frozen=True, slots=True)
class Executor:
    """Maps blocks for the stages of a batch.

    Attributes:
        map_for: Returns the block mapper of a stage; the arguments are the slide's rank (the oldest has 0) and the
            stage. Free workers take blocks of the lowest rank first.
        threads: Returns the number of threads that compute for the network now.
        stop: Ends all work.
    """

    map_for: Callable[[int, str], MapBlocks]
    threads: Callable[[], int]
    stop: Callable[[], None]


@contextmanager
def make_executor(batch: Batch) -> Iterator[Executor]:
    """Open the workers that a batch is configured for, or compute in this process (``cluster.kind=serial``)."""
    request = batch.request
    cluster, scratch = request.config.cluster, request.config.outputs.scratch
    if cluster.kind == "serial":
        yield Executor(lambda _rank, _stage: serial, lambda: 1, lambda: None)
        return
    try:
        from pipeline.execution.cluster import open_worker_pool
    except ValueError as error:  # dask reads its configuration when it is imported
        cause = " ".join(str(error).split())
        raise ConfigError(f"cannot read dask's configuration: {cause}. Mend the file, or unset DASK_CONFIG") from error

    on_gpu = any(runtime.compute.device == "cuda" for runtime in batch.runtimes.values())
    shared = [request.out, *(() if scratch is None else (Path(scratch),))]
    with open_worker_pool(cluster, shared, on_gpu=on_gpu) as pool:
        pool.map_for(0, PREDICT).prepare("pipeline.runs.stage_runner")
        yield Executor(pool.map_for, lambda: pool.threads, pool.close)


@dataclass(frozen=True, slots=True)
class AdmissionPolicy:
    """Decide whether one more slide may be opened.

    A number opens so many slides at once. ``auto`` opens two at least, so that one is read while the other is
    computed, and more while the open slides have too few blocks left for the network, as small slides do.
    """

    at_once: int | Literal["auto"]
    threads: Callable[[], int]

    @classmethod
    def of(cls, cluster: ClusterSection, threads: Callable[[], int]) -> AdmissionPolicy:
        """The policy of a configuration. A serial run opens two slides: each holds a block in this process."""
        alone = cluster.kind == "serial" and cluster.slides_at_once == "auto"
        return cls(LEAST_SLIDES if alone else cluster.slides_at_once, threads)

    def may_open(self, blocks_left: Collection[int]) -> bool:
        """Whether a slide may be opened.

        Args:
            blocks_left: Blocks that the network has not computed yet, for each open slide.
        """
        if self.at_once != "auto":
            return len(blocks_left) < self.at_once
        busy = sum(blocks_left) >= BLOCKS_A_THREAD * self.threads()
        return len(blocks_left) < (LEAST_SLIDES if busy else MOST_SLIDES)


@dataclass(slots=True)
class SlideScheduler:
    """Steps slides through their stages, several at a time."""

    batch: Batch
    executor: Executor
    listener: ProgressListener
    submit: SubmitStage
    admission: AdmissionPolicy = field(init=False)
    quota: DiskQuota = field(init=False)
    deadline: Deadline = field(init=False)
    events: queue.SimpleQueue[Callable[[], None]] = field(default_factory=queue.SimpleQueue)
    stopping: threading.Event = field(default_factory=threading.Event)
    blocks_left: dict[str, int] = field(default_factory=dict)
    cluster_error: ClusterError | None = None

    def __post_init__(self) -> None:
        config, self.deadline = self.batch.request.config, self.batch.deadline
        self.admission = AdmissionPolicy.of(config.cluster, self.executor.threads)
        self.quota = DiskQuota.of(self.batch.request.out, config.outputs.max_gb)

    def run(self) -> None:
        """Run until no slide waits or is open. A slide that fails does not stop the others."""
        waiting = list(enumerate(self.batch.todo()))
        try:
            self._admit(waiting)
            while self.blocks_left:
                self.events.get()()
                self._admit(waiting)
        finally:
            self.stopping.set()
            self.executor.stop()
        for _, outcome in waiting:
            self._skip(outcome)

    @property
    def _is_ending(self) -> bool:
        """Whether no more slides are opened."""
        return self.cluster_error is not None or self.deadline.is_over()

    def _skip(self, outcome: Outcome) -> None:
        """Record why a slide was not started: no workers, past the deadline, or no space under the quota."""
        if self.cluster_error is not None:
            outcome.failed(outcome.stage, self.cluster_error)
        elif not self.deadline.is_over():
            outcome.cause = self.quota.cause(self.batch.plans[outcome.key])
        elif is_complete(self.batch, outcome):
            outcome.state = "complete before"
        else:
            outcome.state, outcome.cause = "resumable", f"not started before {self.deadline}; the next run resumes"
        self.listener.slide_done(outcome)

    def _admit(self, waiting: list[tuple[int, Outcome]]) -> None:
        """Open slides that have something to do, while policy and quota allow it."""
        while not self._is_ending and self.admission.may_open(self.blocks_left.values()):
            admitted = next((entry for entry in waiting if self._fits_quota(entry[1])), None)
            self.quota.full = admitted is None
            if admitted is None:
                return
            waiting.remove(admitted)
            rank, outcome = admitted
            slide = open_slide_run(self.batch, outcome)
            if slide is None:
                self.listener.slide_done(outcome)
                continue
            self.blocks_left[outcome.key] = self.batch.plans[outcome.key].blocks
            self._submit(slide, next(slide.stages), rank)

    def _fits_quota(self, outcome: Outcome) -> bool:
        """Whether a slide may be started; one that is complete already needs no space."""
        plans = self.batch.plans
        return self.quota.admits(plans[outcome.key], [plans[key] for key in self.blocks_left]) or (
            not self.quota.full and is_complete(self.batch, outcome)
        )

    def _submit(self, slide: OpenSlide, stage: str, rank: int) -> None:
        self.listener.stage_started(slide.outcome.key, stage)
        mapper = serial if stage == MANIFEST else self.executor.map_for(rank, stage)  # the manifest has no blocks
        map_blocks = self._observed(slide.outcome, stage, mapper)
        future = self.submit(StageJob(slide, stage, map_blocks))
        future.add_done_callback(lambda done: self.events.put(partial(self._follow, slide, stage, rank, done)))

    def _follow(self, slide: OpenSlide, stage: str, rank: int, future: StageFuture) -> None:
        """Submit the stage after one that ended, or close the slide when nothing follows."""
        result = future.result()
        outcome = slide.outcome
        if isinstance(result, TimeUpError):
            outcome.paused(stage, result)
        elif isinstance(result, BaseException):
            self.cluster_error = result if isinstance(result, ClusterError) else self.cluster_error
            slide.run.fail(stage, result)
            outcome.failed(stage, result)
        else:
            outcome.add(result.report, result.seconds)
            if stage == PREDICT:
                self.blocks_left[outcome.key] = 0
            following = self._next_stage(slide, stage)
            if following is not None:
                return self._submit(slide, following, rank)
        outcome.notices.extend(notice for notice in slide.run.notices if notice not in outcome.notices)
        slide.lock.close()
        del self.blocks_left[outcome.key]
        self.quota.ended(self.batch.plans[outcome.key])
        self.listener.slide_done(outcome)

    def _next_stage(self, slide: OpenSlide, stage: str) -> str | None:
        """The next stage; None when the slide is complete, has changed since it was planned, or the time is over."""
        following, outcome = next(slide.stages, None), slide.outcome
        if following is None:
            outcome.state = "complete"
        elif stage == INGEST and defer_changed(self.batch, outcome):
            return None
        elif following != MANIFEST and self.deadline.is_over():
            outcome.paused(following, self.deadline.error())
            return None
        return following

    def _predicted(self, key: str) -> None:
        self.blocks_left[key] -= 1

    def _observed(self, outcome: Outcome, stage: str, map_blocks: MapBlocks) -> MapBlocks:
        """The mapper with progress reported, and stopped on shutdown or at the deadline."""

        def mapped(function: Callable[[Index], Counts], indices: Iterable[Index]) -> Iterator[Counts]:
            taken = Taken(indices, self.deadline)
            for counts in map_blocks(function, taken):
                if self.stopping.is_set():
                    raise OvertileError("stopped. Run the same command again to go on")
                self.listener.block_done(outcome.key, stage, counts)
                if stage == PREDICT:
                    self.events.put(partial(self._predicted, outcome.key))
                yield counts
            if taken.cut:
                raise self.deadline.error()

        return mapped
