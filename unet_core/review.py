"""A training that is over, looked at once more: what its report measures on the network that was kept.

Decision: all is measured on the images that it was judged by (of a run without any, on images it learnt from), in eval
mode, with chance drawn from the recipe's seed: so looking again shows the same and changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unet_core.activations import Flow, skip_gradients
from unet_core.augment import Augmentation
from unet_core.device import resolve_device
from unet_core.evaluate import least_px, score, whole_pass
from unet_core.learner import Learner
from unet_core.loss import loss_for
from unet_core.model import SegmentationNetwork
from unet_core.recolour import recoloured
from unet_core.samples import Annotated, Batch, Sampler, class_frequencies
from unet_core.spec import UNetSpec
from unet_core.train import Order, chance, sizes_px
from unet_core.validate import views

SAMPLES = 4
"""Tiles in a picture of samples."""
THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))


@dataclass(frozen=True, slots=True)
class ThresholdScores:
    """Dice of pixels and F1 of objects, pooled, at each of `THRESHOLDS`."""

    dice: tuple[float, ...]
    f1: tuple[float, ...]


def seen(order: Order) -> list[Annotated]:
    """Return the images it was judged by, windows of large ones; without any, images that it learnt from."""
    return views(order.material.held_back or order.material.training, order.recipe.stopping.images)


def samples(order: Order, spec: UNetSpec) -> Batch:
    """Return a few tiles as the first steps of training draw them."""
    sampling = order.recipe.sampling.model_copy(update={"batch": SAMPLES})
    shown = recoloured(order.material.training, spec.normalisation)
    sampler = Sampler(shown, sizes_px(spec, order.recipe), sampling, order.recipe.augment)
    return sampler.draw(chance(order.recipe))


def threshold_scores(model: SegmentationNetwork, cases: Sequence[Annotated]) -> ThresholdScores:
    """Score a network for one class at each threshold, its own smallest objects dropped."""
    shown = recoloured(cases, model.spec.normalisation)
    probabilities = (whole_pass(model.eval(), case.image_CYX) for case in shown)
    least = least_px(model.spec)
    counts = score(probabilities, cases, [(threshold, least) for threshold in THRESHOLDS])
    return ThresholdScores(tuple(pixels.f1 for pixels, _ in counts), tuple(objects.f1 for _, objects in counts))


def skip_flows(order: Order, model: SegmentationNetwork, cases: Sequence[Annotated]) -> tuple[Flow, ...]:
    """Return the gradient of the training's own loss through each skip, on one batch of tiles without augmentation."""
    recipe, spec = order.recipe, model.spec
    loss = loss_for(recipe.loss, spec, class_frequencies(order.material.training, spec.classes))
    learner = Learner.of(model, loss, recipe)
    device = resolve_device(recipe.compute.device)
    shown = recoloured(cases, spec.normalisation)
    sampler = Sampler(shown, sizes_px(spec, recipe), recipe.sampling, Augmentation.off(), device)
    batch = sampler.draw(chance(recipe))
    return skip_gradients(model, lambda: learner.loss_of(batch))
