"""A training that is over, looked at once more: what its report measures on the network that was kept.

Decision: all is measured on the images that it was judged by (of a run without any, on images it learnt from), in eval
mode, with chance drawn from the recipe's seed: so looking again shows the same and changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unet_core.data.augmentation import Augmentation
from unet_core.data.recoloured import recoloured
from unet_core.data.sampler import AnnotatedImage, SampleBatch, Sampler, class_frequencies
from unet_core.device import resolve_device
from unet_core.networks.activations import Flow, skip_gradients
from unet_core.networks.unet import SegmentationNetwork
from unet_core.networks.whole_pass import whole_pass
from unet_core.spec import UNetSpec
from unet_core.training.loss import loss_for
from unet_core.training.model_selection import least_px, score
from unet_core.training.train_state import TrainState
from unet_core.training.trainer import TrainJob, generator_from_seed, sizes_px
from unet_core.training.validation import views

SAMPLES = 4
"""Tiles in a picture of samples."""
THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))


@dataclass(frozen=True, slots=True)
class ThresholdScores:
    """Dice of pixels and F1 of objects, pooled, at each of `THRESHOLDS`."""

    dice: tuple[float, ...]
    f1: tuple[float, ...]


def seen(order: TrainJob) -> list[AnnotatedImage]:
    """Return the images it was judged by, windows of large ones; without any, images that it learnt from."""
    return views(order.material.held_back or order.material.training, order.recipe.stopping.images)


def samples(order: TrainJob, spec: UNetSpec) -> SampleBatch:
    """Return a few tiles as the first steps of training draw them."""
    sampling = order.recipe.sampling.model_copy(update={"batch": SAMPLES})
    shown = recoloured(order.material.training, spec.normalisation)
    sampler = Sampler(shown, sizes_px(spec, order.recipe), sampling, order.recipe.augment)
    return sampler.draw(generator_from_seed(order.recipe))


def threshold_scores(model: SegmentationNetwork, cases: Sequence[AnnotatedImage]) -> ThresholdScores:
    """Score a network for one class at each threshold, its own smallest objects dropped."""
    shown = recoloured(cases, model.spec.normalisation)
    probabilities = (whole_pass(model.eval(), case.image_CYX) for case in shown)
    least = least_px(model.spec)
    counts = score(probabilities, cases, [(threshold, least) for threshold in THRESHOLDS])
    return ThresholdScores(tuple(pixels.f1 for pixels, _ in counts), tuple(objects.f1 for _, objects in counts))


def skip_flows(order: TrainJob, model: SegmentationNetwork, cases: Sequence[AnnotatedImage]) -> tuple[Flow, ...]:
    """Return the gradient of the training's own loss through each skip, on one batch of tiles without augmentation."""
    recipe, spec = order.recipe, model.spec
    loss = loss_for(recipe.loss, spec, class_frequencies(order.material.training, spec.classes))
    learner = TrainState.of(model, loss, recipe)
    device = resolve_device(recipe.compute.device)
    shown = recoloured(cases, spec.normalisation)
    sampler = Sampler(shown, sizes_px(spec, recipe), recipe.sampling, Augmentation.off(), device)
    batch = sampler.draw(generator_from_seed(recipe))
    return skip_gradients(model, lambda: learner.loss_of(batch))
