"""Training tiles from annotated images.

Decision: a tile may lie anywhere, its surroundings are the mirrored image exactly as in prediction, and its target is
what a valid network answers for: the middle of the tile. Touching objects are parted after the deformation, so the gap
the network learns is as wide at every scale. Each tile has a generator of its own, seeded from the run's: drawn one by
one or by many threads, tiles are the same. Images are read by window only, so they may be larger than memory.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveInt
from torch import Generator, Tensor
from torch.nn import functional

from unet_core.class_map import IGNORED
from unet_core.data.augmentation import (
    Augmentation,
    Share,
    below,
    bilinear_at,
    jitter_colour,
    nearest_at,
    source_offsets,
    uniform,
)
from unet_core.data.dataset_statistics import ClassMap, ImageStatistics
from unet_core.data.weight_map import SeparationWeights, part_touching
from unet_core.mirror import ArrayLike, Square, read_mirrored
from unet_core.optical_density import SQUARE_UM, StainStatistics, mean_density

LARGEST_PIECE_PX = 1024
"""Side of the piece of a larger image whose colours are taken for the image's."""


class Sampling(BaseModel):
    """Which tiles are drawn, and how much each of their pixels counts.

    `output_px`: a tile is what the network needs to answer for so many pixels or a little more. `foreground`: the
    probability that a tile is drawn around a pixel of an object, each class as likely as the others; the rest lie
    anywhere. `separation` and `separation_sigma_px`: w0 and sigma of the paper's equation 2; a w0 of 0 is none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    batch: PositiveInt = 2
    output_px: PositiveInt = 228
    foreground: Share = 0.0
    separation: NonNegativeFloat = 10.0
    separation_sigma_px: typing.Annotated[float, Field(gt=0, le=50)] = 5.0


@dataclass(frozen=True, slots=True, eq=False)
class AnnotatedImage:
    """An image with every object outlined: `labels_YX` are ids, 0 background; `classes_YX` the class of each pixel.

    Without classes every object is of class 1; classes count only where labels do, but `IGNORED`, which counts
    everywhere: of such a pixel nobody knows the class. All three may be larger than memory.
    What is asked for with every tile is kept: the counts of pixels, and the weights of labels that are in memory.
    Raises ValueError where sizes differ.
    """

    name: str
    image_CYX: ArrayLike
    labels_YX: ArrayLike
    classes_YX: ArrayLike | None = None
    _weights: dict[tuple[float, float], ArrayLike] = field(default_factory=dict, init=False, repr=False)
    _census: list[ImageStatistics] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        arrays = (self.image_CYX, self.labels_YX, *(() if self.classes_YX is None else (self.classes_YX,)))
        if len({tuple(array.shape[-2:]) for array in arrays}) > 1:
            found = ", ".join(str(tuple(array.shape)) for array in arrays)
            raise ValueError(f"{self.name}: expected image, labels and classes of one size (y, x), found {found}")

    @property
    def class_map(self) -> ClassMap:
        """The class of each pixel (y, x), 0 background."""
        return ClassMap(self.labels_YX, self.classes_YX)

    def weights(self, w0: float, sigma_px: float) -> ArrayLike:
        """Return the separation weights (y, x): a map computed once if the labels are in memory, else where it is read.

        Either holds the same numbers.
        """
        computed = SeparationWeights(self.labels_YX, self.classes_YX, w0, sigma_px)
        if not w0 or not isinstance(self.labels_YX, np.ndarray) or isinstance(self.labels_YX, np.memmap):
            return computed
        if (w0, sigma_px) not in self._weights:
            self._weights[w0, sigma_px] = computed.whole()
        return self._weights[w0, sigma_px]

    def census(self) -> ImageStatistics:
        """Return what there is in it; the first time it reads all of it, by and by."""
        if not self._census:
            self._census.append(ImageStatistics.of(self.image_CYX, self.class_map))
        return self._census[0]


@dataclass(frozen=True, slots=True)
class SampleBatch:
    """Tiles for one step: image in 0..1, class index and weight of each pixel of the network's output.

    A pixel of weight 0 is not to be learnt from; all others weigh 1 or more.
    """

    image_NCHW: Tensor
    target_NHW: Tensor
    weight_NHW: Tensor


@dataclass(frozen=True, slots=True)
class Window:
    """The pixels a tile is made of, mirrored beyond the image, and where among them each of the tile's pixels lies."""

    box: Square
    at_2YX: Tensor

    @classmethod
    def around(cls, corner_yx: tuple[int, int], at_2YX: Tensor) -> Self:
        """Return the smallest window that holds all positions, which are given from a corner."""
        low, high = at_2YX.amin(dim=(1, 2)).floor(), at_2YX.amax(dim=(1, 2)).ceil() + 1
        (y0, x0), (y1, x1) = ([corner_yx[axis] + int(end[axis]) for axis in (0, 1)] for end in (low, high))
        return cls(Square(y0, x0, y1, x1), at_2YX - low[:, None, None])

    def image(self, image_CYX: ArrayLike, device: str) -> Tensor:
        """Return the tile of an image (c, y, x) of unsigned integers, 1 being the largest of their type."""
        pixels = read_mirrored(image_CYX, self.box)
        patch = torch.from_numpy(pixels.astype(np.float32)).to(device)
        return bilinear_at(patch, self.at_2YX.to(device)).div_(float(np.iinfo(pixels.dtype).max))

    def weight(self, weight_YX: ArrayLike) -> Tensor:
        """Return the tile of a weight map (y, x)."""
        return bilinear_at(torch.from_numpy(read_mirrored(weight_YX, self.box))[None], self.at_2YX)[0]

    def indices(self, array_YX: ArrayLike) -> NDArray[np.int32]:
        """Return the tile of a map of labels or classes (y, x)."""
        patch = torch.from_numpy(read_mirrored(array_YX, self.box).astype(np.int32))
        found: NDArray[np.int32] = nearest_at(patch[None], self.at_2YX)[0].numpy()
        return found


