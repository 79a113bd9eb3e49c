"""From folders of images and masks to what is trained: one order for each fold that is held back.

The one decision made here: folds are drawn once, written to the run's folder and used again, so a network that goes on
learning is never judged by what it has seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from flows.training.sample_panel import save_panel
from pipeline.annotations.dataset import Dataset, open_dataset, refusals
from pipeline.annotations.dataset_checks import DatasetSummary, check_annotations, draw_folds
from pipeline.annotations.resampling import agreed
from pipeline.errors import ConfigError
from pipeline.storage.atomic_files import disk_errors, sweep_partials
from pipeline.storage.lock import slide_lock
from unet_core.data.recoloured import recoloured
from unet_core.data.sampler import Sampler
from unet_core.training.config import TrainConfig
from unet_core.training.dataset_spec import with_target
from unet_core.training.diagnostics import SAMPLES
from unet_core.training.trainer import TrainData, TrainJob, generator_from_seed, sizes_px

FOLDS = "folds.json"


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """What `overtile train` was asked for."""

    images: Path
    masks: Path
    cases: Path | None
    out: Path
    recipe: TrainConfig


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that is known before the first step: the networks to be trained, and what there is to learn from."""

    orders: tuple[TrainJob, ...]
    summary: DatasetSummary


@contextmanager
def begin(request: TrainRequest) -> Iterator[Prepared]:
    """Read and check the images, and keep everybody else out of the run's folder while they are trained on."""
    with disk_errors(request.out), slide_lock(request.out / ".work"):
        sweep_partials(request.out, age_s=0)  # nobody else is at work here
        yield prepare(request)


def prepare(request: TrainRequest) -> Prepared:
    """Read and check the images, draw the folds or read them.

    Raises ConfigError, naming the file and the cure, for whatever cannot be trained on.
    """
    recipe, found, summary = read(request)
    orders = (TrainJob(folder, _material(found, *names), recipe) for folder, *names in _splits(request, found, summary))
    return Prepared(tuple(orders), summary)


def read(request: TrainRequest) -> tuple[TrainConfig, Dataset, DatasetSummary]:
    """The recipe, its resolution that of the images where it says none; these, and what was counted in them."""
    if request.out.resolve() in (request.images.resolve(), request.masks.resolve()):
        raise ConfigError(f"{request.out}: expected a folder of its own for the run, found the images' or masks'")
    recipe = request.recipe
    wanted = recipe.network.resolution()
    found = open_dataset(request.images, request.masks, request.cases, recipe.data, wanted)
    if wanted is None and not recipe.network.start and (mpp := agreed(found.mpp.values())):
        recipe = recipe.model_copy(update={"network": recipe.network.model_copy(update={"mpp": mpp})})
        found = replace(found, said=(*found.said, f"network.mpp is {mpp:g} um per pixel, as all images state"))
    return recipe, found, check_annotations(found)


def save_samples(request: TrainRequest, found: Dataset) -> Path:
    """Write a picture of tiles as the network will be shown them; return its path."""
    recipe = request.recipe
    with refusals():
        spec = with_target(found.cases, found.class_names, recipe)
    sampling = recipe.sampling.model_copy(update={"batch": SAMPLES})
    sampler = Sampler(recoloured(found.cases, spec.normalisation), sizes_px(spec, recipe), sampling, recipe.augment)
    path = request.out / "samples.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_panel(path, sampler.draw(generator_from_seed(recipe)), found.class_names)
    return path


def _splits(
    request: TrainRequest, found: Dataset, summary: DatasetSummary
) -> Iterator[tuple[Path, Sequence[str], Sequence[str]]]:
    """Folder, names to learn from and names held back of each network."""
    wanted = request.recipe.folds.hold_back
    if wanted is None:
        yield request.out, [case.name for case in found.cases], []
        return
    folds = draw_folds(request.out / FOLDS, found, summary, request.recipe.folds)
    for number in folds.numbers if wanted == "all" else (wanted,):
        folder = request.out / f"fold-{number}" if wanted == "all" else request.out
        with refusals():
            yield folder, *folds.split(number)


def _material(found: Dataset, training: Sequence[str], held_back: Sequence[str]) -> TrainData:
    by_name = {case.name: case for case in found.cases}
    return TrainData(
        tuple(by_name[name] for name in training), tuple(by_name[name] for name in held_back), found.class_names
    )
