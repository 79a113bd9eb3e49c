"""Training of a network: loop, outputs, and selection of threshold and smallest area at the end.

Everything that a step changes (weights, optimiser, random states) is in one file, so a killed run resumes with the same
call and takes identical steps (with `schedule.steps`, on one kind of CPU and the same number of threads).

    RUN/best.safetensors   best network on the held-back images; at the end with threshold and smallest area
    RUN/last.safetensors   latest network           RUN/resume.safetensors   state for resuming
    RUN/metrics.jsonl      one line per step        RUN/tensorboard          the same values for TensorBoard
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, Self

import torch

from unet_core.data.augmentation import Augmentation
from unet_core.data.prefetch import Batches
from unet_core.data.recoloured import recoloured
from unet_core.data.sampler import AnnotatedImage, Sampler, class_frequencies
from unet_core.device import resolve_device
from unet_core.errors import DivergedError, RecipeError
from unet_core.model_file.checkpoint import load, save, with_spec
from unet_core.model_file.header import describe, resolve, sha256
from unet_core.networks.factory import build
from unet_core.networks.whole_pass import whole_outputs
from unet_core.shapes import ValidShape
from unet_core.spec import UNetSpec
from unet_core.training import resume_checkpoint
from unet_core.training.config import TrainConfig
from unet_core.training.dataset_spec import spec_for, with_stain
from unet_core.training.loss import loss_for
from unet_core.training.metrics_log import MetricsLog
from unet_core.training.model_selection import select_objects
from unet_core.training.optimiser import rate_at
from unet_core.training.resume_checkpoint import Position
from unet_core.training.train_state import TrainState
from unet_core.training.validation import validate, views

BEST, LAST = "best.safetensors", "last.safetensors"
TILES = "chance/tiles"
SAVE_EVERY_S = 60.0
CHOOSE_IMAGES = 64  # for the selection of threshold and smallest area
SCORING, SCORING_MAPS = 2.0, 10.0  # time of the selection per pixel, as a multiple of validation; where there are maps


@dataclass(frozen=True, slots=True)
class TrainData:
    """Training images, held-back images for validation, and names of the classes.

    ``pseudo``: SHA-256 of the model that outlined dots. ``annotated``: training images as they are annotated, by which
    settings are chosen; None: the training images.
    """

    training: Sequence[AnnotatedImage]
    held_back: Sequence[AnnotatedImage] = ()
    class_names: Sequence[str] = ("object",)
    pseudo: str | None = None
    annotated: Sequence[AnnotatedImage] | None = None

    def shown(self, spec: UNetSpec) -> TrainData:
        """Return the images in a network's colours; each image is normalised as a slide would be."""
        training, held_back = (recoloured(cases, spec.normalisation) for cases in (self.training, self.held_back))
        annotated = None if self.annotated is None else recoloured(self.annotated, spec.normalisation)
        return replace(self, training=training, held_back=held_back, annotated=annotated)


@dataclass(frozen=True, slots=True)
class TrainJob:
    """One training run: output folder, images and configuration."""

    folder: Path
    material: TrainData
    recipe: TrainConfig

    def check(self) -> None:
        """Raise RecipeError for a configuration that does not fit the images."""
        watched = self.recipe.stopping.patience or self.recipe.schedule.kind == "plateau"
        if watched and not self.material.held_back:
            raise RecipeError(
                "stopping.patience and schedule.kind=plateau: expected held-back images to validate on, found none. "
                "Set folds.hold_back, or remove these settings"
            )

    def spec(self) -> UNetSpec:
        """Return the spec of the model to start from, or the configured one completed from the images."""
        if start := self.recipe.network.start:
            return describe(resolve(start)).spec
        return spec_for(self.material.training, self.material.class_names, self.recipe)

    def class_frequencies(self, spec: UNetSpec) -> tuple[float, ...]:
        """Return the share of each class in the training images; dots count if the loss weights classes by it."""
        weighted = self.recipe.loss.class_weights != "none"
        return class_frequencies(self.material.training, spec.classes, self.recipe.maps if weighted else None)

    def identity(self, spec: UNetSpec) -> dict[str, Any]:
        """Return the identity of the run as JSON-compatible data."""
        identity: dict[str, Any] = {
            "recipe": self.recipe.model_dump(mode="json"),
            "network": spec.model_dump(mode="json"),
            "trained on": [[case.name, *case.labels_YX.shape] for case in self.material.training],
            "held back": [[case.name, *case.labels_YX.shape] for case in self.material.held_back],
            "share of each class": list(self.class_frequencies(spec)),
        }
        if dots := [case.points_N3.tobytes() for case in self.material.training if case.points_N3 is not None]:
            identity["dots"] = hashlib.sha256(b"".join(dots)).hexdigest()
        return identity if self.material.pseudo is None else identity | {"pseudo": self.material.pseudo}

    def provenance(self, step: int) -> dict[str, Any]:
        """Return the provenance for the model file."""
        provenance: dict[str, Any] = {
            "command": "overtile train",
            "recipe": self.recipe.model_dump(mode="json"),
            "steps": step,
            "trained_on": [case.name for case in self.material.training],
            "held_back": [case.name for case in self.material.held_back],
        }
        if self.material.pseudo is not None:
            provenance["pseudo"] = self.material.pseudo
        if start := self.recipe.network.start:
            provenance["start"] = {"sha256": sha256(resolve(start)), **describe(resolve(start)).provenance}
        return provenance