@dataclass(frozen=True, slots=True)
class Sampler:
    """Draws the tiles of a run on `device`; `sizes_px` = (input, output) of the network."""

    cases: Sequence[AnnotatedImage]
    sizes_px: tuple[int, int]
    sampling: Sampling
    augmentation: Augmentation
    device: str = "cpu"

    def draw(self, generator: Generator) -> SampleBatch:
        """Return the next batch."""
        return stack([self.tile(seed) for seed in self.seeds(generator)])

    def seeds(self, generator: Generator) -> list[int]:
        """Draw the seed of each tile of the next batch: all that a batch takes from the run's generator."""
        return [below(2**62, generator) for _ in range(self.sampling.batch)]

    def tile(self, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return one deformed tile: image (c, h, w) in 0..1, target (h', w') int64, weight (h', w')."""
        generator = torch.Generator().manual_seed(seed)
        case, (y, x) = draw_place(self.cases, self.sampling.foreground, generator)
        input_px, output_px = self.sizes_px
        corner_yx = (y - input_px // 2, x - input_px // 2)
        trim = (input_px - output_px) // 2
        at = source_offsets(input_px, self.augmentation, generator).add_((input_px - 1) / 2)
        image = Window.around(corner_yx, at).image(case.image_CYX, self.device)
        middle = Window.around(corner_yx, at[:, trim : trim + output_px, trim : trim + output_px])
        weight = middle.weight(case.weights(self.sampling.separation, self.sampling.separation_sigma_px))
        image = jitter_colour(image, self.augmentation, generator)
        target, known = _target(case, middle)
        return image, target.to(self.device), (weight * known).to(self.device)


def _target(case: AnnotatedImage, window: Window) -> tuple[Tensor, Tensor]:
    """Return the class of each pixel, touching objects parted, and whether it is known."""
    labels = window.indices(case.labels_YX)
    classes = np.ones_like(labels) if case.classes_YX is None else window.indices(case.classes_YX)
    known = classes != IGNORED
    kept = (part_touching(labels, classes) > 0) & known
    return torch.from_numpy(np.where(kept, classes, 0)).long(), torch.from_numpy(known)


def draw_place(
    cases: Sequence[AnnotatedImage], foreground: float, generator: Generator
) -> tuple[AnnotatedImage, tuple[int, int]]:
    """Return an image and the pixel of it (y, x) to draw around: with this probability of an object, or any."""
    if uniform(0, 1, generator) < foreground:
        classes = range(1, max(len(case.census().counts) for case in cases))
        holders = {index: [case for case in cases if case.census().total(index)] for index in classes}
        shown = [index for index, held in holders.items() if held]
        if shown:
            index = shown[below(len(shown), generator)]
            case = holders[index][below(len(holders[index]), generator)]
            return case, case.census().draw(index, generator)
    case = cases[below(len(cases), generator)]
    height, width = case.labels_YX.shape
    return case, (below(height, generator), below(width, generator))


def stack(tiles: Sequence[tuple[Tensor, Tensor, Tensor]]) -> SampleBatch:
    """Return tiles as one batch."""
    return SampleBatch(*(torch.stack(parts) for parts in zip(*tiles, strict=True)))


def class_frequencies(cases: Sequence[AnnotatedImage], classes: int) -> tuple[float, ...]:
    """Return the share of each class among all pixels, background first, in images annotated with `classes` at most.

    Raises ValueError for a class beyond.
    """
    counts = np.zeros(classes)
    for case in cases:
        found = case.census().counts.sum(axis=(1, 2))
        if len(found) > classes:
            raise ValueError(
                f"{case.name}: expected classes 0 to {classes - 1}, as many as the network has, found {len(found) - 1}"
            )
        counts[: len(found)] += found
    return tuple((counts / counts.sum()).tolist())


def stain_shown(
    cases: Sequence[AnnotatedImage], mpp: float, settings: Augmentation, generator: Generator, draws: int = 1500
) -> StainStatistics:
    """Return the colours a network is trained on: of so many random images, recoloured as for training, on about 8 um.

    Of large images a piece is taken. Images too pale to hold any stain are left out.
    """
    densities = []
    for _ in range(draws):
        pixels_CYX = _piece(cases[below(len(cases), generator)].image_CYX, generator)
        largest = float(np.iinfo(pixels_CYX.dtype).max)
        shown_CYX = jitter_colour(torch.from_numpy(pixels_CYX.astype(np.float32)) / largest, settings, generator)
        side = min(max(1, round(SQUARE_UM / mpp)), *shown_CYX.shape[1:])
        squares_CYX = functional.avg_pool2d(shown_CYX[None], side)[0]
        densities.append(mean_density((squares_CYX * 255).round().to(torch.uint8).numpy()))
    return StainStatistics.of(np.stack([density for density in densities if density is not None]))


def _piece(image_CYX: ArrayLike, generator: Generator) -> NDArray[Any]:
    """Return an image, or a random piece of one that is larger."""
    ranges = []
    for length in image_CYX.shape[1:]:
        side = min(length, LARGEST_PIECE_PX)
        start = below(length - side + 1, generator)
        ranges.append(slice(start, start + side))
    return np.asarray(image_CYX[(slice(None), *ranges)])
