"""What training finds out about its images: normalisation before the first step, the stain of coloured ones at its end.

Decision: it is found on views (images, or windows of large ones), one at a time, so an image larger than memory costs
no more than a window, and small images are counted to the last pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unet_core.recipe import Recipe
from unet_core.samples import Annotated, stain_shown
from unet_core.spec import UNetSpec
from unet_core.validate import evenly, windows

IMAGES, WINDOWS = 1000, 16
"""At most so many images, and windows of each, are looked at."""


def spec_for(cases: Sequence[Annotated], class_names: Sequence[str], recipe: Recipe) -> UNetSpec:
    """Return the recipe's network with mean and deviation of the images' channels."""
    seen = (view for case in evenly(cases, IMAGES) for view in windows(case, WINDOWS))
    count, total, squares = np.sum([_moments(view) for view in seen], axis=0)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-8))  # never 0, not even of one colour
    chosen = recipe.network.spec(cases[0].image_CYX.shape[0], class_names)
    known = {"mean": mean.round(4).tolist(), "std": std.round(4).tolist()}
    return UNetSpec.model_validate(chosen.model_dump() | known)


def with_stain(spec: UNetSpec, cases: Sequence[Annotated], recipe: Recipe) -> UNetSpec:
    """Return the spec with the colours that the network was shown, where images are coloured and have a resolution."""
    if spec.in_channels != 3 or spec.mpp is None:
        return spec
    generator = torch.Generator().manual_seed(recipe.compute.seed)
    stain = stain_shown(cases, spec.mpp, recipe.augment, generator)
    known = {"stain_mean": stain.mean, "stain_covariance": stain.covariance}
    return UNetSpec.model_validate(spec.model_dump() | known)


def _moments(view: Annotated) -> NDArray[Any]:
    """Number of pixels, and sum and sum of squares of each channel, image range 1: (3, channels)."""
    image_CYX = np.asarray(view.image_CYX[:, :, :])
    pixels = image_CYX.reshape(len(image_CYX), -1) / np.iinfo(image_CYX.dtype).max
    return np.stack([np.full(len(pixels), pixels.shape[1], float), pixels.sum(axis=1), (pixels**2).sum(axis=1)])
