"""A batch: the slides asked for, what became of each, and the exit code that follows. No Prefect here.

The one decision made here: a batch succeeds only when every slide asked for is complete as asked; everything else is
said by the exit code, by name, with the cause. Each slide has its own configuration, which a cases table may change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, field_serializer

from pipeline.cases import Case, choose_slides, read_cases
from pipeline.config import ModelSection, RunConfig
from pipeline.discover import Candidate, find_slides
from pipeline.errors import ConfigError, DiskError, LockedError, ModelError, OvertileError
from pipeline.files import remove, write_bytes
from pipeline.lock import slide_lock
from pipeline.model import Model, load_model
from pipeline.plan import Compute, SlidePlan, plan_slide, resolve_tile
from pipeline.resample import TOLERANCE
from pipeline.slide_run import SlideRun, previous_plan, slide_root
from pipeline.store import SlideStore
from pipeline.work import StageReport, retried
from unet_core.errors import NetworkError

State = Literal["complete", "complete before", "kept", "failed", "locked", "waiting"]

MANIFEST = "manifest"
"""The step after a slide's last stage."""

EXIT_OK, EXIT_USAGE, EXIT_SOME, EXIT_NONE, EXIT_DISK, EXIT_LOCKED = 0, 2, 3, 4, 74, 75


class BatchRequest(BaseModel):
    """What a batch is asked to do: inputs (slides or folders), output folder, configuration, keys to force."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    inputs: tuple[Path, ...]
    out: Path
    config: RunConfig = RunConfig()
    force: tuple[str, ...] = ()
    force_all: bool = False

    @field_serializer("inputs", when_used="json")
    def _inputs_as_text(self, inputs: tuple[Path, ...]) -> list[str]:
        return [_as_text(path) for path in inputs]

    @field_serializer("out", when_used="json")
    def _out_as_text(self, out: Path) -> str:
        return _as_text(out)

    def forces(self, key: str) -> bool:
        """Whether a complete result of this slide may be given up."""
        return self.force_all or key in self.force


def _as_text(path: Path) -> str:
    """A path as JSON can hold it: bytes that are no UTF-8 are shown as '?'."""
    return str(path).encode("utf-8", "replace").decode()


@dataclass(slots=True)
class Outcome:
    """What became of one slide."""

    key: str
    slide: Path
    state: State = "waiting"
    stage: str = "plan"
    cause: str = ""
    seconds: float = 0.0
    computed: dict[str, int] = field(default_factory=dict)
    network_calls: int = 0
    notices: list[str] = field(default_factory=list)
    disk_failed: bool = False

    @property
    def as_asked(self) -> bool:
        """Complete under the plan that was asked for."""
        return self.state in ("complete", "complete before")

    @property
    def stopped(self) -> bool:
        """Not as asked, and there is something to say about it: it does not merely wait for its turn."""
        return not self.as_asked and (self.state != "waiting" or self.cause != "")

    def add(self, report: StageReport, seconds: float) -> None:
        """Count what a stage did in this run."""
        self.seconds += seconds
        self.computed[report.stage] = report.computed
        self.network_calls += report.counts.get("network_calls", 0)

    def failed(self, stage: str, error: BaseException) -> None:
        """Remember why the slide stopped, on one line."""
        self.state = "locked" if isinstance(error, LockedError) else "failed"
        self.stage = stage
        ours = isinstance(error, OvertileError)  # then the message names its place
        text = str(error) if ours else f"{self.slide}: {type(error).__name__}: {error}"
        self.cause = " ".join(text.split())
        self.disk_failed = isinstance(error, DiskError)


@dataclass(frozen=True, slots=True)
class Chosen:
    """A slide and the configuration of its run; ``case`` is the line of the table that named it."""

    candidate: Candidate
    config: RunConfig
    case: Case | None = None


@dataclass(frozen=True, slots=True)
class Equipment:
    """A model, and how this machine runs it."""

    model: Model
    compute: Compute


@dataclass(slots=True)
class Batch:
    """Slides to be worked on, in order, and the outcomes of all that were asked for.

    ``equipment`` holds each model once, by what configurations say of it; ``cases`` what the cases table says of
    a slide, by key.
    """

    request: BatchRequest
    equipment: dict[ModelSection, Equipment]
    outcomes: list[Outcome] = field(default_factory=list)
    plans: dict[str, SlidePlan] = field(default_factory=dict)
    cases: dict[str, Mapping[str, str]] = field(default_factory=dict)

    def exit_code(self) -> int:
        """The code the command ends with."""
        outcomes = self.outcomes
        if all(outcome.as_asked for outcome in outcomes):
            return EXIT_OK
        if any(outcome.disk_failed for outcome in outcomes):
            return EXIT_DISK
        if all(outcome.state == "locked" for outcome in outcomes):
            return EXIT_LOCKED
        return EXIT_SOME if any(outcome.as_asked or outcome.state == "kept" for outcome in outcomes) else EXIT_NONE

    def todo(self) -> list[Outcome]:
        """Slides that still wait, in order."""
        return [outcome for outcome in self.outcomes if outcome.state == "waiting"]


def plan_batch(request: BatchRequest, *, writing: bool = True) -> Batch:
    """Find the slides, describe their models and plan every slide; a slide that cannot be planned is an outcome.

    ``writing`` makes sure first that the output can be written. Raises ConfigError, ModelError (nothing can start) or
    DiskError.
    """
    chosen = _chosen(request)
    known = {one.candidate.key for one in chosen}
    if unknown := [key for key in request.force if key not in known]:
        raise ConfigError(f"--force {unknown[0]}: no such slide here; expected one of {', '.join(sorted(known)[:10])}")
    if all(one.candidate.refused for one in chosen):
        raise ConfigError("; ".join(str(one.candidate.refused) for one in chosen))
    models = _models(chosen)
    if writing:
        _require_writable(request.out, "output folder", "--out")
        if request.config.outputs.scratch is not None:
            _require_writable(Path(request.config.outputs.scratch), "scratch folder", "outputs.scratch")
    batch = Batch(request, _equip(request.config, models))
    for one in chosen:
        _plan(batch, one)
    return batch


def _chosen(request: BatchRequest) -> list[Chosen]:
    """The slides asked for, in order: all that were found, or those that the cases table names."""
    config = request.config
    cases = read_cases(Path(config.input.cases)) if config.input.cases is not None else None
    candidates = find_slides(request.inputs, config.input.pattern, request.out)
    if cases is None:
        return [Chosen(candidate, config) for candidate in candidates]
    return [Chosen(candidate, case.config(config), case) for candidate, case in choose_slides(cases, candidates)]


def _models(chosen: Sequence[Chosen]) -> dict[ModelSection, Model]:
    """Every model that a slide is to be segmented with, once, by what the configuration says of it."""
    models: dict[ModelSection, Model] = {}
    for one in chosen:
        section = one.config.model
        if section not in models and one.candidate.refused is None:
            try:
                models[section] = load_model(section)
            except ModelError as error:
                where = one.case.where if one.case and one.case.columns.get("model", "").strip() else None
                raise ModelError(f"{where}: {error}" if where else str(error)) from error
    return models


def _equip(config: RunConfig, models: dict[ModelSection, Model]) -> dict[ModelSection, Equipment]:
    from pipeline.predict import resolve_device, resolve_precision  # torch costs a second; refusals need none

    for model in models.values():
        _require_weights(model)
    device = resolve_device(config.compute.device)
    precision = resolve_precision(config.compute.precision, device)
    return {
        section: Equipment(model, Compute(device, precision, resolve_tile(config, model, device)))
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


def _plan(batch: Batch, chosen: Chosen) -> None:
    candidate = chosen.candidate
    outcome = Outcome(candidate.key, candidate.path)
    batch.outcomes.append(outcome)
    if candidate.case is not None:
        batch.cases[candidate.key] = candidate.case
    try:
        if candidate.refused is not None:
            raise candidate.refused
        equipment = batch.equipment[chosen.config.model]
        compute = _compute(batch, equipment.compute, candidate.key)
        plan = retried(lambda: plan_slide(candidate, equipment.model, compute, chosen.config))
        batch.plans[candidate.key] = _warned(plan, batch.request.config)
    except Exception as error:  # one bad slide never stops the others
        outcome.failed("plan", error)


def _warned(plan: SlidePlan, asked: RunConfig) -> SlidePlan:
    """The plan, with a warning where the cases table and --mpp differ about the slide's resolution."""
    mpp, general = plan.config.input.mpp, asked.input.mpp
    if not isinstance(mpp, float) or not isinstance(general, float) or abs(mpp / general - 1) <= TOLERANCE:
        return plan
    warning = f"{plan.slide}: the cases table's {mpp:g} um/px is used; --mpp gives {general:g}, more than 5 % off"
    return replace(plan, warnings=(*plan.warnings, warning))


