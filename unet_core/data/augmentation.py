"""Random augmentation of training tiles: geometry, stain and camera.

Rotation, flip, scale and elastic deformation are composed into one field of source coordinates and sampled once, so
image, labels and weights get the same transform and are interpolated at most once. A shift needs no setting: a tile may
be anywhere in its image. All random numbers come from the generator that is passed in. Colours are computed on the
device of the image.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Self

import numpy as np
import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from skimage.color import rgb_from_hed
from torch import Generator, Tensor
from torch.nn import functional

Share = Annotated[float, Field(ge=0, le=1)]

STAINS = rgb_from_hed / np.linalg.norm(rgb_from_hed, axis=1, keepdims=True)
"""Absorbance of haematoxylin, eosin and DAB in red, green, blue: Ruifrok and Johnston 2001, of length 1."""


class Augmentation(BaseModel):
    """Strength of each augmentation; 0, or a scale of 1 to 1, disables it.

    Scale is the size of an object in the tile divided by its size in the image, drawn log-uniformly. Images with three
    channels are treated as stained sections; for others set `stain`, `stain_shift`, `counterstain` and `dab` to 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = 180.0  # largest angle, in both directions
    flip: Share = 0.5  # probability
    scale: Annotated[tuple[PositiveFloat, PositiveFloat], Field(strict=False)] = (0.7, 1.6)
    elastic_px: NonNegativeFloat = 8.0  # standard deviation at the 3x3 grid's nodes (the paper: 10 px)
    stain: NonNegativeFloat = 0.35  # each stain's density times exp(+-this)
    stain_shift: NonNegativeFloat = 0.06  # and +- this
    counterstain: Annotated[float, Field(ge=0, lt=1)] = 0.0  # probability of a layer of tissue, and of each further one
    dab: Share = 0.0  # probability that the section is shown as one stained with haematoxylin and DAB
    gain: Share = 0.15  # each channel times 1 +- this
    contrast: NonNegativeFloat = 0.0  # each channel's distance from its mean times exp(+-this)
    brightness: Share = 0.0  # all channels +- this, image range 1
    gamma: NonNegativeFloat = 0.3  # exponent exp(+-this)
    blur: Share = 0.35  # probability of a blur
    sharpen: Share = 0.35  # probability of sharpening, as scanners apply it
    noise: NonNegativeFloat = 0.03  # largest standard deviation of added noise, image range 1

    @model_validator(mode="after")
    def _scale_goes_up(self) -> Self:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale: expected the smallest first, found {list(self.scale)}")
        return self

    @model_serializer(mode="wrap")
    def _without_dab_as_before(self, fields_of: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = fields_of(self)
        if not self.dab:
            fields.pop("dab", None)
        return fields

    @classmethod
    def off(cls) -> Self:
        """Return settings without augmentation: a tile equals a crop of the image to the bit."""
        return cls.model_validate({name: 0.0 for name in cls.model_fields} | {"scale": (1.0, 1.0)})


def uniform(low: float, high: float, generator: Generator) -> float:
    """Draw one number from low to high."""
    return low + (high - low) * float(torch.rand((), generator=generator, device=generator.device))


def below(count: int, generator: Generator) -> int:
    """Draw one of the integers 0 to count - 1."""
    return int(torch.randint(count, (), generator=generator, device=generator.device))


def _normal(shape: tuple[int, ...], generator: Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)


def _either_way(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Draw numbers from -1 to 1."""
    return 2 * torch.rand(shape, generator=generator, device=generator.device) - 1


# ---- geometry ------------------------------------------------------------------------------------------------------


def elastic_field(size_px: int, deviation_px: float, generator: Generator) -> Tensor:
    """Return displacements (2, size, size) in px: Gaussian at the nodes of a 3x3 grid, bicubic between (section 3.1).

    The bicubic surface is computed as a product of both axes, which takes a tenth of the time.
    """
    nodes = _normal((2, 3, 3), generator).cpu() * deviation_px
    one_each = torch.eye(3)[None, :, :, None]  # (n, node, y, x)
    spread = functional.interpolate(one_each, size=(size_px, 1), mode="bicubic", align_corners=True)[0, :, :, 0]
    return spread.T @ nodes @ spread


def source_offsets(size_px: int, settings: Augmentation, generator: Generator) -> Tensor:
    """Return the source of each pixel of a tile: (2, size, size) float32, (y, x) px from the tile's centre."""
    widest = math.radians(settings.rotation_degrees)
    angle = uniform(-widest, widest, generator)
    low, high = settings.scale
    shrink = 1 / math.exp(uniform(math.log(low), math.log(high), generator))
    flip = -1.0 if uniform(0, 1, generator) < settings.flip else 1.0
    turn = torch.tensor(
        [[math.cos(angle), -flip * math.sin(angle)], [math.sin(angle), flip * math.cos(angle)]], dtype=torch.float32
    )
    axis = torch.arange(size_px, dtype=torch.float32) - (size_px - 1) / 2
    straight = torch.stack(torch.meshgrid(axis, axis, indexing="ij"))
    bent = straight.add_(elastic_field(size_px, settings.elastic_px, generator)) if settings.elastic_px else straight
    return torch.einsum("ij,jyx->iyx", turn, bent).mul_(shrink)


def nearest_at(patch_CYX: Tensor, at_2YX: Tensor) -> Tensor:
    """Return the pixel of `patch` nearest to each position (y, x), as (c, y', x'), in its own type.

    Positions outside take the nearest border pixel.
    """
    y, x = (at_2YX[axis].round().long().clamp(0, patch_CYX.shape[1 + axis] - 1) for axis in (0, 1))
    return patch_CYX[:, y, x]


def bilinear_at(patch_CYX: Tensor, at_2YX: Tensor) -> Tensor:
    """Return `patch` at fractional positions (y, x) as (c, y', x') float32; integer ones give its pixels to the bit.

    Positions outside take the nearest border pixel.
    """
    if torch.equal(at_2YX, at_2YX.round()):
        return nearest_at(patch_CYX, at_2YX).float()
    height, width = patch_CYX.shape[-2:]
    grid_YX2 = at_2YX.new_empty((*at_2YX.shape[1:], 2))
    for place, (at, length) in enumerate(((at_2YX[1], width), (at_2YX[0], height))):
        torch.mul(at, 2 / max(1, length - 1), out=grid_YX2[..., place]).sub_(1)
    return functional.grid_sample(patch_CYX[None].float(), grid_YX2[None], padding_mode="border", align_corners=True)[0]


# ---- stain ---------------------------------------------------------------------------------------------------------


def jitter_stains(rgb_3YX: Tensor, settings: Augmentation, generator: Generator) -> Tensor:
    """Scale the density of each stain by exp(+-stain) and shift it by +-stain_shift; RGB in 0..1 in and out.

    Colour deconvolution after Ruifrok and Johnston 2001. Optical densities add, so both are one linear map of them.
    """
    spread = _either_way((2, 3), generator).cpu().double().numpy()
    change = np.linalg.inv(STAINS) @ np.diag(np.exp(settings.stain * spread[0])) @ STAINS
    more = settings.stain_shift * spread[1] @ STAINS
    scale, shift = (torch.from_numpy(part).float().to(rgb_3YX.device) for part in (change.T, more))
    density = rgb_3YX.clamp_min(1 / 256).log_().neg_().flatten(1)
    return (scale @ density).add_(shift[:, None]).neg_().exp_().reshape(rgb_3YX.shape).clamp_(0, 1)


def fibres(size: tuple[int, int], generator: Generator, device: torch.device | str = "cpu") -> Tensor:
    """Return a random texture (y, x) in 0..1: stretched and bent noise with edges like torn connective tissue."""
    noise = torch.zeros(size, device=device)
    for weight in (1.0, 0.6, 0.4):
        rows, columns = (round(math.exp(uniform(math.log(3), math.log(160), generator))) for _ in range(2))
        drawn = _normal((1, 1, rows, columns), generator).to(device)
        noise += weight * functional.interpolate(drawn, size=size, mode="bilinear", align_corners=True)[0, 0]
    axes = (torch.arange(length, device=device) for length in size)
    straight = torch.stack(torch.meshgrid(*axes, indexing="ij")).float()
    bend = elastic_field(max(size), 40.0, generator)[:, : size[0], : size[1]].to(device)
    edge = uniform(1.0, 8.0, generator)
    return torch.sigmoid(edge * (bilinear_at(noise[None], straight + bend)[0] - uniform(-1, 1, generator)))


def lay_counterstain(rgb_3YX: Tensor, generator: Generator) -> Tensor:
    """Add tissue without nuclei to the image: pink fibres as of eosin, or a purple haze; RGB in 0..1.

    Images of thin smears contain little of either. Eosin absorbs most in green and little in red, so under it nuclei
    remain what absorbs red; haze, as of cytoplasm, absorbs red too, but little.
    """
    if uniform(0, 1, generator) < 0.7:
        absorbed = (uniform(0.02, 0.3, generator), 1.0, uniform(0.3, 0.9, generator))
        strongest = uniform(0.1, 2.0, generator)
    else:
        absorbed = (uniform(0.4, 0.75, generator), 1.0, uniform(0.2, 0.5, generator))
        strongest = uniform(0.1, 0.5, generator)
    density = strongest * fibres((rgb_3YX.shape[1], rgb_3YX.shape[2]), generator, rgb_3YX.device)
    return rgb_3YX * torch.exp(-torch.tensor(absorbed, device=rgb_3YX.device)[:, None, None] * density)


def _between(amount_YX: Tensor, low: float, high: float) -> Tensor:
    """Scale amounts linearly so that these quantiles, those of every fifth pixel, become 0 and 1, and clip."""
    bounds = torch.quantile(amount_YX.flatten()[::5], torch.tensor([low, high], device=amount_YX.device))
    return amount_YX.sub(bounds[0]).div_((bounds[1] - bounds[0]).clamp_min(0.05)).clamp_(0, 1)


def show_in_dab(rgb_3YX: Tensor, generator: Generator) -> Tensor:
    """Show a section stained with haematoxylin and eosin as one with haematoxylin and DAB; RGB in 0..1.

    Haematoxylin becomes paler and eosin disappears. DAB lies either around the nuclei, as clouds and fibres and as the
    contours of the smoothed haematoxylin (cytoplasm and membranes), or in some of them (nuclear markers). Stains are
    those of Ruifrok and Johnston 2001.
    """
    size = (rgb_3YX.shape[1], rgb_3YX.shape[2])
    stains = torch.from_numpy(STAINS).float().to(rgb_3YX.device)
    density = rgb_3YX.clamp_min(1 / 256).log().neg_()
    haematoxylin, eosin, rest = torch.einsum("cs,cyx->syx", torch.linalg.inv(stains), density).clamp_min_(0)
    nucleus = torch.sigmoid(12 * (_between(soften(haematoxylin[None], generator)[0], 0.3, 0.98) - 0.45))
    if uniform(0, 1, generator) < 0.65:
        smooth = functional.avg_pool2d(haematoxylin[None, None], 7, 1, 3, count_include_pad=False)
        distant = _between(functional.avg_pool2d(smooth, 5, 1, 2, count_include_pad=False)[0, 0], 0.02, 0.95)
        width = uniform(0.04, 0.15, generator)
        contours = torch.exp(-(((distant - uniform(0.15, 0.5, generator)) / width) ** 2))
        everywhere = uniform(0.1, 0.6, generator)
        texture = fibres(size, generator, rgb_3YX.device) + everywhere
        texture += uniform(0, 1.5, generator) * contours + uniform(0, 1, generator) * _between(eosin, 0.1, 0.98)
        leak = uniform(0.05, 0.4, generator)
        dab = uniform(0.2, 1.2, generator) * texture * (1 - (1 - leak) * nucleus)
        pale: Tensor | float = uniform(0.3, 0.9, generator)
    else:
        positive = fibres(size, generator, rgb_3YX.device)
        dab = uniform(0.5, 2.0, generator) * positive * haematoxylin
        pale = 1 - uniform(0.2, 0.9, generator) * positive
    kept = torch.stack([haematoxylin * pale, eosin * uniform(0, 0.3, generator), rest * uniform(0, 1, generator) + dab])
    return torch.einsum("sc,syx->cyx", stains, kept).neg_().exp_()


# ---- camera --------------------------------------------------------------------------------------------------------


def jitter_light(image_CYX: Tensor, settings: Augmentation, generator: Generator) -> Tensor:
    """Change gain, contrast, brightness and gamma, in this order; 0..1 in and out."""
    gain = 1 + settings.gain * _either_way((image_CYX.shape[0], 1, 1), generator) if settings.gain else torch.ones(())
    image_CYX = image_CYX * gain.to(image_CYX.device)  # a copy, modified in place below
    if settings.contrast:
        mean = image_CYX.mean(dim=(1, 2), keepdim=True)
        image_CYX.sub_(mean).mul_(math.exp(uniform(-settings.contrast, settings.contrast, generator))).add_(mean)
    if settings.brightness:
        image_CYX.add_(uniform(-settings.brightness, settings.brightness, generator))
    image_CYX.clamp_(0, 1)
    return (
        image_CYX.pow_(math.exp(uniform(-settings.gamma, settings.gamma, generator))) if settings.gamma else image_CYX
    )


def soften(image_CYX: Tensor, generator: Generator) -> Tensor:
    """Blur as in an enlarged image: shrink by up to 2.2 and enlarge again."""
    height, width = image_CYX.shape[-2:]
    ratio = uniform(1.1, 2.2, generator)
    small = (max(1, round(height / ratio)), max(1, round(width / ratio)))
    shrunk = functional.interpolate(image_CYX[None], size=small, mode="bilinear", antialias=True)
    return functional.interpolate(shrunk, size=(height, width), mode="bilinear")[0]


def overdraw(image_CYX: Tensor, generator: Generator) -> Tensor:
    """Sharpen as a scanner does (unsharp masking): add what a blur of 0.7 to 2 px removes."""
    sigma, amount = uniform(0.7, 2.0, generator), uniform(0.5, 2.5, generator)
    reach = math.ceil(3 * sigma)
    line = torch.exp(-(torch.arange(-reach, reach + 1, device=image_CYX.device) ** 2) / (2 * sigma**2))
    channels = image_CYX.shape[0]
    line = (line / line.sum()).expand(channels, 1, 1, -1)
    padded = functional.pad(image_CYX[None], (reach,) * 4, mode="reflect").contiguous(memory_format=torch.channels_last)
    across = functional.conv2d(padded, line, groups=channels)
    blurred = functional.conv2d(across, line.transpose(2, 3), groups=channels)[0]
    return (image_CYX - blurred).mul_(amount).add_(image_CYX).clamp_(0, 1)


def jitter_colour(image_CYX: Tensor, settings: Augmentation, generator: Generator) -> Tensor:
    """Change stain, light, sharpness and noise of an image (c, y, x) in 0..1; three channels are a stained section."""
    if image_CYX.shape[0] == 3:
        if settings.stain or settings.stain_shift:
            image_CYX = jitter_stains(image_CYX, settings, generator)
        while uniform(0, 1, generator) < settings.counterstain:
            image_CYX = lay_counterstain(image_CYX, generator)
        if settings.dab and uniform(0, 1, generator) < settings.dab:
            image_CYX = show_in_dab(image_CYX, generator)
    image_CYX = jitter_light(image_CYX, settings, generator)
    if uniform(0, 1, generator) < settings.blur:
        image_CYX = soften(image_CYX, generator)
    if uniform(0, 1, generator) < settings.sharpen:
        image_CYX = overdraw(image_CYX, generator)
    if settings.noise:
        most = uniform(0, settings.noise, generator)
        noise = _normal(tuple(image_CYX.shape), generator).mul_(most)
        image_CYX = noise.to(image_CYX.device).add_(image_CYX)
    return image_CYX.clamp_(0, 1)
