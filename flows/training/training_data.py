"""Training jobs from folders of images and masks: one job for each fold that is held back.

Folds are drawn once, stored in the folder of the run and reused, so that a resumed network is never validated on images
it was trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

from flows.training.sample_panel import save_panel
from pipeline.annotations.dataset import Dataset, as_config_errors, open_dataset
from pipeline.annotations.dataset_checks import DatasetSummary, check_annotations, draw_folds
from pipeline.annotations.resampling import common_resolution
from pipeline.errors import ConfigError
from pipeline.evaluation.dot_outlines import outline_dots
from pipeline.storage.atomic_files import disk_errors, sweep_partials
from pipeline.storage.lock import slide_lock
from unet_core.data.recoloured import recoloured
from unet_core.data.sampler import Sampler
from unet_core.model_file.header import resolve, sha256
from unet_core.training.config import TrainConfig
from unet_core.training.dataset_spec import with_target
from unet_core.training.diagnostics import SAMPLES
from unet_core.training.resume_checkpoint import continued
from unet_core.training.trainer import TrainData, TrainJob, generator_from_seed, sizes_px

FOLDS = "folds.json"


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """Arguments of ``overtile train``; ``pseudo`` is the model that turns dots into outlines."""

    images: Path
    masks: Path
    cases: Path | None
    out: Path
    recipe: TrainConfig
    pseudo: str | None = None


@dataclass(frozen=True, slots=True)
class PreparedTraining:
    """The training jobs of a run and the summary of its data."""

    jobs: tuple[TrainJob, ...]
    summary: DatasetSummary


@contextmanager
def open_run(request: TrainRequest) -> Iterator[PreparedTraining]:
    """Prepare a run and lock its folder while it is trained.

    Raises:
        ConfigError: If the data cannot be used for training, or the library of the report's charts is missing.
    """
    import_module("flows.reports.figures")  # before the training, not at its end
    with disk_errors(request.out), slide_lock(request.out / ".work"):
        sweep_partials(request.out, age_s=0)  # the lock excludes other processes
        yield prepare(request)


def prepare(request: TrainRequest) -> PreparedTraining:
    """Read and check the images, and draw or read the folds.

    Raises:
        ConfigError: If the data cannot be used for training; it names the file and the remedy.
    """
    recipe, dataset, summary = read(request)
    pseudo = None if request.pseudo is None else sha256(resolve(request.pseudo))
    jobs = (
        TrainJob(folder, replace(_train_data(dataset, *names), pseudo=pseudo), continued(folder, recipe))
        for folder, *names in _splits(request, dataset, summary)
    )
    return PreparedTraining(tuple(jobs), summary)


def read(request: TrainRequest) -> tuple[TrainConfig, Dataset, DatasetSummary]:
    """Read and check the images.

    Returns:
        The config with the resolution of the images if it sets none, the dataset, and its summary.

    Raises:
        ConfigError: If the data cannot be used for training.
    """
    if request.out.resolve() in (request.images.resolve(), request.masks.resolve()):
        raise ConfigError(f"{request.out}: expected a separate folder for the run, found the images or masks")
    recipe = request.recipe
    requested = recipe.network.resolution()
    dataset = open_dataset(request.images, request.masks, request.cases, recipe.data, requested)
    if requested is None and not recipe.network.start and (mpp := common_resolution(dataset.mpp.values())):
        recipe = recipe.model_copy(update={"network": recipe.network.model_copy(update={"mpp": mpp})})
        dataset = replace(
            dataset, remarks=(*dataset.remarks, f"network.mpp is {mpp:g} um per pixel, as all images state")
        )
    if request.pseudo is not None:
        dataset = outline_dots(dataset, request.pseudo)
    return recipe, dataset, check_annotations(dataset)


def save_samples(request: TrainRequest, dataset: Dataset) -> Path:
    """Write a picture of augmented training tiles; return its path."""
    recipe = request.recipe
    with as_config_errors():
        spec = with_target(dataset.cases, dataset.class_names, recipe)
    sampling = recipe.sampling.model_copy(update={"batch": SAMPLES})
    cases, sizes = recoloured(dataset.cases, spec.normalisation), sizes_px(spec, recipe)
    sampler = Sampler(cases, sizes, sampling, recipe.augment, maps=recipe.maps)
    path = request.out / "samples.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_panel(path, sampler.draw(generator_from_seed(recipe)), dataset.class_names, recipe.maps.names)
    return path


def _splits(
    request: TrainRequest, dataset: Dataset, summary: DatasetSummary
) -> Iterator[tuple[Path, Sequence[str], Sequence[str]]]:
    """Yield folder, training names and held-back names of each network."""
    requested = request.recipe.folds.hold_back
    if requested is None:
        yield request.out, [case.name for case in dataset.cases], []
        return
    folds = draw_folds(request.out / FOLDS, dataset, summary, request.recipe.folds)
    for number in folds.numbers if requested == "all" else (requested,):
        folder = request.out / f"fold-{number}" if requested == "all" else request.out
        with as_config_errors():
            yield folder, *folds.split(number)


def _train_data(dataset: Dataset, training: Sequence[str], held_back: Sequence[str]) -> TrainData:
    by_name, given = ({case.name: case for case in cases} for cases in (dataset.cases, dataset.given or dataset.cases))
    return TrainData(
        tuple(by_name[name] for name in training),
        tuple(given[name] for name in held_back),
        dataset.class_names,
        annotated=None if dataset.given is None else tuple(given[name] for name in training),
    )
