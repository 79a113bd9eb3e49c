"""Random training tiles from annotated images.

A tile may be anywhere in an image; its surroundings are the mirrored image, as in prediction, and its target is the
output region of a valid network, the middle of the tile. Touching objects are separated after the deformation, so the
gap that the network learns has the same width at every scale. Each tile has its own generator, seeded from the run's,
so tiles do not depend on the number of threads. Images are read by window only and may be larger than memory.
"""

from __future__ import annotations

import bisect
import itertools
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
from unet_core.data.dataset_statistics import WINDOW_PX, ClassMap, ImageStatistics
from unet_core.data.map_targets import MARGIN_PX, NO_MAPS, DotField, MapSettings, map_targets
from unet_core.data.weight_map import SeparationWeights, part_touching
from unet_core.mirror import ArrayLike, Square, read_mirrored
from unet_core.optical_density import SQUARE_UM, StainStatistics, mean_density

LARGEST_PIECE_PX = 1024
"""Side of the crop that represents the colours of a larger image."""


class Sampling(BaseModel):
    """Settings for drawing tiles and weighting their pixels.

    Attributes:
        batch: Tiles per step.
        output_px: Least side of the network's output for a tile; the tile is the legal input for it.
        foreground: Probability that a tile is centred on a pixel of an object, each class equally likely; other tiles
            are anywhere.
        separation: w0 of the paper's equation 2; 0 disables separation weights.
        separation_sigma_px: sigma of the same.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    batch: PositiveInt = 2
    output_px: PositiveInt = 228
    foreground: Share = 0.0
    separation: NonNegativeFloat = 10.0
    separation_sigma_px: typing.Annotated[float, Field(gt=0, le=50)] = 5.0


@dataclass(frozen=True, slots=True, eq=False)
class AnnotatedImage:
    """An image with annotated objects. Arrays may be larger than memory; pixel counts and weights are cached.

    Attributes:
        name: Name of the image.
        image_CYX: Unsigned integers (c, y, x).
        labels_YX: Object ids (y, x), 0 is background.
        classes_YX: Class of each pixel (y, x); None: every object has class 1. Classes outside objects do not count,
            except `IGNORED` (unknown class), which counts everywhere.
        points_N3: Dots in or instead of outlines: y, x as array indices (the centre of the first pixel is 0, 0) and
            class of each, float32; None: objects are outlined. A dot is the centre of an object whose outline is
            unknown.
        weight: How often the image is drawn in training, relative to others; above 0.

    Raises:
        ValueError: The sizes differ.
    """

    name: str
    image_CYX: ArrayLike
    labels_YX: ArrayLike
    classes_YX: ArrayLike | None = None
    points_N3: NDArray[np.float32] | None = None
    weight: float = 1.0
    _weights: dict[tuple[float, float], ArrayLike] = field(default_factory=dict, init=False, repr=False)
    _census: list[ImageStatistics] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        arrays = (self.image_CYX, self.labels_YX, *(() if self.classes_YX is None else (self.classes_YX,)))
        if len({tuple(array.shape[-2:]) for array in arrays}) > 1:
            found = ", ".join(str(tuple(array.shape)) for array in arrays)
            raise ValueError(f"{self.name}: expected image, labels and classes of one size (y, x), found {found}")

    @property
    def class_map(self) -> ClassMap:
        """Class of each pixel (y, x), 0 is background."""
        return ClassMap(self.labels_YX, self.classes_YX)

    def weights(self, w0: float, sigma_px: float) -> ArrayLike:
        """Return the separation weights (y, x), with the same values however they are computed.

        If the labels are in memory, the map is computed once; else the parts that are read are.
        """
        computed = SeparationWeights(self.labels_YX, self.classes_YX, w0, sigma_px)
        if not w0 or not isinstance(self.labels_YX, np.ndarray) or isinstance(self.labels_YX, np.memmap):
            return computed
        if (w0, sigma_px) not in self._weights:
            self._weights[w0, sigma_px] = computed.whole()
        return self._weights[w0, sigma_px]

    def points_in(self, box: Square) -> NDArray[np.float32] | None:
        """Return the dots in a box, relative to its first pixel; None: objects are outlined."""
        if self.points_N3 is None:
            return None
        corner, last = np.array([box.y0, box.x0]), np.array([box.y1 - box.y0, box.x1 - box.x0]) - 1
        index_N2 = self.points_N3[:, :2] - corner
        inside = ((index_N2 >= -0.5) & (index_N2 < last + 0.5)).all(axis=1)
        at_N2 = np.clip(index_N2[inside], 0, last)
        return np.column_stack((at_N2, self.points_N3[inside, 2])).astype(np.float32)

    def census(self) -> ImageStatistics:
        """Return counts of pixels and objects; the first call reads the whole image, window by window."""
        if not self._census:
            self._census.append(ImageStatistics.of(self.image_CYX, self.class_map))
        return self._census[0]


@dataclass(frozen=True, slots=True)
class SampleBatch:
    """Tiles of one step: image in 0..1, class index and weight of each output pixel.

    A pixel with weight 0 is not trained on; all others weigh 1 or more. For a network with maps, `maps_NMHW` are their
    targets and `known_NMHW` is 1 where a target is known.
    """

    image_NCHW: Tensor
    target_NHW: Tensor
    weight_NHW: Tensor
    maps_NMHW: Tensor | None = None
    known_NMHW: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """Source pixels of a tile, mirrored beyond the image, and the position among them of each tile pixel."""

    box: Square
    at_2YX: Tensor

    @classmethod
    def around(cls, corner_yx: tuple[int, int], at_2YX: Tensor) -> Self:
        """Return the smallest window with all positions, which are relative to a corner."""
        low, high = at_2YX.amin(dim=(1, 2)).floor(), at_2YX.amax(dim=(1, 2)).ceil() + 1
        (y0, x0), (y1, x1) = ([corner_yx[axis] + int(end[axis]) for axis in (0, 1)] for end in (low, high))
        return cls(Square(y0, x0, y1, x1), at_2YX - low[:, None, None])

    def image(self, image_CYX: ArrayLike, device: str) -> Tensor:
        """Return the tile of an image (c, y, x) of unsigned integers, scaled to 0..1 by their type."""
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
    """Draws the tiles of a run on `device`; `sizes_px` are input and output side of the network."""

    cases: Sequence[AnnotatedImage]
    sizes_px: tuple[int, int]
    sampling: Sampling
    augmentation: Augmentation
    device: str = "cpu"
    maps: MapSettings = NO_MAPS

    def draw(self, generator: Generator) -> SampleBatch:
        """Return the next batch."""
        return stack([self.tile(seed) for seed in self.seeds(generator)])

    def seeds(self, generator: Generator) -> list[int]:
        """Draw the seed of each tile of the next batch; nothing else is drawn from the run's generator."""
        return [below(2**62, generator) for _ in range(self.sampling.batch)]

    def tile(self, seed: int) -> tuple[Tensor, ...]:
        """Return one deformed tile: image (c, h, w) in 0..1, target (h', w') int64, weight (h', w').

        With maps, their targets (m, h', w') and whether these are known follow.
        """
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
        margin = min(trim, MARGIN_PX) if self.maps.names else 0
        low, high = trim - margin, trim + output_px + margin
        annotation = _Annotation.read(case, Window.around(corner_yx, at[:, low:high, low:high]))
        inner = (..., slice(margin, margin + output_px), slice(margin, margin + output_px))
        target, known = annotation.target(self.maps)
        parts = [image, target[inner].to(self.device), (weight * known[inner]).to(self.device)]
        if self.maps.names:
            wanted = map_targets(self.maps, annotation.labels_YX, annotation.known, annotation.dots)
            parts += [part[inner].to(self.device) for part in wanted]
        return tuple(parts)


