"""Measurements on a finished training for its report.

They use the validation images (without any: training images), eval mode and random numbers from the configured seed, so
they are repeatable and change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unet_core.data.augmentation import Augmentation
from unet_core.data.recoloured import recoloured
from unet_core.data.sampler import AnnotatedImage, SampleBatch, Sampler
from unet_core.device import resolve_device
from unet_core.networks.activations import SkipGradient, skip_gradients
from unet_core.networks.unet import SegmentationNetwork
from unet_core.networks.whole_pass import whole_outputs
from unet_core.spec import UNetSpec
from unet_core.training.loss import loss_for
from unet_core.training.model_selection import score
from unet_core.training.train_state import TrainState
from unet_core.training.trainer import TrainJob, generator_from_seed, sizes_px
from unet_core.training.validation import views

SAMPLES = 4
"""Tiles in the figure of samples."""
THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))


@dataclass(frozen=True, slots=True)
class ThresholdScores:
    """Pooled Dice of pixels and F1 of objects at each of `THRESHOLDS`."""

    dice: tuple[float, ...]
    f1: tuple[float, ...]


def validation_images(job: TrainJob) -> list[AnnotatedImage]:
    """Return the validation images, windows of large ones; without any, training images."""
    return views(job.material.held_back or job.material.training, job.recipe.stopping.images)


def samples(job: TrainJob, spec: UNetSpec) -> SampleBatch:
    """Return the first tiles that training draws."""
    sampling = job.recipe.sampling.model_copy(update={"batch": SAMPLES})
    shown = recoloured(job.material.training, spec.normalisation)
    recipe = job.recipe.with_maps_of(spec)
    sampler = Sampler(shown, sizes_px(spec, recipe), sampling, recipe.augment, maps=recipe.maps)
    return sampler.draw(generator_from_seed(job.recipe))


def threshold_scores(model: SegmentationNetwork, cases: Sequence[AnnotatedImage]) -> ThresholdScores:
    """Score a network for one class at each threshold, without objects below its smallest area."""
    shown = recoloured(cases, model.spec.normalisation)
    outputs = (whole_outputs(model.eval(), case.image_CYX) for case in shown)
    counts = score(outputs, cases, [model.spec.model_copy(update={"threshold": one}) for one in THRESHOLDS])
    return ThresholdScores(tuple(pixels.f1 for pixels, _ in counts), tuple(objects.f1 for _, objects in counts))


def skip_gradient_norms(
    job: TrainJob, model: SegmentationNetwork, cases: Sequence[AnnotatedImage]
) -> tuple[SkipGradient, ...]:
    """Return gradient norms of the training's loss at each skip, on one batch without augmentation."""
    spec = model.spec
    recipe = job.recipe.with_maps_of(spec)
    loss = loss_for(recipe.loss, spec, job.class_frequencies(spec))
    learner = TrainState.of(model, loss, recipe)
    device = resolve_device(recipe.compute.device)
    shown = recoloured(cases, spec.normalisation)
    sampler = Sampler(shown, sizes_px(spec, recipe), recipe.sampling, Augmentation.off(), device, recipe.maps)
    batch = sampler.draw(generator_from_seed(recipe))
    return skip_gradients(model, lambda: learner.loss_of(batch))
