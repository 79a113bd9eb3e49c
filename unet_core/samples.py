"""Training tiles from annotated images.

Decision: a tile may lie anywhere, its surroundings are the mirrored image exactly as in prediction, and its target is
what a valid network answers for: the middle of the tile. Touching objects are parted after the deformation, so the gap
the network learns is as wide at every scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skimage import io
from torch import Generator, Tensor
from torch.nn import functional

from unet_core.augment import Augmentation, jitter_colour, sample_at, source_offsets
from unet_core.loss import part_touching, separation_weights
from unet_core.mirror import read_mirrored
from unet_core.stain import SQUARE_UM, Stain, mean_density


@dataclass(frozen=True, slots=True)
class Square:
    """A half-open rectangle of an image."""

    y0: int
    x0: int
    y1: int
    x1: int


@dataclass(frozen=True, slots=True)
class Annotated:
    """An image with every object outlined, and the loss's weight of each pixel."""

    name: str
    image_CYX: NDArray[np.uint8]
    labels_YX: NDArray[np.int32]
    weight_YX: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Batch:
    """Tiles for one step: image in 0..1, class index and weight of each pixel of the network's output."""

    image_NCHW: Tensor
    target_NHW: Tensor
    weight_NHW: Tensor


def read_annotated(images: Path, labels: Path, name: str) -> Annotated:
    """Read an 8-bit image and its label image of the same file name. Raises ValueError where their sizes differ."""
    image_YXC = np.atleast_3d(io.imread(images / name))
    labels_YX = io.imread(labels / name).astype(np.int32)
    if image_YXC.dtype != np.uint8 or image_YXC.shape[:2] != labels_YX.shape:
        raise ValueError(
            f"{name}: expected an 8-bit image and labels of one size, found {image_YXC.dtype} {image_YXC.shape[:2]} "
            f"and labels {labels_YX.shape}"
        )
    image_CYX = np.ascontiguousarray(image_YXC.transpose(2, 0, 1))
    return Annotated(name, image_CYX, labels_YX, separation_weights(part_touching(labels_YX).astype(np.int32)))


def draw_tile(
    case: Annotated, sizes_px: tuple[int, int], settings: Augmentation, generator: Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return one deformed tile: image (c, h, w), target (h', w') int64, weight (h', w').

    `sizes_px` = (input, output) of the network.
    """
    input_px, output_px = sizes_px
    height, width = case.labels_YX.shape
    centre = torch.rand(2, generator=generator) * torch.tensor([float(height), float(width)])
    at = source_offsets(input_px, settings, generator) + centre[:, None, None]
    low, high = (at.amin(dim=(1, 2)).floor() - 1).int(), (at.amax(dim=(1, 2)).ceil() + 2).int()
    box = Square(int(low[0]), int(low[1]), int(high[0]), int(high[1]))
    at -= low[:, None, None]
    image = sample_at(_patch(case.image_CYX, box), at, "bilinear") / 255
    trim = (input_px - output_px) // 2
    inside = at[:, trim : trim + output_px, trim : trim + output_px]
    labels = sample_at(_patch(case.labels_YX[None], box), inside, "nearest")[0].numpy().astype(np.int32)
    weight = sample_at(_patch(case.weight_YX[None], box), inside, "bilinear")[0]
    target = torch.from_numpy(part_touching(labels) > 0).long()
    return jitter_colour(image, settings, generator), target, weight


def draw_batch(
    cases: Sequence[Annotated], count: int, sizes_px: tuple[int, int], settings: Augmentation, generator: Generator
) -> Batch:
    """Return `count` tiles of random images."""
    chosen = torch.randint(len(cases), (count,), generator=generator).tolist()
    tiles = [draw_tile(cases[i], sizes_px, settings, generator) for i in chosen]
    return Batch(*(torch.stack(parts) for parts in zip(*tiles, strict=True)))


def stain_shown(
    cases: Sequence[Annotated], mpp: float, settings: Augmentation, generator: Generator, draws: int = 1500
) -> Stain:
    """Return the colours a network is trained on: of so many random images, recoloured as for training, on about 8 um.

    Images too pale to hold any stain are left out.
    """
    densities = []
    for _ in range(draws):
        case = cases[int(torch.randint(len(cases), (), generator=generator))]
        shown_CYX = jitter_colour(torch.from_numpy(case.image_CYX.copy()).float() / 255, settings, generator)
        side = min(max(1, round(SQUARE_UM / mpp)), *shown_CYX.shape[1:])
        squares_CYX = functional.avg_pool2d(shown_CYX[None], side)[0]
        densities.append(mean_density((squares_CYX * 255).round().to(torch.uint8).numpy()))
    return Stain.of(np.stack([density for density in densities if density is not None]))


def _patch(pixels: NDArray[Any], box: Square) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(read_mirrored(pixels, box)))