def _compute(batch: Batch, now: Compute, key: str) -> Compute:
    """``auto`` is resolved once a slide: on the same kind of device, what was chosen when it was begun stays chosen."""
    asked = batch.request.config.compute
    before = previous_plan(_store(batch, key))
    if before is None or asked.precision != "auto" or before["config"]["compute"] != asked.model_dump(mode="json"):
        return now
    same_device = before["compute"]["device"] == now.device
    return replace(now, precision=before["compute"]["precision"]) if same_device else now


def _require_weights(model: Model) -> None:
    """Refuse weights that no slide could be segmented with before one is read. Their header was read already."""
    from unet_core import checkpoint  # torch

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
    lock = ExitStack()
    try:
        lock.enter_context(slide_lock(run.store.work))
        standing = run.prepare(forced=batch.request.forces(plan.key))
    except Exception as error:  # one bad slide never stops the others
        lock.close()
        outcome.failed("plan", error)
        return None
    outcome.notices = [*plan.warnings, *run.notices]
    if standing == "todo":
        return OpenSlide(run, outcome, iter((*plan.hashes, MANIFEST)), lock)
    lock.close()
    outcome.state = "complete before" if standing == "complete" else "kept"
    outcome.cause = run.notices[-1] if standing == "kept" else ""
    return None
