"""New training tiles out of few images: one random deformation of the plane, and one random stain and camera.

Decision: rotation, flip, scale and elastic deformation are composed into a single field of source coordinates and
sampled once, so image, labels and weights go through the same map and are blurred at most once. What is drawn comes
from the generator passed in, and from nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional

# Absorbance of haematoxylin, eosin and DAB in red, green, blue: Ruifrok and Johnston 2001, as in scikit-image.
STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How far to go. Scale is the size of an object in the tile over its size in the image, drawn log-uniformly."""

    scale: tuple[float, float] = (0.7, 2.4)
    elastic_px: float = 8.0  # standard deviation at the 3x3 grid's nodes (the paper: 10 px)
    stain: float = 0.35  # each stain's density times exp(+-this)
    counterstain: float = 0.5  # probability of a layer of tissue over everything, and of another one after it
    gain: float = 0.15  # each channel times 1 +- this
    gamma: float = 0.3  # exponent exp(+-this)
    blur: float = 0.35  # probability of a loss of sharpness
    sharpen: float = 0.35  # probability of edges overdrawn, as scanners do
    noise: float = 0.03  # largest standard deviation of added noise, image range 1


def uniform(low: float, high: float, generator: Generator) -> float:
    """Draw one number."""
    return low + (high - low) * float(torch.rand((), generator=generator))


def elastic_field(size_px: int, deviation_px: float, generator: Generator) -> Tensor:
    """Return displacements (2, size, size) in px: Gaussian at a 3x3 grid's nodes, bicubic between (section 3.1)."""
    nodes = torch.randn(1, 2, 3, 3, generator=generator) * deviation_px
    return functional.interpolate(nodes, size=(size_px, size_px), mode="bicubic", align_corners=True)[0]


def source_offsets(size_px: int, settings: Augmentation, generator: Generator) -> Tensor:
    """Return where each pixel of a tile comes from: (2, size, size) float32, (y, x) px from the tile's centre."""
    angle = uniform(0, 2 * math.pi, generator)
    low, high = settings.scale
    shrink = 1 / math.exp(uniform(math.log(low), math.log(high), generator))
    flip = 1.0 if uniform(0, 1, generator) < 0.5 else -1.0
    turn = torch.tensor(
        [[math.cos(angle), -flip * math.sin(angle)], [math.sin(angle), flip * math.cos(angle)]], dtype=torch.float32
    )
    axis = torch.arange(size_px, dtype=torch.float32) - (size_px - 1) / 2
    straight = torch.stack(torch.meshgrid(axis, axis, indexing="ij"))
    bent = straight + elastic_field(size_px, settings.elastic_px, generator)
    return shrink * torch.einsum("ij,jyx->iyx", turn, bent)


def sample_at(patch_CYX: Tensor, at_2YX: Tensor, mode: str) -> Tensor:
    """Return `patch` at fractional pixel positions (y, x) as (c, y', x') float32; `mode` is bilinear or nearest.

    Positions outside take the nearest border pixel.
    """
    height, width = patch_CYX.shape[-2:]
    y = at_2YX[0] * (2 / max(1, height - 1)) - 1
    x = at_2YX[1] * (2 / max(1, width - 1)) - 1
    grid = torch.stack([x, y], dim=-1)[None]
    patch_NCYX = patch_CYX[None].float()
    return functional.grid_sample(patch_NCYX, grid, mode=mode, padding_mode="border", align_corners=True)[0]


def jitter_stains(rgb_3YX: Tensor, strength: float, generator: Generator) -> Tensor:
    """Scale the density of each stain by exp(+-strength) and shift it a little; RGB in 0..1 in and out.

    Colour deconvolution after Ruifrok and Johnston 2001.
    """
    stains = torch.tensor(STAINS)
    stains = stains / stains.norm(dim=1, keepdim=True)
    density = -torch.log(rgb_3YX.clamp_min(1 / 256)).flatten(1).T @ torch.linalg.inv(stains)
    spread = 2 * torch.rand(2, 3, generator=generator) - 1
    density = density * torch.exp(strength * spread[0]) + 0.06 * spread[1]
    return torch.exp(-(density @ stains)).T.reshape(rgb_3YX.shape).clamp(0, 1)


