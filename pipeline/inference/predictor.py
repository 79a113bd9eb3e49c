"""Run networks on tiles and average their probabilities, on one device at one precision.

Each network receives the tile with its halo, and the result is cropped to the core; nothing is blended. So the result
does not depend on the tile size. When the device runs out of memory the tile is halved, with the same result.

Precision is fp32 on one thread, bf16 or fp16; logits are cast to fp32 before the activation. The probabilities of
several networks, or of one network for the eight orientations of a tile, are averaged in fp32 and rounded once. Each
network crops its own legal square from the tile's read, on its own step and with its own halo.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import ModelError
from pipeline.geometry import Box, TileGrid
from unet_core.colour_transform import recolour
from unet_core.device import multiplies_bf16
from unet_core.device import resolve_device as settled
from unet_core.errors import DeviceError, NetworkError
from unet_core.mirror import ArrayLike, read_mirrored
from unet_core.model_file import checkpoint, header
from unet_core.model_file.header import Weights
from unet_core.networks.whole_pass import to_bytes, to_input, to_outputs
from unet_core.normalisation import ColourMap
from unet_core.shapes import JointShape, ValidShape
from unet_core.spec import UNetSpec
from unet_core.tta import SYMMETRIES, Symmetry

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Array = NDArray[Any]
Colours = tuple[ColourMap | None, ...]
"""For each network its colour map of the slide."""


class CallCounter(threading.local):
    """Number of network calls of the current thread: tiles, whatever the number of passes."""

    made = 0


@dataclass(frozen=True, slots=True)
class LoadedNetwork:
    """A network in memory: ``forward`` maps normalised x_NCHW to logits."""

    forward: Callable[[Tensor], Tensor]
    spec: UNetSpec

    @property
    def shape(self) -> ValidShape:
        """Step, halo and legal sizes."""
        return ValidShape.of(self.spec)

    def shown(self, pixels_CYX: Tensor, colours: ColourMap | None) -> Tensor:
        """Pixels in the colours on which the network was trained; raises ModelError when its map is missing."""
        if colours is not None:
            return recolour(pixels_CYX, colours)
        if self.spec.normalisation is not None:
            raise ModelError("the model asks for normalised colours: expected a map fitted to the slide, found none")
        return pixels_CYX


@dataclass(slots=True)
class Predictor:
    """Networks in memory, which map (c, h, w) integers to their mean probabilities and maps as bytes.

    Attributes:
        members: The networks.
        symmetries: Orientations of a tile; each network runs once for each.
        device: Device kind.
        dtype: Precision.
        largest_px: Largest side of a tile that fits in memory; None until the device runs out of memory.
        lock: Lets one thread compute while others read and write.
        calls: Counts network calls of each thread.
    """

    members: tuple[LoadedNetwork, ...]
    symmetries: tuple[Symmetry, ...] = SYMMETRIES["none"]
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    largest_px: int | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    calls: CallCounter = field(default_factory=CallCounter)

    @property
    def spec(self) -> UNetSpec:
        """Spec of the first network; all agree in channels, classes and maps."""
        return self.members[0].spec

    @property
    def shape(self) -> JointShape:
        """Step, halo and reads of all networks together."""
        return JointShape(tuple(one.shape for one in self.members))

    def probability(self, region: MirroredRegion, core: Box, tile_px: int) -> Array:
        """Foreground probabilities (k, h, w) of ``core``: the first planes of ``outputs``."""
        return self.outputs(region, core, tile_px)[: self.spec.foreground]

    def outputs(self, region: MirroredRegion, core: Box, tile_px: int) -> Array:
        """Foreground probabilities and maps as bytes: p * 255, rounded.

        Args:
            region: The image.
            core: Pixels to compute.
            tile_px: Side of the core of one network call; halved each time the device runs out of memory.

        Returns:
            (k + m, h, w) uint8 of the core: probabilities, then maps.

        Raises:
            ModelError: The network's output is not finite, or even the smallest tile does not fit in memory.
        """
        side = tile_px if self.largest_px is None else min(tile_px, self.largest_px)
        while True:
            try:
                return self._tiled(region, core, side)
            except torch.OutOfMemoryError as error:
                side = side // 2 // self.shape.step * self.shape.step
                if side < self.shape.step:
                    raise ModelError(f"{self.device}: out of memory even for the smallest tile: {error}") from error
                self.largest_px = side
            if self.device != "cpu":
                torch.cuda.empty_cache()

    def grid(self, area: Box, tile_px: int) -> TileGrid:
        """Tiles over an area, each with the halo of the networks.

        Raises:
            ValueError: ``area`` or ``tile_px`` is not on the step grid, which would change the pixels.
        """
        step = self.shape.step
        if area.y0 % step or area.x0 % step or tile_px % step:
            raise ValueError(
                f"tiles of {tile_px} px over {area}: expected starts and sides that are multiples of {step}"
            )
        return TileGrid(area, tile_px, self.shape.halo, self.shape.surplus_px(tile_px))

    def _tiled(self, region: MirroredRegion, core: Box, side: int) -> Array:
        answer = np.empty((self.spec.foreground + len(self.spec.maps), *core.shape), np.uint8)
        for tile in self.grid(core, side):
            whole = self._call(region.read(tile.read), side, region.colours)
            place = tile.core.shift(-core.y0, -core.x0)
            answer[(slice(None), *place.slices)] = whole[:, : place.shape[0], : place.shape[1]]
        return answer

    def _call(self, pixels_CYX: Array, side: int, colours: Colours) -> Array:
        with self.lock, torch.inference_mode():
            self.calls.made += 1
            pixels = self._to_device(pixels_CYX)
            summed = reduce(Tensor.add_, self._passes(pixels, side, colours))
            return to_bytes(summed.div_(len(self.members) * len(self.symmetries))).cpu().numpy()

    def _passes(self, pixels_CYX: Tensor, side: int, colours: Colours) -> Iterator[Tensor]:
        """Outputs (k + m, side, side) of the core by each network for each orientation of the tile."""
        for member, own_colours in zip(self.members, colours or (None,) * len(self.members), strict=True):
            own = self.shape.window(member.shape, side)
            crop = slice(member.shape.crop_px, member.shape.crop_px + side)
            shown_CYX = member.shown(pixels_CYX[:, own, own], own_colours)
            x_NCHW = to_input(shown_CYX, member.spec, self.dtype)
            for symmetry in self.symmetries:
                turned = symmetry.apply(x_NCHW).contiguous(memory_format=torch.channels_last)
                logits_NCHW = symmetry.undo(member.forward(turned))
                yield activate(logits_NCHW[0, :, crop, crop].float(), member.spec, self.dtype)

    def _to_device(self, pixels_CYX: Array) -> Tensor:
        pixels = torch.from_numpy(np.ascontiguousarray(pixels_CYX))
        if self.device == "cpu":
            return pixels
        return pixels.pin_memory().to(self.device, non_blocking=True)


@dataclass(frozen=True, slots=True)
class MirroredRegion:
    """A box of an image in memory, mirrored where it leaves the image.

    Attributes:
        image: The whole image (c, y, x).
        box: The box, which may reach beyond the image.
        pixels: Pixels of the box (c, h, w).
        colours: Colour map of each network, fitted to the whole image; empty to leave colours as they are.
    """

    image: ArrayLike
    box: Box
    pixels: Array
    colours: Colours = ()

    @classmethod
    def read_around(cls, image: ArrayLike, grid: TileGrid, colours: Colours = ()) -> MirroredRegion:
        """Read once the pixels that all tiles of a grid read."""
        first, last = grid.tile(0, 0).read, grid.tile(grid.rows - 1, grid.cols - 1).read
        box = Box(first.y0, first.x0, last.y1, last.x1)
        return cls(image, box, read_mirrored(image, box), colours)

    def read(self, box: Box) -> Array:
        """Pixels of a box (c, h, w): from memory, or from the image where a halved tile reaches further."""
        if box.intersect(self.box) != box:
            return read_mirrored(self.image, box)
        return self.pixels[(slice(None), *box.shift(-self.box.y0, -self.box.x0).slices)]


def activate(logits_CYX: Tensor, spec: UNetSpec, dtype: torch.dtype) -> Tensor:
    """Foreground probabilities and maps (k + m, h, w) from fp32 logits (c, h, w).

    Raises ModelError when a logit is not finite: an overflow must never look like background.
    """
    if not bool(torch.isfinite(logits_CYX.sum())):
        cure = "Use compute.precision=bf16 or fp32" if dtype == torch.float16 else "The weights or the image are broken"
        raise ModelError(f"the network's output is not finite (NaN or overflow at {dtype}). {cure}")
    return to_outputs(logits_CYX, spec)


@lru_cache(maxsize=2)
def _loaded(weights: tuple[Weights, ...], device: str, precision: str, tta: str) -> Predictor:
    dtype = DTYPES[precision]
    torch.set_num_threads(1)  # two are never bitwise equal to one
    keep_freed_memory()
    exact_gpu_arithmetic()
    members = tuple(_member(one, device, dtype) for one in weights)
    return Predictor(members, SYMMETRIES[tta], device=device, dtype=dtype)


def _member(weights: Weights, device: str, dtype: torch.dtype) -> LoadedNetwork:
    found = header.sha256(weights.path)
    if found != weights.sha256:
        raise ModelError(
            f"{weights.path}: expected sha256 {weights.sha256[:12]}, found {found[:12]}: the weights changed during "
            "the run"
        )
    try:
        model = checkpoint.load(weights.path)
    except NetworkError as error:
        raise ModelError(str(error)) from error
    network = model.to(device=device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks the combination
    return LoadedNetwork(network.eval(), model.spec)


_LOADING = threading.Lock()


def load_networks(weights: tuple[Weights, ...], device: str, precision: str, tta: str) -> Predictor:
    """Load networks, once per process.

    Args:
        weights: Files and digests of the networks.
        device: ``cpu`` or ``cuda``.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        tta: Test-time augmentation, ``none`` or ``d4``.

    Raises:
        ModelError: A file does not have its digest.
    """
    with _LOADING:
        return _loaded(weights, device, precision, tta)


def keep_freed_memory() -> None:
    """Keep freed memory in the process: glibc would return it at every layer and fault it in again."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "gnu_get_libc_version"):
            for option, value in ((-8, 1), (-3, 2**31 - 1), (-1, 2**31 - 1)):  # arena max, mmap and trim threshold
                libc.mallopt(option, value)


def exact_gpu_arithmetic() -> None:
    """Disable TF32 and algorithms chosen by timing, so that every run computes the same pixels."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def single_pass(network: Predictor, image: ArrayLike, box: Box, colours: Colours = ()) -> Array:
    """Outputs of a box in one network call, which tiles must equal; the box must start on the step grid."""
    side = -(-max(box.shape) // network.shape.step) * network.shape.step
    return network.outputs(MirroredRegion.read_around(image, network.grid(box, side), colours), box, side)


def resolve_device(device: str) -> str:
    """Resolve ``auto`` as `unet_core.device` does; raises ModelError when CUDA is requested but absent."""
    try:
        return settled(device)
    except DeviceError as error:
        raise ModelError(str(error)) from error


def resolve_precision(precision: str, device: str) -> str:
    """Resolve ``auto``: fp16 on CUDA, bf16 on a CPU that multiplies it natively (AVX512-BF16, AMX), else fp32."""
    if precision != "auto":
        return precision
    if device == "cuda":
        return "fp16"
    return "bf16" if multiplies_bf16(device) else "fp32"
