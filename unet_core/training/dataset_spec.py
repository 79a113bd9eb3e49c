"""Parts of the spec that follow from the training images: normalisation and stain.

Normalisation is computed from exact integer counts of every pixel of every image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from unet_core.data.dataset_statistics import ImageStatistics
from unet_core.data.recoloured import recoloured
from unet_core.data.sampler import AnnotatedImage, stain_shown
from unet_core.errors import RecipeError
from unet_core.normalisation import target_of
from unet_core.spec import UNetSpec
from unet_core.training.config import TrainConfig

LEAST_STD = 1e-4
"""Lower bound, for images of one colour."""


def moments(counted: Sequence[ImageStatistics]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel over all pixels of images of one dtype, in 0..1."""
    full, pixels = int(np.iinfo(counted[0].dtype).max), sum(one.pixels for one in counted)
    sums = [sum(column) for column in zip(*(one.sums for one in counted), strict=True)]
    squares = [sum(column) for column in zip(*(one.squares for one in counted), strict=True)]
    spread = [pixels * square - total**2 for total, square in zip(sums, squares, strict=True)]  # exact integers
    return (
        tuple(total / (pixels * full) for total in sums),
        tuple(math.sqrt(one) / (pixels * full) for one in spread),
    )


def spec_for(cases: Sequence[AnnotatedImage], class_names: Sequence[str], recipe: TrainConfig) -> UNetSpec:
    """Return the configured network with mean and deviation of the images' channels in the network's colours.

    Raises:
        RecipeError: Stain normalisation is configured and no image is stained.
    """
    chosen = with_target(cases, class_names, recipe)
    mean, std = moments([case.census() for case in recoloured(cases, chosen.normalisation)])
    known = {"mean": [round(one, 4) for one in mean], "std": [round(max(one, LEAST_STD), 4) for one in std]}
    return UNetSpec.model_validate(chosen.model_dump() | known | {"maps": recipe.maps.names})


def with_target(cases: Sequence[AnnotatedImage], class_names: Sequence[str], recipe: TrainConfig) -> UNetSpec:
    """Return the configured network; the target of stain normalisation is that of these images."""
    channels = cases[0].image_CYX.shape[0]
    stain = recipe.network.spec(3, class_names).stain_normalisation
    if stain == "none":
        return recipe.network.spec(channels, class_names)
    target = target_of((case.image_CYX for case in cases), stain)
    if isinstance(target, str):
        raise RecipeError(
            f"network.stain_normalisation={stain}: expected stained tissue on a bright field in at least one image, "
            f"found in all of them: {target}. Remove the setting: such images do not need it"
        )
    return recipe.network.spec(channels, class_names, target)


def with_stain(spec: UNetSpec, cases: Sequence[AnnotatedImage], recipe: TrainConfig) -> UNetSpec:
    """Return the spec with the stain of the augmented images, if they are RGB and have a resolution."""
    if spec.in_channels != 3 or spec.mpp is None:
        return spec
    generator = torch.Generator().manual_seed(recipe.compute.seed)
    stain = stain_shown(cases, spec.mpp, recipe.augment, generator)
    known = {"stain_mean": stain.mean, "stain_covariance": stain.covariance}
    return UNetSpec.model_validate(spec.model_dump() | known)