def fibres(size: tuple[int, int], generator: Generator) -> Tensor:
    """Return a random texture (y, x) in 0..1: stretched noise, bent, with edges as of torn connective tissue."""
    noise = torch.zeros(size)
    for weight in (1.0, 0.6, 0.4):
        rows, columns = (round(math.exp(uniform(math.log(3), math.log(160), generator))) for _ in range(2))
        drawn = torch.randn(1, 1, rows, columns, generator=generator)
        noise += weight * functional.interpolate(drawn, size=size, mode="bilinear", align_corners=True)[0, 0]
    straight = torch.stack(torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")).float()
    bend = elastic_field(max(size), 40.0, generator)[:, : size[0], : size[1]]
    edge = uniform(1.0, 8.0, generator)
    return torch.sigmoid(edge * (sample_at(noise[None], straight + bend, "bilinear")[0] - uniform(-1, 1, generator)))


def lay_counterstain(rgb_3YX: Tensor, generator: Generator) -> Tensor:
    """Lay tissue without nuclei over the image: pink fibres as eosin shows them, or a purple haze; RGB in 0..1.

    Images of thin smears hold little of either. Eosin absorbs most in green and little in red, so that with it over
    everything a nucleus is what absorbs red; haze, as of cytoplasm, absorbs red too, but little.
    """
    if uniform(0, 1, generator) < 0.7:
        absorbed = torch.tensor([uniform(0.02, 0.3, generator), 1.0, uniform(0.3, 0.9, generator)])
        strongest = uniform(0.1, 2.0, generator)
    else:
        absorbed = torch.tensor([uniform(0.4, 0.75, generator), 1.0, uniform(0.2, 0.5, generator)])
        strongest = uniform(0.1, 0.5, generator)
    density = strongest * fibres((rgb_3YX.shape[1], rgb_3YX.shape[2]), generator)
    return rgb_3YX * torch.exp(-absorbed[:, None, None] * density)


def soften(image_CYX: Tensor, generator: Generator) -> Tensor:
    """Lose sharpness as an enlarged image does: shrink by up to 2.2 and enlarge again."""
    height, width = image_CYX.shape[-2:]
    ratio = uniform(1.1, 2.2, generator)
    small = (max(1, round(height / ratio)), max(1, round(width / ratio)))
    shrunk = functional.interpolate(image_CYX[None], size=small, mode="bilinear", antialias=True)
    return functional.interpolate(shrunk, size=(height, width), mode="bilinear")[0]


def overdraw(image_CYX: Tensor, generator: Generator) -> Tensor:
    """Overdraw edges as a scanner's sharpening does (unsharp masking): add what a blur of 0.7 to 2 px takes away."""
    sigma, amount = uniform(0.7, 2.0, generator), uniform(0.5, 2.5, generator)
    reach = math.ceil(3 * sigma)
    line = torch.exp(-(torch.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    line = (line / line.sum())[None, None]
    padded = functional.pad(image_CYX[:, None], (reach,) * 4, mode="reflect")
    blurred = functional.conv2d(functional.conv2d(padded, line[:, :, None]), line[..., None])[:, 0]
    return (image_CYX + amount * (image_CYX - blurred)).clamp(0, 1)


def jitter_colour(image_CYX: Tensor, settings: Augmentation, generator: Generator) -> Tensor:
    """Return the image (0..1, any number of channels; three are taken for a stained section) as another lab's."""
    channels = image_CYX.shape[0]
    if channels == 3:
        image_CYX = jitter_stains(image_CYX, settings.stain, generator)
        while uniform(0, 1, generator) < settings.counterstain:
            image_CYX = lay_counterstain(image_CYX, generator)
    gain = 1 + settings.gain * (2 * torch.rand(channels, 1, 1, generator=generator) - 1)
    gamma = math.exp(uniform(-settings.gamma, settings.gamma, generator))
    image_CYX = (image_CYX * gain).clamp(0, 1) ** gamma
    if uniform(0, 1, generator) < settings.blur:
        image_CYX = soften(image_CYX, generator)
    if uniform(0, 1, generator) < settings.sharpen:
        image_CYX = overdraw(image_CYX, generator)
    noise = uniform(0, settings.noise, generator) * torch.randn(image_CYX.shape, generator=generator)
    return (image_CYX + noise).clamp(0, 1)