@dataclass(frozen=True, slots=True)
class _Annotation:
    """Objects, classes and dots of a tile, (y, x) each."""

    labels_YX: NDArray[np.int32]
    classes_YX: NDArray[np.int32]
    dots: DotField | None

    @classmethod
    def read(cls, case: AnnotatedImage, window: Window) -> Self:
        labels = window.indices(case.labels_YX)
        classes = np.ones_like(labels) if case.classes_YX is None else window.indices(case.classes_YX)
        if case.points_N3 is None:
            return cls(labels, classes, None)
        corner = window.box.y0, window.box.x0
        return cls(labels, classes, DotField.of(case.points_N3, window.at_2YX, corner, case.labels_YX.shape))

    @property
    def known(self) -> NDArray[np.bool_]:
        """Whether the class of a pixel (y, x) is not `IGNORED`."""
        return np.asarray(self.classes_YX != IGNORED)

    def target(self, maps: MapSettings) -> tuple[Tensor, Tensor]:
        """Return the class of each pixel, and whether it is known.

        Touching objects are separated, except where a map tells them apart.
        """
        labels, known = self.labels_YX, self.known
        parted = labels if maps.names else part_touching(labels, self.classes_YX)
        target = np.where((parted > 0) & known, self.classes_YX, 0)
        if self.dots is not None:
            near = (self.dots.distance_YX <= maps.dot_px) & (labels == 0)
            target = np.where(near & known, self.dots.classes_YX, target)
            known = known & ((labels > 0) | near | (self.dots.distance_YX >= maps.far_px))
        return torch.from_numpy(target).long(), torch.from_numpy(known)


