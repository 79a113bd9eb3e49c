"""What the pixels and the classes of one slide mean: facts that several stages share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """The image of a slide at the model's resolution.

    Attributes:
        mpp: Micrometres per pixel.
        level0_from_image: Pixels of the slide's level 0 along one pixel of the image, (y, x).
        channels: Names of the channels, in order.
    """

    mpp: float
    level0_from_image: tuple[float, float]
    channels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ClassInfo:
    """The foreground classes of a model, in the order of their numbers.

    Attributes:
        names: Name of each class.
        colours: Colour of each class, (red, green, blue).
    """

    names: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
