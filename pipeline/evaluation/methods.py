"""Methods that can be evaluated: networks, cross-validation runs and baselines.

A method is a function from an annotated image to a function that reads blocks of probability bytes. A threshold and a
network therefore appear in one table, and so does a cross-validation run, in which each image is predicted by the
network that held it back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from pipeline.config import ObjectsSection
from pipeline.errors import ConfigError
from pipeline.evaluation.cross_validated import FoldModels, NamedModel
from pipeline.evaluation.image_scorer import ImageScorer, ProbabilityReader, ScoringConfig
from pipeline.geometry import Box
from pipeline.inference.ensemble import Ensemble
from pipeline.inference.predictor import MirroredRegion, Predictor, load_networks, resolve_device
from pipeline.objects.method import resolve
from pipeline.objects.watershed import Splitting
from pipeline.storage.atomic_files import digest
from unet_core.class_map import THRESHOLD
from unet_core.data.sampler import AnnotatedImage
from unet_core.errors import MissingLibraryError
from unet_core.metrics.centres import WITHIN_PX
from unet_core.mirror import ArrayLike
from unet_core.normalisation import fits, sample
from unet_core.object_labels import area_range_px, largest_box_px
from unet_core.spec import UNetSpec
from unet_core.training.model_selection import least_px

if TYPE_CHECKING:
    from unet_core.training.baselines import Baseline

TILE_PX = 1024
PRECISION = "fp32"
"""Precision on every device, so that scores do not depend on the hardware."""


@dataclass(frozen=True, slots=True)
class Method:
    """A segmentation method.

    Attributes:
        name: Name in tables.
        how: Description.
        config: Conversion of bytes to objects.
        answers: Makes the reader of probabilities of an image.
        mpp: Resolution in um per pixel, if any.
        sha256: Hash of the weights, if any.
        instead: Methods that replace this one for images of these names.
    """

    name: str
    how: str
    config: ScoringConfig
    answers: Callable[[ArrayLike], ProbabilityReader]
    mpp: float | None = None
    sha256: str | None = None
    instead: Mapping[str, Method] = field(default_factory=dict)

    def judge(self, case: AnnotatedImage, within_px: float = WITHIN_PX) -> ImageScorer:
        """Scorer of an image, by the method that applies to it; centres match within a distance in px."""
        one = self.instead.get(case.name, self)
        return ImageScorer(one.answers(case.image_CYX), case, one.config, within_px=within_px)


def networks(models: Sequence[NamedModel], device: str) -> list[Method]:
    """Methods of models and cross-validation runs, whose classes are called as those of the first.

    The names differ only between models of one class: a training without names calls it ``object``.

    Raises:
        ConfigError: Two models have the same name, or the classes of models with several differ.
        ModelError: A file is not a valid model.
    """
    names = [model.name for model in models]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"--model: expected files of different names, found {', '.join(twice)} twice. Rename one")
    classes = models[0].spec.class_names if models else ()
    for model in models[1:]:
        if model.spec.class_names != classes and not model.spec.foreground == len(classes) == 1:
            raise ConfigError(
                f"--model: expected one list of classes, found {list(classes)} in {names[0]} and "
                f"{list(model.spec.class_names)} in {model.name}. Evaluate them separately"
            )
    make = partial(_network, classes=classes, device=resolve_device(device))
    return [make(one) if isinstance(one, Ensemble) else _folds(one, make) for one in models]


def _folds(run: FoldModels, make: Callable[[Ensemble], Method]) -> Method:
    """Method that predicts each image by the network that held it back; other properties are the first's."""
    each = [make(model) for model in run.models]
    instead = {name: method for method, names in zip(each, run.held_back, strict=True) for name in names}
    how = f"{len(each)} networks, each on the images it was not trained on: " + "; ".join(one.how for one in each)
    sha256 = digest([model.sha256 for model in run.models])
    return Method(run.name, how, each[0].config, each[0].answers, run.spec.mpp, sha256, instead)


