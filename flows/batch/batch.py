"""A batch: the requested slides, the outcome of each, and the exit code.

A batch succeeds only when every requested slide is complete under its plan. Each slide has its own configuration,
which a cases table may change.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from datetime import time
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, PlainSerializer

from flows.batch.array_job import ArrayJob
from flows.batch.deadline import Deadline
from flows.batch.history import MOST_FAILURES, BatchHistory, FailureCount
from flows.batch.outcome import NOT_FAILED, Outcome
from flows.batch.selection import SelectedSlide, models_of, select_slides
from pipeline.config import ModelSection, RunConfig
from pipeline.errors import ConfigError, DiskError, ModelError, SlideError
from pipeline.execution.blocks import retry_io
from pipeline.inference.ensemble import Ensemble
from pipeline.inputs.discovery import Candidate
from pipeline.objects.method import resolve
from pipeline.redaction import Pseudonym, redact_error
from pipeline.runs.plan import Compute, SlidePlan, plan_slide, resolve_tile
from pipeline.runs.slide_run import SlideRun, slide_root
from pipeline.slides.modification_time import FileState, file_states, recently_modified
from pipeline.slides.resample import TOLERANCE
from pipeline.storage.atomic_files import digest, remove, write_bytes
from pipeline.storage.lock import slide_lock
from pipeline.storage.manifest import previous_plan
from pipeline.storage.slide_store import SlideStore
from unet_core.errors import NetworkError

MANIFEST = "manifest"
"""The step after the last stage of a slide."""

EXIT_OK, EXIT_USAGE, EXIT_SOME, EXIT_NONE, EXIT_DISK, EXIT_LOCKED = 0, 2, 3, 4, 74, 75


NOT_THE_SLIDES: Mapping[str, bool | set[str]] = {
    "cluster": True,
    "outputs": True,
    "input": {"pattern", "cases", "order", "settle_s"},
}
"""Configuration keys that do not affect whether a slide can be planned."""


def _as_text(path: Path) -> str:
    """A path that JSON can hold: bytes that are not UTF-8 become '?'."""
    return str(path).encode("utf-8", "replace").decode()


ShownPath = Annotated[Path, PlainSerializer(_as_text, when_used="json")]


class BatchRequest(BaseModel):
    """The request of a batch.

    Attributes:
        inputs: Slides or folders of slides.
        out: Output folder.
        config: Configuration of all slides; a cases table may change it for a slide.
        force: Keys of slides whose complete results may be replaced.
        force_all: Whether all complete results may be replaced.
        until: Time of day after which no block is started.
        timezone: Time zone of ``until``; None for that of this machine.
        command: The equivalent command line of a scheduled run; empty for a typed command.
        share: The array job whose slides are processed; None for all slides.
        pinned: Required SHA-256 of model weights, by name or path.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    inputs: tuple[ShownPath, ...]
    out: ShownPath
    config: RunConfig = RunConfig()
    force: tuple[str, ...] = ()
    force_all: bool = False
    until: time | None = None
    timezone: str | None = None
    command: tuple[str, ...] = ()
    share: ArrayJob | None = None
    pinned: dict[str, str] = {}

    def forces(self, key: str) -> bool:
        """Whether a complete result of this slide may be replaced."""
        return self.force_all or key in self.force


@dataclass(frozen=True, slots=True)
class ModelRuntime:
    """A model and the device, precision and tile size with which it runs."""

    model: Ensemble
    compute: Compute


@dataclass(slots=True)
class Batch:
    """A planned batch and the outcomes of its slides, in order.

    Attributes:
        request: The request.
        runtimes: Each model once, by its configuration section.
        outcomes: One per requested slide.
        plans: Plans by key, of slides that could be planned.
        cases: Columns of the cases table by key.
        failures: Slides that failed in previous runs.
        deadline: The time after which no block is started.
        files: File states at planning, by key, where ``input.settle_s`` is set.
        aliases: Pseudonyms of the slides, where ``outputs.redact`` is set.
        all_paths: Paths by key of the slides of all array jobs.
    """

    request: BatchRequest
    runtimes: dict[ModelSection, ModelRuntime]
    outcomes: list[Outcome] = field(default_factory=list)
    plans: dict[str, SlidePlan] = field(default_factory=dict)
    cases: dict[str, Mapping[str, str]] = field(default_factory=dict)
    failures: Mapping[str, FailureCount] = field(default_factory=dict)
    deadline: Deadline = field(default_factory=Deadline)
    files: dict[str, tuple[FileState, ...]] = field(default_factory=dict)
    aliases: tuple[Pseudonym, ...] = ()
    all_paths: dict[str, Path] = field(default_factory=dict)

    def redact(self, text: str) -> str:
        """The text with slide names replaced by their pseudonyms."""
        for alias in self.aliases:
            text = alias.redact(text)
        return text

    @property
    def shown(self) -> BatchRequest:
        """The request with redacted input paths."""
        redacted = [Path(self.redact(str(path))) for path in self.request.inputs]
        return self.request.model_copy(update={"inputs": tuple(redacted)}) if self.aliases else self.request

    def exit_code(self) -> int:
        """The exit code of the command."""
        outcomes = self.outcomes
        if all(outcome.is_up_to_date for outcome in outcomes):
            return EXIT_OK
        if any(outcome.disk_failed for outcome in outcomes):
            return EXIT_DISK
        if all(outcome.state == "locked" for outcome in outcomes):
            return EXIT_LOCKED
        return (
            EXIT_SOME
            if any(outcome.is_up_to_date or outcome.state in NOT_FAILED for outcome in outcomes)
            else EXIT_NONE
        )

    def todo(self) -> list[Outcome]:
        """Waiting slides, in order."""
        return [outcome for outcome in self.outcomes if outcome.state == "waiting"]


