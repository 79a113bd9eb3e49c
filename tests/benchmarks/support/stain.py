"""Effect of stain normalisation on a network trained without it.

The built-in network is applied to the annotated images of fold 0, as they are and as stained and scanned by another
laboratory: haematoxylin and eosin (Ruifrok and Johnston 2001) of each image are stronger or weaker by up to a factor,
and shifted to slightly other colours. Targets are fitted on the other folds. Equalised input uses the mean and
deviation of the other folds after equalisation.

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
from unet_core.training.model_selection import score

SEED, KIND = 0, "he"
CHANGES = {"as they are": (0.0, 0.0), "recoloured": (0.35, 0.1), "recoloured strongly": (0.7, 0.2)}
"""Exponent range of a stain's strength, and range of the shift of each channel of its unit vector."""


def recolour(case: AnnotatedImage, strength: float, turn: float, generator: np.random.Generator) -> AnnotatedImage:
    """Return the image with changed stains, in bytes."""
    other = STAINS + turn * generator.uniform(-1, 1, (3, 3)) * [[1], [1], [0]]
    other = other / np.linalg.norm(other, axis=1, keepdims=True)
    factors = np.exp(strength * generator.uniform(-1, 1, 3) * [1, 1, 0])
    density = -np.log((np.asarray(case.image_CYX[:, :, :]) + 1) / 256)
    recoloured_density = np.tensordot((np.linalg.inv(STAINS) @ np.diag(factors) @ other).T, density, 1)
    return replace(case, image_CYX=np.rint(256 * np.exp(-recoloured_density) - 1).clip(0, 255).astype(np.uint8))


def specs(plain: UNetSpec, training: Sequence[AnnotatedImage]) -> dict[str, UNetSpec]:
    """Return the network's spec with each normalisation."""
    found = {"none": plain}
    for stain in ("reinhard", "macenko"):
        target = target_of((case.image_CYX for case in training), stain)  # type: ignore[arg-type]  # one of three literals
        found[stain] = changed(plain, stain_normalisation=stain, stain_target=target)
    equalised = changed(plain, equalise=True)
    mean, std = moments([case.census() for case in recoloured(training, equalised.normalisation)])
    return found | {"equalise": changed(equalised, mean=mean, std=std)}


def changed(spec: UNetSpec, **fields: Any) -> UNetSpec:
    """Return a validated copy of a spec with other fields."""
    return UNetSpec.model_validate(spec.model_dump() | fields)


def scores_of(network: SegmentationNetwork, cases: Sequence[AnnotatedImage]) -> tuple[float, float]:
    """Return pooled Dice, and F1 of objects at IoU 0.5."""
    spec = network.spec
    normalised = recoloured(cases, spec.normalisation)
    probabilities = (whole_pass(network, case.image_CYX) for case in normalised)
    ((pixels, objects),) = score(probabilities, cases, [spec])
    return pixels.f1, objects.f1


def main(shared: Path, model: str) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    network = load(resolve(model))
    training, cases = annotated(shared, KIND, range(1, 5)), annotated(shared, KIND, [0])
    by_normalisation = specs(network.spec, training)
    print(f"{model} on {len(cases)} images, targets of {len(training)}: Dice, F1 at IoU 0.5", flush=True)
    for name_of_change, (strength, turn) in CHANGES.items():
        generator = np.random.default_rng(SEED)
        images = [recolour(case, strength, turn, generator) for case in cases] if strength else cases
        for name, spec in by_normalisation.items():
            dice, f1 = scores_of(with_spec(network, spec), images)
            print(f"{name_of_change:20} {name:9} {dice:.3f} {f1:.3f}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "nuclei@1")
