"""Images and annotated images in the colours of a colour map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unet_core.colour_transform import recolour
from unet_core.data.sampler import AnnotatedImage
from unet_core.mirror import ArrayLike
from unet_core.normalisation import ColourMap, Normalisation, fit, sample


@dataclass(frozen=True, slots=True)
class Recoloured:
    """An image (c, y, x) in the colours of a map; a read includes all channels."""

    image: ArrayLike
    colours: ColourMap

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the image."""
        return self.image.shape

    def __getitem__(self, key: tuple[slice, ...], /) -> NDArray[Any]:
        pixels_CYX = torch.from_numpy(np.array(self.image[key]))
        return recolour(pixels_CYX, self.colours).numpy()


def recoloured(cases: Sequence[AnnotatedImage], wanted: Normalisation | None) -> Sequence[AnnotatedImage]:
    """Return annotated images in a network's colours; a map is fitted to each image.

    Args:
        cases: Annotated images.
        wanted: Normalisation of the network; None: images stay unchanged.
    """
    if wanted is None:
        return cases
    return [replace(case, image_CYX=Recoloured(case.image_CYX, fit(sample(case.image_CYX), wanted))) for case in cases]