class TrainListener(Protocol):
    """Receives the progress of a run."""

    def begun(self, job: TrainJob, position: Position) -> None:
        """The run starts or resumes at this position."""

    def stepped(self, record: Mapping[str, Any], progress: float) -> None:
        """One step is finished; `progress` is the finished share of the training, 0..1."""

    def validated(self, step: int, scores: Mapping[str, float]) -> None:
        """A validation is finished."""


@dataclass(slots=True)
class Trainer:
    """One run in one folder."""

    job: TrainJob
    learner: TrainState
    sampler: Sampler
    batches: Batches
    identity: dict[str, Any]
    seen: list[AnnotatedImage]
    choosing: list[AnnotatedImage]
    watcher: TrainListener
    position: Position = field(default_factory=Position)
    saved: tuple[int, float] = (0, 0.0)  # step and second of the latest save
    began: float = 0.0

    @classmethod
    def of(cls, job: TrainJob, watcher: TrainListener) -> Self:
        """Build network and optimiser, or restore the state of an earlier call.

        Raises:
            RecipeError: The folder holds another run, or the configuration does not fit the images.
        """
        job.check()
        recipe, material = job.recipe, job.material
        torch.manual_seed(recipe.compute.seed)
        start = load(resolve(recipe.network.start)) if recipe.network.start else None
        spec = start.spec if start else job.spec()
        frequencies = job.class_frequencies(spec)
        recipe = recipe.with_maps_of(spec)
        learner = TrainState.of(start or build(spec), loss_for(recipe.loss, spec, frequencies), recipe)
        shown = material.shown(spec)
        sizes, device = sizes_px(spec, recipe), learner.device.type
        sampler = Sampler(shown.training, sizes, recipe.sampling, recipe.augment, device, recipe.maps)
        generator = generator_from_seed(recipe)
        identity = job.identity(spec)
        seen = views(shown.held_back, recipe.stopping.images)
        choosing = views(shown.annotated or shown.training, CHOOSE_IMAGES)
        position = Position()
        if saved := resume_checkpoint.read(job.folder, identity):
            learner.restore(saved.tensors)
            generator.set_state(saved.tensors[TILES])
            position = saved.position
        return cls(job, learner, sampler, Batches(sampler, generator), identity, seen, choosing, watcher, position)

    # ---- the loop --------------------------------------------------------------------------------------------------

    def run(self) -> Position:
        """Train to the end, then select threshold and smallest area; a finished run is left unchanged.

        Returns:
            The final position.

        Raises:
            DivergedError: Loss or gradient is not finite; the message names the files that are kept.
        """
        with self.batches:
            if not self.position.done:
                self._train()
        return self.position

    def _train(self) -> None:
        self.began = time.monotonic() - self.position.seconds
        self.saved = (self.position.step, self.position.seconds)
        self.watcher.begun(self.job, self.position)
        with MetricsLog(self.job.folder, self.position.log_bytes, self.position.step) as journal:
            if self.position.step:
                self._write_models()  # a kill may have prevented it
            else:
                self._judge(journal)  # failures of validation appear before hours of training
                self._save(journal)
            while not self._is_over():
                self._step(journal)
            self._judge(journal)
            self._save(journal)
        choose(self.job.folder / BEST, self.choosing, self.job)
        self.position = replace(self.position, done=True)
        resume_checkpoint.write(self.job.folder, self.identity, self.position, self._tensors())

    @property
    def seconds(self) -> float:
        """Training time so far, including earlier calls."""
        return time.monotonic() - self.began

    def _progress(self) -> float:
        return self.job.recipe.schedule.progress(self.position.step, self.seconds, self.position.reserve_s)

    def _is_over(self) -> bool:
        return self._progress() >= 1 or self.position.watch.is_over(self.job.recipe.stopping.patience)

    def _step(self, journal: MetricsLog) -> None:
        recipe, step, progress = self.job.recipe, self.position.step, self._progress()
        rate = rate_at(recipe, step, progress, self.position.watch)
        loss, norms = self._learn(rate)
        self.position = replace(self.position, step=step + 1, seconds=self.seconds)
        record = {
            "step": step + 1,
            "epoch": (step + 1) * recipe.sampling.batch // len(self.job.material.training),
            "seconds": round(self.position.seconds, 3),
            "loss": loss,
            "rate": rate,
            "gradient_norms": norms,
        }
        journal.stepped(record)
        self.watcher.stepped(record, progress)
        if (step + 1) % recipe.stopping.every == 0:
            self._judge(journal)
            self._save(journal)
        elif self.seconds - self.saved[1] > SAVE_EVERY_S:
            self._save(journal)

    def _learn(self, rate: float) -> tuple[float, dict[str, float]]:
        try:
            return self.learner.step(next(self.batches), rate)
        except DivergedError as error:
            kept = self.position.watch.best_step or self.saved[0]
            raise DivergedError(
                f"{self.job.folder}: training diverged at step {self.position.step + 1}: {error}. Kept are {BEST} of "
                f"step {kept} and {LAST} of step {self.saved[0]}. Lower optimiser.rate or set optimiser.clip, and name "
                "another --out"
            ) from error

    def _judge(self, journal: MetricsLog) -> None:
        """Validate the network, at most once per step."""
        step, watch, recipe = self.position.step, self.position.watch, self.job.recipe
        if not self.seen or self.position.judged == step:
            return
        before = time.monotonic()
        judged = self.learner.judged.eval()
        self.learner.model.eval()
        scores = {"loss": self._loss_held_back(), **validate(judged, self.seen)}
        pace = (time.monotonic() - before) / _pixels(self.seen)
        journal.validated(step, scores)
        self.watcher.validated(step, scores)
        if step:  # an untrained network is never the best
            watch = watch.after(scores[recipe.stopping.monitor], step, recipe)
        scoring = SCORING_MAPS if judged.spec.maps else SCORING
        reserve_s = scoring * pace * _pixels(self.choosing)
        self.position = replace(self.position, judged=step, watch=watch, reserve_s=reserve_s)

    def _loss_held_back(self) -> float:
        """Return the mean loss on as many batches as there are images, always the same ones, without augmentation."""
        sampler = replace(self.sampler, cases=self.seen, augmentation=Augmentation.off())
        generator = torch.Generator().manual_seed(0)
        with torch.inference_mode():
            losses = [float(self.learner.loss_of(sampler.draw(generator))) for _ in self.seen]
        return sum(losses) / len(losses)

    # ---- outputs ---------------------------------------------------------------------------------------------------

    def _save(self, journal: MetricsLog) -> None:
        """Write the resume state, then the model files."""
        self.position = replace(self.position, seconds=self.seconds, log_bytes=journal.sync())
        resume_checkpoint.write(self.job.folder, self.identity, self.position, self._tensors())
        self.saved = (self.position.step, self.position.seconds)
        self._write_models()

    def _tensors(self) -> dict[str, torch.Tensor]:
        return self.learner.tensors() | {TILES: self.batches.state}

    def _write_models(self) -> None:
        """Write the latest model, and the best one if it is of this step or none was validated."""
        model, step = self.learner.judged, self.position.step
        provenance = self.job.provenance(step)
        save(self.job.folder / LAST, model, provenance)
        if self.position.watch.best_step in (None, step):
            save(self.job.folder / BEST, model, provenance, precision="half")


