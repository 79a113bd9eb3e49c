"""A batch: the slides asked for, what became of each, and the exit code that follows. No Prefect here.

The one decision made here: a batch succeeds only when every slide asked for is complete as asked; everything else is
said by the exit code, by name, with the cause. Each slide has its own configuration, which a cases table may change.
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
from flows.batch.history import STRIKES, BatchHistory, FailureCount
from flows.batch.outcome import NOT_IN_VAIN, Outcome
from flows.batch.selection import SelectedSlide, models_of, select_slides
from pipeline.config import ModelSection, RunConfig
from pipeline.errors import ConfigError, DiskError, ModelError, SlideError
from pipeline.execution.blocks import retry_io
from pipeline.inference.ensemble import Ensemble
from pipeline.inputs.discovery import Candidate
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
"""The step after a slide's last stage."""

EXIT_OK, EXIT_USAGE, EXIT_SOME, EXIT_NONE, EXIT_DISK, EXIT_LOCKED = 0, 2, 3, 4, 74, 75


NOT_THE_SLIDES: Mapping[str, bool | set[str]] = {
    "cluster": True,
    "outputs": True,
    "input": {"pattern", "cases", "order", "settle_s"},
}
"""Settings that change nothing about whether a slide can be planned."""


def _as_text(path: Path) -> str:
    """A path as JSON can hold it: bytes that are no UTF-8 are shown as '?'."""
    return str(path).encode("utf-8", "replace").decode()


ShownPath = Annotated[Path, PlainSerializer(_as_text, when_used="json")]