def draw_place(
    cases: Sequence[AnnotatedImage], foreground: float, generator: Generator
) -> tuple[AnnotatedImage, tuple[int, int]]:
    """Draw an image and the centre (y, x) of a tile: with probability `foreground` on an object or dot, else anywhere.

    Classes are then drawn equally often, and among the images with a class each as often as its weight states.
    """
    if uniform(0, 1, generator) < foreground:
        held = [_classes_of(case) for case in cases]
        if shown := sorted(set().union(*held)):
            index = shown[below(len(shown), generator)]
            holders = [case for case, classes in zip(cases, held, strict=True) if index in classes]
            case = _draw_case(holders, generator)
            return case, _draw_object(case, index, generator)
    case = _draw_case(cases, generator)
    height, width = case.labels_YX.shape
    return case, (below(height, generator), below(width, generator))


def _classes_of(case: AnnotatedImage) -> set[int]:
    """Return the classes of which an image has a pixel or a dot."""
    outlined = np.flatnonzero(case.census().counts[1:].any(axis=(1, 2))) + 1
    return {*outlined.tolist(), *({} if case.points_N3 is None else case.points_N3[:, 2].astype(int).tolist())}


def _draw_object(case: AnnotatedImage, index: int, generator: Generator) -> tuple[int, int]:
    """Draw a pixel (y, x) of a class: of its outlines or, in half of the draws where it has dots too, a dot."""
    dots_N3 = np.empty((0, 3)) if case.points_N3 is None else case.points_N3[case.points_N3[:, 2] == index]
    if not len(dots_N3) or (case.census().total(index) and below(2, generator)):
        return case.census().draw(index, generator)
    y, x = np.rint(dots_N3[below(len(dots_N3), generator), :2])
    return int(y), int(x)


def _draw_case(cases: Sequence[AnnotatedImage], generator: Generator) -> AnnotatedImage:
    """Draw an image, each as often as its weight states."""
    if len({case.weight for case in cases}) == 1:
        return cases[below(len(cases), generator)]
    totals = list(itertools.accumulate(case.weight for case in cases))
    return cases[min(bisect.bisect_right(totals, uniform(0, totals[-1], generator)), len(cases) - 1)]


def stack(tiles: Sequence[tuple[Tensor, ...]]) -> SampleBatch:
    """Return tiles as one batch."""
    return SampleBatch(*(torch.stack(parts) for parts in zip(*tiles, strict=True)))


def class_frequencies(
    cases: Sequence[AnnotatedImage], classes: int, dots: MapSettings | None = None
) -> tuple[float, ...]:
    """Return the share of each class among all pixels, background first.

    Args:
        cases: Annotated images.
        classes: Number of classes, with background.
        dots: How dots are learnt: a dot counts as its disc, and pixels that are not trained on do not count. None: dots
            do not count.

    Raises:
        ValueError: An image holds a class beyond `classes`.
    """
    counts = np.zeros(classes)
    for case in cases:
        found = case.census().counts.sum(axis=(1, 2))
        if dots is not None and case.points_N3 is not None:
            found = _learnt_pixels(case, dots)
        if len(found) > classes:
            raise ValueError(
                f"{case.name}: expected classes 0 to {classes - 1}, as many as the network has, found {len(found) - 1}"
            )
        counts[: len(found)] += found
    return tuple((counts / counts.sum()).tolist())


def _learnt_pixels(case: AnnotatedImage, dots: MapSettings) -> NDArray[np.int64]:
    """Return the pixels of each class that an image with dots trains on, counted window by window."""
    counts = np.zeros(IGNORED, np.int64)
    height, width = case.labels_YX.shape
    for y, x in itertools.product(range(0, height, WINDOW_PX), range(0, width, WINDOW_PX)):
        box = Square(y, x, min(y + WINDOW_PX, height), min(x + WINDOW_PX, width))
        at_2YX = torch.from_numpy(np.indices((box.y1 - y, box.x1 - x), np.float32))
        target, known = _Annotation.read(case, Window(box, at_2YX)).target(dots)
        counts += np.bincount(target[known].numpy(), minlength=IGNORED)
    return counts[: int(np.flatnonzero(counts).max(initial=0)) + 1]


def stain_shown(
    cases: Sequence[AnnotatedImage], mpp: float, settings: Augmentation, generator: Generator, draws: int = 400
) -> StainStatistics:
    """Return the stain of the training images as augmented: of `draws` random images, on squares of about 8 um.

    Large images are cropped at random. Images too pale to contain stain are omitted.
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
    """Return an image, or a random crop of a larger one."""
    ranges = []
    for length in image_CYX.shape[1:]:
        side = min(length, LARGEST_PIECE_PX)
        start = below(length - side + 1, generator)
        ranges.append(slice(start, start + side))
    return np.asarray(image_CYX[(slice(None), *ranges)])