def _network(model: Ensemble, *, classes: tuple[str, ...], device: str) -> Method:
    spec = model.spec
    threshold = spec.threshold or THRESHOLD
    config = _seeded(ScoringConfig(classes, threshold, least_px(spec)), spec)
    answers = partial(probability_reader, load_networks(model.weights, device, PRECISION, model.tta))
    return Method(model.name, _how(model, config, device), config, answers, spec.mpp, model.sha256)


def _seeded(config: ScoringConfig, spec: UNetSpec) -> ScoringConfig:
    """The same with the object settings of a model, as ``segment`` applies them by default."""
    section, mpp = ObjectsSection(), spec.mpp or 1.0  # without a resolution a pixel is 1 um2
    settings = resolve(section, spec)
    if settings.max_area_um2 is not None:
        config = replace(config, most_px=math.floor(area_range_px(spec)[1]))
    if settings.map_name is None:
        return config
    largest = largest_box_px(section.split_max_um, mpp)
    splitting = Splitting(settings.depth, largest, section.connectivity, settings.map_name)
    return replace(config, splitting=splitting, seeds=spec.foreground + spec.maps.index(settings.map_name))


def _how(model: Ensemble, config: ScoringConfig, device: str) -> str:
    by = f"threshold {config.threshold:g}" if len(config.class_names) == 1 else "largest probability"
    mean = [f"{len(model.members)} networks"] if len(model.members) > 1 else []
    mean += [f"{model.passes} flips and quarter turns"] if model.passes > 1 else []
    if config.splitting is not None:
        by += f", split by the map {config.splitting.source} (depth {config.splitting.dent:g})"
    averaged = f"mean of {' and '.join(mean)}, " if mean else ""
    most = "" if config.most_px is None else f" and at most {config.most_px}"
    return f"{averaged}{by}, objects of at least {config.least_px}{most} px, {PRECISION} on {device}"


def probability_reader(network: Predictor, image_CYX: ArrayLike, tile_px: int = TILE_PX) -> ProbabilityReader:
    """Reader of a network's probabilities and maps for blocks that start on a multiple of its step.

    Raises:
        ConfigError: The image has other channels.
    """
    _demand_channels(network.spec, image_CYX)
    step = network.shape.step
    smallest = max(-(-length // step) * step for length in image_CYX.shape[1:])
    side = min(tile_px, smallest)
    normalisations = [member.spec.normalisation for member in network.members]
    # Fitted to the whole image, as segment fits to the whole slide.
    colours = fits(sample(image_CYX), normalisations) if any(normalisations) else ()

    def answer(core: Box) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        region = MirroredRegion.read_around(image_CYX, network.grid(core, side), colours)
        return network.outputs(region, core, side)

    return answer


def _demand_channels(spec: UNetSpec, image_CYX: ArrayLike) -> None:
    channels = image_CYX.shape[0]
    if channels not in (1, spec.in_channels):
        raise ConfigError(
            f"expected images of {spec.in_channels} channels, as the model takes (or of 1, which is repeated), found "
            f"{channels}. Evaluate a model made for such images, or convert them"
        )


def baselines(class_names: Sequence[str], training: Sequence[AnnotatedImage]) -> list[Method]:
    """Otsu's threshold for a single class, and pixel classifiers where there are training images."""
    from unet_core.training.baselines import linear_svm, otsu, random_forest  # scikit-learn takes a second to import

    names = tuple(class_names)
    found = [otsu()] if len(names) == 1 else []
    if training:
        try:
            found += [random_forest(training, len(names)), linear_svm(training, len(names))]
        except MissingLibraryError as error:
            raise ConfigError(str(error)) from error
    return [_baseline(one, names) for one in found]


def _baseline(baseline: Baseline, class_names: tuple[str, ...]) -> Method:
    config = ScoringConfig(class_names, 0.5, 1, graded=baseline.graded)
    return Method(baseline.name, f"{baseline.how}; every component is kept", config, baseline.of_image)