def sizes_px(spec: UNetSpec, recipe: TrainConfig) -> tuple[int, int]:
    """Return the sides of a tile and of the network's output for it."""
    shape = ValidShape.of(spec)
    read_px = shape.read_px(recipe.sampling.output_px)
    return read_px, shape.output_px(read_px)


def generator_from_seed(recipe: TrainConfig) -> torch.Generator:
    """Return the generator of a run's tiles in its initial state."""
    return torch.Generator().manual_seed(recipe.compute.seed)


def choose(path: Path, cases: Sequence[AnnotatedImage], job: TrainJob) -> None:
    """Select threshold, object settings, areas and stain on training images and store them in a model file.

    A network for several classes has no threshold; the largest probability decides.

    Args:
        path: Model file to update.
        cases: Training images in the network's colours, for threshold and smallest area.
        job: The run; the stain is that of its original images.
    """
    model = load(path).to(resolve_device(job.recipe.compute.device))
    spec = with_stain(model.spec, views(job.material.training, CHOOSE_IMAGES), job.recipe)
    if spec.foreground == 1 or spec.maps:
        spec = select_objects([whole_outputs(model, case.image_CYX) for case in cases], cases, spec)
    save(path, with_spec(model, spec), describe(path).provenance, precision="half")


def _pixels(cases: Sequence[AnnotatedImage]) -> int:
    return sum(case.labels_YX.shape[0] * case.labels_YX.shape[1] for case in cases)


def train(job: TrainJob, watcher: TrainListener) -> Position:
    """Train into an existing folder, or resume the same call.

    Args:
        job: Folder, images and configuration.
        watcher: Receives the progress.

    Returns:
        The final position.

    Raises:
        RecipeError: The folder holds another run, or the configuration does not fit the images.
        DivergedError: Loss or gradient is not finite.
    """
    return Trainer.of(job, watcher).run()


def is_done(job: TrainJob) -> bool:
    """Return whether an earlier call finished the run.

    Raises:
        RecipeError: The folder holds another run.
    """
    if not (job.folder / resume_checkpoint.NAME).exists():
        return False
    saved = resume_checkpoint.read(job.folder, job.identity(job.spec()))
    return saved is not None and saved.position.done
