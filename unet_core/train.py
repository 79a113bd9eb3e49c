"""Train a U-Net on a folder of images and label images: a small plain loop.

Decision: what is not known to matter is left out. AdamW with a cosine to zero, the paper's weight map, strong
deformation and stain jitter because there are few images; half precision where it is safe; one file at the end. A run
given `--steps` is repeatable to the bit on one kind of machine; `--minutes` ends on time instead.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unet_core.augment import Augmentation
from unet_core.checkpoint import load, save, with_spec
from unet_core.evaluate import best_min_area, best_threshold, in_folds, least_px, score, whole_pass
from unet_core.header import describe, sha256
from unet_core.loss import LossSettings, loss_for
from unet_core.model import SegmentationNetwork
from unet_core.networks import build
from unet_core.samples import Annotated, Batch, draw_batch, read_annotated, stain_shown
from unet_core.shapes import ValidShape
from unet_core.spec import UNetSpec, preset

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train. `steps` wins over `minutes`."""

    minutes: float = 35.0
    steps: int | None = None
    seed: int = 0
    rate: float = 2e-3
    decay: float = 1e-2
    batch: int = 4
    output_px: int = 228  # the tile is what the network needs to answer for this much or a little more

    def progress(self, step: int, seconds: float) -> float:
        """Return how much of the training is over, 0..1."""
        return step / self.steps if self.steps else min(1.0, seconds / (60 * self.minutes))


def spec_for(cases: Sequence[Annotated], chosen: UNetSpec) -> UNetSpec:
    """Return `chosen` with mean and deviation of the images' channels filled in, and the stain of coloured ones."""
    images = [np.asarray(case.image_CYX[:, :, :]) for case in cases]
    largest = [np.iinfo(image.dtype).max for image in images]
    shares = [image.reshape(chosen.in_channels, -1) / top for image, top in zip(images, largest, strict=True)]
    pixels = np.concatenate(shares, axis=1)
    mean, std = ([round(float(value), 4) for value in stat(axis=1)] for stat in (pixels.mean, pixels.std))
    known = {**chosen.model_dump(), "mean": mean, "std": std}
    if chosen.in_channels == 3 and chosen.mpp is not None:
        stain = stain_shown(cases, chosen.mpp, Augmentation(), torch.Generator().manual_seed(0))
        known |= {"stain_mean": stain.mean, "stain_covariance": stain.covariance}
    return UNetSpec.model_validate(known)


def train_step(model: SegmentationNetwork, batch: Batch, optimiser: torch.optim.Optimizer) -> float:
    """Take one step downhill and return the loss."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (model.spec.mean, model.spec.std))
    x_NCHW = ((batch.image_NCHW - mean) / std).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        logits_NCHW = model(x_NCHW)
    loss = loss_for(LossSettings(), model.spec)(logits_NCHW, batch.target_NHW, batch.weight_NHW)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    return float(loss.detach())


def train(
    spec: UNetSpec, cases: Sequence[Annotated], recipe: Recipe, start: SegmentationNetwork | None = None
) -> tuple[SegmentationNetwork, int]:
    """Return a trained network in eval mode and the number of steps taken; logs a line now and then.

    `start`: go on from this network, which keeps its own spec, instead of from He initialisation.
    """
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    model = (start or build(spec)).train()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's annotations
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=recipe.decay)
    shape = ValidShape.of(spec)
    read_px = shape.read_px(recipe.output_px)
    sizes = (read_px, shape.output_px(read_px))
    started, step, recent = time.monotonic(), 0, 0.0
    while (progress := recipe.progress(step, time.monotonic() - started)) < 1:
        warm = min(1.0, (step + 1) / 50)
        optimiser.param_groups[0]["lr"] = recipe.rate * warm * (1 + math.cos(math.pi * progress)) / 2
        loss = train_step(model, draw_batch(cases, recipe.batch, sizes, Augmentation(), generator), optimiser)
        recent = loss if step == 0 else 0.98 * recent + 0.02 * loss
        step += 1
        if step % 50 == 0:
            LOG.info("step %d  %.1f %%  loss %.4f", step, 100 * progress, recent)
    return model.eval(), step


def save_chosen(path: Path, model: SegmentationNetwork, cases: Sequence[Annotated], provenance: dict[str, Any]) -> None:
    """Choose threshold and smallest area on the training images with the weights as stored; store both with them."""
    save(path, model, provenance, precision="half")
    stored = load(path)
    probabilities = [whole_pass(stored, case.image_CYX) for case in cases]
    threshold = best_threshold(probabilities, cases)
    spec = model.spec.model_copy(update={"threshold": threshold})
    spec = spec.model_copy(update={"min_area_um2": best_min_area(probabilities, cases, spec)})
    pixels, objects = score(probabilities, cases, threshold, least_px(spec))
    chosen = f"threshold {threshold}, smallest area {spec.min_area_um2} um2"
    LOG.info("%s: on the training images Dice %.4f, F1 %.4f", chosen, pixels.f1, objects.f1)
    save(path, with_spec(stored, spec), provenance, precision="half")


def main() -> None:
    """Train, choose threshold and smallest area, write one weights file."""
    parser = argparse.ArgumentParser(prog="python -m unet_core.train", description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--groups", type=Path, required=True, help="CSV with columns kind, image, fold")
    parser.add_argument("--kind", default="he")
    parser.add_argument("--hold-back", type=int, nargs="*", default=[0], help="folds not to train on")
    parser.add_argument("--out", type=Path, required=True, help=".safetensors file to write")
    parser.add_argument("--minutes", type=float, default=35.0)
    parser.add_argument("--steps", type=int, help="instead of --minutes: repeatable")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--start", type=Path, help=".safetensors file to go on from, spec included")
    parser.add_argument("--mpp", type=float, help="micrometres per pixel of the images")
    parser.add_argument("--name", default="nucleus", help="what the objects are")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)  # two threads would not give the same sums
    names = in_folds(arguments.groups, arguments.kind, but=arguments.hold_back)
    cases = [read_annotated(arguments.images, arguments.labels, name) for name in names]
    spec = spec_for(cases, preset("tiny", mpp=arguments.mpp, class_names=(arguments.name,)))
    start = load(arguments.start) if arguments.start else None
    recipe = Recipe(arguments.minutes, arguments.steps, arguments.seed, arguments.rate)
    LOG.info("%d images, %s, %s", len(cases), spec.model_dump_json(), recipe)
    model, steps = train(spec, cases, recipe, start)
    provenance = {**asdict(recipe), "steps": steps, "kind": arguments.kind, "held_back": arguments.hold_back}
    if arguments.start:
        provenance["start"] = {"sha256": sha256(arguments.start), **describe(arguments.start).provenance}
    save_chosen(arguments.out, model, cases, provenance)


if __name__ == "__main__":
    main()
