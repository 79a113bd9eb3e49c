"""Images and annotated images as a colour map shows them."""

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
    """An image (c, y, x), read with all its channels, as a map shows it."""

    image: ArrayLike
    colours: ColourMap

    @property
    def shape(self) -> tuple[int, ...]:
        """As the image's."""
        return self.image.shape

    def __getitem__(self, key: tuple[slice, ...], /) -> NDArray[Any]:
        pixels_CYX = torch.from_numpy(np.array(self.image[key]))
        return recolour(pixels_CYX, self.colours).numpy()


def recoloured(cases: Sequence[AnnotatedImage], wanted: Normalisation | None) -> Sequence[AnnotatedImage]:
    """The cases as a network that asks for this is shown them; each image is a slide of its own."""
    if wanted is None:
        return cases
    return [replace(case, image_CYX=Recoloured(case.image_CYX, fit(sample(case.image_CYX), wanted))) for case in cases]