class BatchRequest(BaseModel):
    """What a batch is asked to do: inputs (slides or folders), output folder, configuration, keys to force.

    From ``until`` on, a time of day in ``timezone`` (null: this machine's), no block is begun any more. ``command`` is
    what does the same by hand, where it was not typed. Of a ``share`` only that part of the slides is taken. Of weights
    that are ``pinned`` no others are used than those of that SHA-256.
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
        """Whether a complete result of this slide may be given up."""
        return self.force_all or key in self.force


@dataclass(frozen=True, slots=True)
class ModelRuntime:
    """A model, and how this machine runs it."""

    model: Ensemble
    compute: Compute


@dataclass(slots=True)
class Batch:
    """Slides to be worked on, in order, and the outcomes of all that were asked for.

    ``equipment`` holds each model once, by what configurations say of it; ``cases`` what the cases table says of
    a slide, by key; ``strikes`` the slides that failed in the last runs, ``files`` what slides that
    have to rest looked like when they were planned; ``everything`` the slides of all shares.
    """

    request: BatchRequest
    equipment: dict[ModelSection, ModelRuntime]
    outcomes: list[Outcome] = field(default_factory=list)
    plans: dict[str, SlidePlan] = field(default_factory=dict)
    cases: dict[str, Mapping[str, str]] = field(default_factory=dict)
    strikes: Mapping[str, FailureCount] = field(default_factory=dict)
    deadline: Deadline = field(default_factory=Deadline)
    files: dict[str, tuple[FileState, ...]] = field(default_factory=dict)
    aliases: tuple[Pseudonym, ...] = ()
    everything: dict[str, Path] = field(default_factory=dict)

    def redact(self, text: str) -> str:
        """The text without the names of slides that may not be told."""
        for alias in self.aliases:
            text = alias.redact(text)
        return text

    @property
    def shown(self) -> BatchRequest:
        """The request as others may read it."""
        told = [Path(self.redact(str(path))) for path in self.request.inputs]
        return self.request.model_copy(update={"inputs": tuple(told)}) if self.aliases else self.request

    def exit_code(self) -> int:
        """The code the command ends with."""
        outcomes = self.outcomes
        if all(outcome.is_up_to_date for outcome in outcomes):
            return EXIT_OK
        if any(outcome.disk_failed for outcome in outcomes):
            return EXIT_DISK
        if all(outcome.state == "locked" for outcome in outcomes):
            return EXIT_LOCKED
        return (
            EXIT_SOME
            if any(outcome.is_up_to_date or outcome.state in NOT_IN_VAIN for outcome in outcomes)
            else EXIT_NONE
        )

    def todo(self) -> list[Outcome]:
        """Slides that still wait, in order."""
        return [outcome for outcome in self.outcomes if outcome.state == "waiting"]


def plan_batch(request: BatchRequest, *, writing: bool = True) -> Batch:
    """Find the slides, describe their models and plan every slide; a slide that cannot be planned is an outcome.

    ``writing`` makes sure first that the output can be written. Raises ConfigError, ModelError (nothing can start) or
    DiskError.
    """
    deadline = Deadline.of(request.until, request.timezone)
    request = _absolute(request) if request.config.cluster.is_elsewhere else request
    chosen = select_slides(request.inputs, request.out, request.config, writing=writing)
    everything = {one.candidate.key: one.candidate.shown for one in chosen}
    if unknown := [key for key in request.force if key not in everything]:
        there = ", ".join(sorted(everything)[:10])
        raise ConfigError(f"--force {unknown[0]}: no such slide here; expected one of {there}")
    if all(one.candidate.refused for one in chosen):
        raise ConfigError("; ".join(str(one.candidate.refused) for one in chosen))
    chosen = chosen if request.share is None else request.share.take(chosen)
    models = models_of(chosen, request.pinned)
    if writing:
        _require_writable(request.out, "output folder", "--out")
        if request.config.outputs.scratch is not None:
            _require_writable(Path(request.config.outputs.scratch), "scratch folder", "outputs.scratch")
    batch = Batch(request, _resolve_runtimes(request.config, models))
    batch.strikes, batch.deadline, batch.everything = BatchHistory.read(request.out).strikes(), deadline, everything
    batch.aliases = tuple(one.candidate.alias for one in chosen if one.candidate.alias)
    for one in chosen:
        _plan(batch, one)
    return batch


def _absolute(request: BatchRequest) -> BatchRequest:
    """The request with paths that mean the same in whatever folder a worker was started."""
    inputs = tuple(path.absolute() for path in request.inputs)
    outputs = request.config.outputs
    scratch = None if outputs.scratch is None else str(Path(outputs.scratch).absolute())
    config = request.config.model_copy(update={"outputs": outputs.model_copy(update={"scratch": scratch})})
    return request.model_copy(update={"inputs": inputs, "out": request.out.absolute(), "config": config})


def _resolve_runtimes(config: RunConfig, models: dict[ModelSection, Ensemble]) -> dict[ModelSection, ModelRuntime]:
    from pipeline.inference.predictor import (  # torch costs a second; refusals need none
        resolve_device,
        resolve_precision,
    )

    for model in models.values():
        _require_weights(model)
    there = config.cluster.is_elsewhere and config.compute.device != "auto"  # then workers have it, or refuse
    device = config.compute.device if there else resolve_device(config.compute.device)
    precision = resolve_precision(config.compute.precision, device)
    return {
        section: ModelRuntime(model, Compute(device, precision, resolve_tile(config, model, device)))
        for section, model in models.items()
    }


def settle(batch: Batch) -> bool:
    """Whether there is nothing to do: every slide is complete as asked already, or cannot even be planned."""
    waiting = batch.todo()
    if not all(is_complete(batch, outcome) for outcome in waiting):
        return False
    for outcome in waiting:
        outcome.state = "complete before"
    return True


def is_complete(batch: Batch, outcome: Outcome) -> bool:
    """Whether a slide is complete as asked. Only looks."""
    return SlideRun(batch.plans[outcome.key], _store(batch, outcome.key)).is_complete()


def _store(batch: Batch, key: str) -> SlideStore:
    return SlideStore(slide_root(batch.request.out, key))


def _plan(batch: Batch, chosen: SelectedSlide) -> None:
    candidate = chosen.candidate
    outcome = Outcome(candidate.key, candidate.shown)
    batch.outcomes.append(outcome)
    if candidate.case is not None:
        batch.cases[candidate.key] = candidate.case
    try:
        if candidate.refused is not None:
            raise candidate.refused
        equipment = batch.equipment[chosen.config.model]
        outcome.attempt = _unplanned_attempt(chosen, equipment.model)
        if _is_left_alone(batch, outcome, candidate):
            return
        compute = _compute(batch, equipment.compute, candidate.key)
        plan = retry_io(lambda: plan_slide(candidate, equipment.model, compute, chosen.config))
        outcome.attempt = digest(dict(plan.hashes))
        batch.plans[candidate.key] = _warned(plan, batch.request.config)
        _is_left_alone(batch, outcome, candidate)
    except Exception as error:  # one bad slide never stops the others
        outcome.failed("plan", redact_error(error, candidate.alias))


def _unplanned_attempt(chosen: SelectedSlide, model: Ensemble) -> str:
    """What tells a slide and what is asked of it while there is no plan, whose hashes tell more."""
    with suppress(OSError):
        found = chosen.candidate.path.stat()
        asked = chosen.config.model_dump(mode="json", exclude=NOT_THE_SLIDES)
        return digest([found.st_size, found.st_mtime_ns, asked, model.sha256])
    return ""


def _is_left_alone(batch: Batch, outcome: Outcome, candidate: Candidate) -> bool:
    """Whether the slide is not to be tried: it is still being written, or it failed too often as it is."""
    key, path, settle_s = candidate.key, candidate.path, batch.request.config.input.settle_s
    strikes = batch.strikes.get(key)
    if settle_s and (why := recently_modified(path, settle_s)):
        outcome.deferred(candidate.redact(why))
    elif strikes and strikes.count >= STRIKES and strikes.attempt == outcome.attempt and not batch.request.forces(key):
        outcome.quarantined(strikes, shlex.join(["overtile", "retry", str(batch.request.out), key]))
    elif settle_s:
        batch.files.setdefault(key, file_states(path))
    return outcome.state != "waiting"


def defer_changed(batch: Batch, outcome: Outcome) -> bool:
    """Defer a slide whose files are not what they were when it was planned; whether it had to be."""
    before, plan = batch.files.get(outcome.key), batch.plans[outcome.key]
    if before is None or before == (now := file_states(plan.slide)):
        return False
    gone = [name for name, *_ in before if name not in {name for name, *_ in now}]
    if gone:
        outcome.failed(
            outcome.stage,
            SlideError(
                f"{plan.display_name if plan.alias else gone[0]}: vanished after the slide was planned. Bring it back"
            ),
        )
        outcome.attempt = ""
    else:
        outcome.deferred(f"{outcome.slide}: was written to since it was planned. The next run takes it")
    return True


def _warned(plan: SlidePlan, asked: RunConfig) -> SlidePlan:
    """The plan, with a warning where the cases table and --mpp differ about the slide's resolution."""
    mpp, general = plan.config.input.mpp, asked.input.mpp
    if not isinstance(mpp, float) or not isinstance(general, float) or abs(mpp / general - 1) <= TOLERANCE:
        return plan
    warning = (
        f"{plan.display_name}: the cases table's {mpp:g} um/px is used; --mpp gives {general:g}, more than 5 % off"
    )
    return replace(plan, warnings=(*plan.warnings, warning))


