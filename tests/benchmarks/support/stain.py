"""What does the normalisation of a slide's colours buy a network that was trained without? On images, and recoloured.

The built-in network on the annotated images of fold 0, as they are and as another laboratory would have stained and
scanned them: each one's haematoxylin and eosin (Ruifrok and Johnston 2001) are stronger or weaker by up to a factor,
and turned to slightly other colours. Targets are fitted on the other folds. What is equalised also has another mean and
deviation: those of the other folds, equalised.

    python tests/benchmarks/support/stain.py SHARED/data [MODEL]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.unit.unet_core.dsb2018 import annotated
from unet_core.data.augmentation import STAINS
from unet_core.data.recoloured import recoloured
from unet_core.data.sampler import AnnotatedImage
from unet_core.model_file.checkpoint import load, with_spec
from unet_core.model_file.header import resolve
from unet_core.networks.unet import SegmentationNetwork
from unet_core.networks.whole_pass import whole_pass
from unet_core.normalisation import target_of
from unet_core.spec import UNetSpec
from unet_core.training.dataset_spec import moments
from unet_core.training.model_selection import least_px, score

SEED, KIND = 0, "he"
CHANGES = {"as they are": (0.0, 0.0), "recoloured": (0.35, 0.1), "recoloured strongly": (0.7, 0.2)}
"""A stain's strength times exp(+-this), and what is added to its unit vector, in each channel, +-this."""


def recolour(case: AnnotatedImage, strength: float, turn: float, generator: np.random.Generator) -> AnnotatedImage:
    """The image with other stains, in bytes."""
    other = STAINS + turn * generator.uniform(-1, 1, (3, 3)) * [[1], [1], [0]]
    other = other / np.linalg.norm(other, axis=1, keepdims=True)
    factors = np.exp(strength * generator.uniform(-1, 1, 3) * [1, 1, 0])
    density = -np.log((np.asarray(case.image_CYX[:, :, :]) + 1) / 256)
    made = np.tensordot((np.linalg.inv(STAINS) @ np.diag(factors) @ other).T, density, 1)
    return replace(case, image_CYX=np.rint(256 * np.exp(-made) - 1).clip(0, 255).astype(np.uint8))


def specs(plain: UNetSpec, training: Sequence[AnnotatedImage]) -> dict[str, UNetSpec]:
    """The network's spec with each normalisation put in."""
    found = {"none": plain}
    for stain in ("reinhard", "macenko"):
        target = target_of((case.image_CYX for case in training), stain)  # type: ignore[arg-type]  # one of three
        found[stain] = changed(plain, stain_normalisation=stain, stain_target=target)
    equalised = changed(plain, equalise=True)
    mean, std = moments([case.census() for case in recoloured(training, equalised.normalisation)])
    return found | {"equalise": changed(equalised, mean=mean, std=std)}


def changed(spec: UNetSpec, **fields: Any) -> UNetSpec:
    """A spec with other fields, checked."""
    return UNetSpec.model_validate(spec.model_dump() | fields)


def judged(network: SegmentationNetwork, cases: Sequence[AnnotatedImage]) -> tuple[float, float]:
    """Pooled Dice, and F1 of objects at IoU 0.5."""
    spec = network.spec
    shown = recoloured(cases, spec.normalisation)
    probabilities = (whole_pass(network, case.image_CYX) for case in shown)
    ((pixels, objects),) = score(probabilities, cases, [(spec.threshold or 0.5, least_px(spec))])
    return pixels.f1, objects.f1


def main(shared: Path, model: str) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    network = load(resolve(model))
    training, cases = annotated(shared, KIND, range(1, 5)), annotated(shared, KIND, [0])
    wanted = specs(network.spec, training)
    print(f"{model} on {len(cases)} images, targets of {len(training)}: Dice, F1 at IoU 0.5", flush=True)
    for words, (strength, turn) in CHANGES.items():
        generator = np.random.default_rng(SEED)
        given = [recolour(case, strength, turn, generator) for case in cases] if strength else cases
        for name, spec in wanted.items():
            dice, f1 = judged(with_spec(network, spec), given)
            print(f"{words:20} {name:9} {dice:.3f} {f1:.3f}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "nuclei@1")