def plan_batch(request: BatchRequest, *, writing: bool = True) -> Batch:
    """Find the slides, load their models' headers and plan every slide.

    Args:
        request: The request.
        writing: Whether to check first that the output folder can be written.

    Returns:
        The batch. A slide that cannot be planned has a failed outcome.

    Raises:
        ConfigError: The request is invalid.
        ModelError: A model cannot be used.
        DiskError: The output folder cannot be written.
    """
    deadline = Deadline.of(request.until, request.timezone)
    request = _absolute(request) if request.config.cluster.is_elsewhere else request
    selected = select_slides(request.inputs, request.out, request.config, writing=writing)
    everything = {slide.candidate.key: slide.candidate.shown for slide in selected}
    if unknown := [key for key in request.force if key not in everything]:
        known = ", ".join(sorted(everything)[:10])
        raise ConfigError(f"--force {unknown[0]}: no such slide here; expected one of {known}")
    if all(slide.candidate.refused for slide in selected):
        raise ConfigError("; ".join(str(slide.candidate.refused) for slide in selected))
    selected = selected if request.share is None else request.share.take(selected)
    models = models_of(selected, request.pinned)
    if writing:
        _require_writable(request.out, "output folder", "--out")
        if request.config.outputs.scratch is not None:
            _require_writable(Path(request.config.outputs.scratch), "scratch folder", "outputs.scratch")
    batch = Batch(request, _resolve_runtimes(request.config, models))
    batch.failures, batch.deadline, batch.all_paths = BatchHistory.read(request.out).failures(), deadline, everything
    batch.aliases = tuple(slide.candidate.alias for slide in selected if slide.candidate.alias)
    for slide in selected:
        _plan(batch, slide)
    return batch


def _absolute(request: BatchRequest) -> BatchRequest:
    """The request with absolute paths, for workers that start in another folder."""
    inputs = tuple(path.absolute() for path in request.inputs)
    outputs = request.config.outputs
    scratch = None if outputs.scratch is None else str(Path(outputs.scratch).absolute())
    config = request.config.model_copy(update={"outputs": outputs.model_copy(update={"scratch": scratch})})
    return request.model_copy(update={"inputs": inputs, "out": request.out.absolute(), "config": config})


def _resolve_runtimes(config: RunConfig, models: dict[ModelSection, Ensemble]) -> dict[ModelSection, ModelRuntime]:
    from pipeline.inference.predictor import (  # torch takes a second to import
        resolve_device,
        resolve_precision,
    )

    for model in models.values():
        _require_weights(model)
        if config.objects is not None:
            resolve(config.objects, model.spec)
    is_remote = config.cluster.is_elsewhere and config.compute.device != "auto"  # the workers check their device
    device = config.compute.device if is_remote else resolve_device(config.compute.device)
    precision = resolve_precision(config.compute.precision, device)
    return {
        section: ModelRuntime(model, Compute(device, precision, resolve_tile(config, model, device)))
        for section, model in models.items()
    }


def settle(batch: Batch) -> bool:
    """Whether there is nothing to do: every slide is complete or could not be planned. Marks the complete ones."""
    waiting = batch.todo()
    if not all(is_complete(batch, outcome) for outcome in waiting):
        return False
    for outcome in waiting:
        outcome.state = "complete before"
    return True


def is_complete(batch: Batch, outcome: Outcome) -> bool:
    """Whether a slide is complete under its plan. Writes nothing."""
    return SlideRun(batch.plans[outcome.key], _store(batch, outcome.key)).is_complete()


def _store(batch: Batch, key: str) -> SlideStore:
    return SlideStore(slide_root(batch.request.out, key))


def _plan(batch: Batch, selected: SelectedSlide) -> None:
    candidate = selected.candidate
    outcome = Outcome(candidate.key, candidate.shown)
    batch.outcomes.append(outcome)
    if candidate.case is not None:
        batch.cases[candidate.key] = candidate.case
    try:
        if candidate.refused is not None:
            raise candidate.refused
        runtime = batch.runtimes[selected.config.model]
        outcome.attempt = _unplanned_attempt(selected, runtime.model)
        if _is_left_alone(batch, outcome, candidate):
            return
        compute = _compute(batch, runtime.compute, candidate.key)
        plan = retry_io(lambda: plan_slide(candidate, runtime.model, compute, selected.config))
        outcome.attempt = digest(dict(plan.hashes))
        batch.plans[candidate.key] = _warned(plan, batch.request.config)
        _is_left_alone(batch, outcome, candidate)
    except Exception as error:  # a slide that fails does not stop the others
        outcome.failed("plan", redact_error(error, candidate.alias))