def _compute(batch: Batch, now: Compute, key: str) -> Compute:
    """``auto`` is resolved once a slide: on the same kind of device, what was chosen when it was begun stays chosen."""
    asked = batch.request.config.compute
    before = previous_plan(_store(batch, key))
    if before is None or asked.precision != "auto" or before["config"]["compute"] != asked.model_dump(mode="json"):
        return now
    same_device = before["compute"]["device"] == now.device
    return replace(now, precision=before["compute"]["precision"]) if same_device else now


def _require_weights(model: Ensemble) -> None:
    """Refuse weights that no slide could be segmented with before one is read. Their header was read already."""
    from unet_core.model_file import checkpoint  # torch

    try:
        for weights in model.weights:
            checkpoint.load(weights.path)
    except NetworkError as error:
        raise ModelError(str(error)) from error


def _require_writable(folder: Path, what: str, option: str) -> None:
    """Do once in ``folder`` what every result needs: write a file, fsync it, rename it, remove it."""
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
    """A slide under its lock: its run, its outcome and the stages that are left."""

    run: SlideRun
    outcome: Outcome
    stages: Iterator[str]
    lock: ExitStack


def open_slide_run(batch: Batch, outcome: Outcome) -> OpenSlide | None:
    """Lock a waiting slide and clear its way; None when there is nothing to do (its outcome then says why)."""
    plan = batch.plans[outcome.key]
    run = SlideRun(plan, _store(batch, plan.key))
    if defer_changed(batch, outcome):
        return None
    lock = ExitStack()
    try:
        lock.enter_context(slide_lock(run.store.work))
        standing = run.prepare(forced=batch.request.forces(plan.key))
    except Exception as error:  # one bad slide never stops the others
        lock.close()
        outcome.failed("plan", redact_error(error, plan.alias))
        return None
    outcome.notices = [*plan.warnings, *run.notices]
    if standing == "todo":
        return OpenSlide(run, outcome, iter((*plan.hashes, MANIFEST)), lock)
    lock.close()
    outcome.state = "complete before" if standing == "complete" else "kept"
    outcome.cause = run.notices[-1] if standing == "kept" else ""
    return None