def _unplanned_attempt(selected: SelectedSlide, model: Ensemble) -> str:
    """A digest of file, configuration and model, for a slide that has no plan yet."""
    with suppress(OSError):
        file = selected.candidate.path.stat()
        config = selected.config.model_dump(mode="json", exclude=NOT_THE_SLIDES)
        return digest([file.st_size, file.st_mtime_ns, config, model.sha256])
    return ""


def _is_left_alone(batch: Batch, outcome: Outcome, candidate: Candidate) -> bool:
    """Whether the slide is skipped: it is still being written, or it failed too often unchanged."""
    key, path, settle_s = candidate.key, candidate.path, batch.request.config.input.settle_s
    failures = batch.failures.get(key)
    if settle_s and (why := recently_modified(path, settle_s)):
        outcome.deferred(candidate.redact(why))
    elif (
        failures
        and failures.count >= MOST_FAILURES
        and failures.attempt == outcome.attempt
        and not batch.request.forces(key)
    ):
        outcome.quarantined(failures, shlex.join(["overtile", "retry", str(batch.request.out), key]))
    elif settle_s:
        batch.files.setdefault(key, file_states(path))
    return outcome.state != "waiting"


def defer_changed(batch: Batch, outcome: Outcome) -> bool:
    """Defer a slide whose files have changed since it was planned, or fail one whose files are gone.

    Returns:
        Whether the slide was deferred or failed.
    """
    before, plan = batch.files.get(outcome.key), batch.plans[outcome.key]
    if before is None or before == (now := file_states(plan.slide)):
        return False
    gone = [name for name, *_ in before if name not in {name for name, *_ in now}]
    if gone:
        outcome.failed(
            outcome.stage,
            SlideError(
                f"{plan.display_name if plan.alias else gone[0]}: vanished after the slide was planned. Restore it"
            ),
        )
        outcome.attempt = ""
    else:
        outcome.deferred(f"{outcome.slide}: was written to since it was planned. The next run processes it")
    return True


def _warned(plan: SlidePlan, config: RunConfig) -> SlidePlan:
    """The plan with a warning where the cases table and --mpp give different resolutions."""
    mpp, general = plan.config.input.mpp, config.input.mpp
    if not isinstance(mpp, float) or not isinstance(general, float) or abs(mpp / general - 1) <= TOLERANCE:
        return plan
    warning = (
        f"{plan.display_name}: the cases table's {mpp:g} um/px is used; --mpp gives {general:g}, more than 5 % off"
    )
    return replace(plan, warnings=(*plan.warnings, warning))


def _compute(batch: Batch, now: Compute, key: str) -> Compute:
    """Resolve precision ``auto`` once per slide: on the same device type, a started slide keeps its precision."""
    section = batch.request.config.compute
    before = previous_plan(_store(batch, key))
    if before is None or section.precision != "auto" or before["config"]["compute"] != section.model_dump(mode="json"):
        return now
    same_device = before["compute"]["device"] == now.device
    return replace(now, precision=before["compute"]["precision"]) if same_device else now


def _require_weights(model: Ensemble) -> None:
    """Load the weights once, so that unusable ones are reported before a slide is read."""
    from unet_core.model_file import checkpoint  # torch

    try:
        for weights in model.weights:
            checkpoint.load(weights.path)
    except NetworkError as error:
        raise ModelError(str(error)) from error


def _require_writable(folder: Path, what: str, option: str) -> None:
    """Check that a file can be written, synced, renamed and removed in ``folder``."""
    probe = folder / ".overtile.probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(probe, b"")
        remove(probe)
    except OSError as error:
        raise DiskError(
            f"the {what} {folder}: expected a folder where files can be written and renamed, found: "
            f"{error.strerror}. Choose another {option}"
        ) from error


@dataclass(slots=True)
class OpenSlide:
    """A locked slide: its run, its outcome and the stages that are left."""

    run: SlideRun
    outcome: Outcome
    stages: Iterator[str]
    lock: ExitStack


def open_slide_run(batch: Batch, outcome: Outcome) -> OpenSlide | None:
    """Lock a waiting slide and prepare its folder; None when there is nothing to do, as its outcome then states."""
    plan = batch.plans[outcome.key]
    run = SlideRun(plan, _store(batch, plan.key))
    if defer_changed(batch, outcome):
        return None
    lock = ExitStack()
    try:
        lock.enter_context(slide_lock(run.store.work))
        status = run.prepare(forced=batch.request.forces(plan.key))
    except Exception as error:  # a slide that fails does not stop the others
        lock.close()
        outcome.failed("plan", redact_error(error, plan.alias))
        return None
    outcome.notices = [*plan.warnings, *run.notices]
    if status == "todo":
        return OpenSlide(run, outcome, iter((*plan.hashes, MANIFEST)), lock)
    lock.close()
    outcome.state = "complete before" if status == "complete" else "kept"
    outcome.cause = run.notices[-1] if status == "kept" else ""
    return None
