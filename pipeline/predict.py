"""Predict: the network over the image, tile by tile, giving what one forward pass over the whole slide would give.

The one decision made here: a tile is read with the network's halo (mirrored beyond the slide), started on a multiple of
its step, and cropped to its core. Nothing is blended and nothing depends on a tile's other pixels, so tile size is
free: when the device runs out of memory the tile is halved and the pixels stay the same.

Precision lives here too: fp32 on one thread, bf16 or fp16, with the logits cast to fp32 before the activation. Where
several networks answer for a tile, or one for the tile turned eight ways, their probabilities are averaged in fp32 and
rounded once; each network finds its own legal square in the tile's read, on its own step and with its own halo.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial, reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import CELL_PX
from pipeline.errors import ModelError
from pipeline.geometry import Box, TileGrid
from pipeline.store import Array, ArraySpec, Index, StoredArray
from pipeline.work import Counts, MapBlocks, StageReport, Work, run_blocks
from unet_core import checkpoint, header
from unet_core.header import Weights
from unet_core.mirror import ArrayLike, read_mirrored
from unet_core.shapes import JointShape, ValidShape
from unet_core.spec import UNetSpec
from unet_core.symmetry import SYMMETRIES, Symmetry

ARRAY = "probability/0"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class PredictSection:
    """Which networks, on what, in tiles of which core. ``tissue_factor``: image px along one tissue px.

    ``cells`` (rows, cols): which cells of the image to compute, where there is tissue; None: all.
    """

    weights: tuple[Weights, ...]
    foreground: int
    tissue_factor: int
    device: str
    precision: str
    tile_px: int
    tta: str = "none"
    cells: NDArray[np.bool_] | None = None


class Calls(threading.local):
    """Network calls the present thread has made: tiles answered, in however many passes."""

    made = 0


@dataclass(frozen=True, slots=True)
class Member:
    """A network: ``forward`` maps normalised x_NCHW to logits."""

    forward: Callable[[Tensor], Tensor]
    spec: UNetSpec

    @property
    def shape(self) -> ValidShape:
        """Step, halo and legal sizes."""
        return ValidShape.of(self.spec)


@dataclass(slots=True)
class Network:
    """Networks ready to answer for cores of any size: (c, h, w) integers in, the mean of their answers out as bytes.

    Each is asked for the tile laid in every way of ``symmetries``. ``largest_px`` shrinks when the device runs out of
    memory; the lock lets one thread compute while others read and write.
    """

    members: tuple[Member, ...]
    symmetries: tuple[Symmetry, ...] = SYMMETRIES["none"]
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    largest_px: int | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    calls: Calls = field(default_factory=Calls)

    @property
    def spec(self) -> UNetSpec:
        """Of the first; all agree in channels and classes."""
        return self.members[0].spec

    @property
    def shape(self) -> JointShape:
        """Step, halo and reads."""
        return JointShape(tuple(one.shape for one in self.members))

    def probability(self, region: Region, core: Box, tile_px: int) -> Array:
        """Foreground probabilities of ``core`` as bytes (k, h, w): p * 255, rounded.

        ``tile_px`` is the core side of one call, halved as often as the device runs out of memory.
        Raises ModelError when the network's output is not finite, or when even the smallest tile does not fit.
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
        """Tiles over an area, each with the network's halo. Raises ValueError off the step grid: other pixels."""
        step = self.shape.step
        if area.y0 % step or area.x0 % step or tile_px % step:
            raise ValueError(
                f"tiles of {tile_px} px over {area}: expected starts and sides that are multiples of {step}"
            )
        return TileGrid(area, tile_px, self.shape.halo, self.shape.surplus_px(tile_px))

    def _tiled(self, region: Region, core: Box, side: int) -> Array:
        answer = np.empty((self.spec.foreground, *core.shape), np.uint8)
        for tile in self.grid(core, side):
            whole = self._call(region.read(tile.read), side)
            place = tile.core.shift(-core.y0, -core.x0)
            answer[(slice(None), *place.slices)] = whole[:, : place.shape[0], : place.shape[1]]
        return answer

    def _call(self, pixels_CYX: Array, side: int) -> Array:
        with self.lock, torch.inference_mode():
            self.calls.made += 1
            pixels = self._to_device(pixels_CYX)
            summed = reduce(Tensor.add_, self._passes(pixels, side))
            return quantise(summed.div_(len(self.members) * len(self.symmetries))).cpu().numpy()

    def _passes(self, pixels_CYX: Tensor, side: int) -> Iterator[Tensor]:
        """The core's probabilities (k, side, side) by each network, for each way to lay what it reads."""
        for member in self.members:
            own = self.shape.window(member.shape, side)
            crop = slice(member.shape.crop_px, member.shape.crop_px + side)
            x_NCHW = normalise(pixels_CYX[:, own, own], member.spec, self.dtype)
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
class Region:
    """An image (c, y, x) of which the pixels of ``box``, mirrored where it leaves the image, are already in memory."""

    image: ArrayLike
    box: Box
    pixels: Array

    @classmethod
    def around(cls, image: ArrayLike, grid: TileGrid) -> Region:
        """Read all that the grid's tiles will see, once."""
        first, last = grid.tile(0, 0).read, grid.tile(grid.rows - 1, grid.cols - 1).read
        box = Box(first.y0, first.x0, last.y1, last.x1)
        return cls(image, box, read_mirrored(image, box))

    def read(self, box: Box) -> Array:
        """The pixels of a box (c, h, w): from memory, or from the image where a halved tile reaches further."""
        if box.intersect(self.box) != box:
            return read_mirrored(self.image, box)
        return self.pixels[(slice(None), *box.shift(-self.box.y0, -self.box.x0).slices)]


def normalise(pixels_CYX: Tensor, spec: UNetSpec, dtype: torch.dtype) -> Tensor:
    """Normalise integers (c, h, w) to x (1, C, h, w) of ``dtype`` by the model's own constants; grey is repeated."""
    limit = float(torch.iinfo(pixels_CYX.dtype).max)
    scale, offset = (
        torch.tensor(values, dtype=torch.float32, device=pixels_CYX.device)[:, None, None]
        for values in (
            [1 / (limit * std) for std in spec.std],
            [-mean / std for mean, std in zip(spec.mean, spec.std, strict=True)],
        )
    )
    x = torch.addcmul(offset, pixels_CYX.float(), scale)
    return x[None].to(dtype=dtype, memory_format=torch.channels_last)


def activate(logits_CYX: Tensor, spec: UNetSpec, dtype: torch.dtype) -> Tensor:
    """Foreground probabilities (k, h, w) from fp32 logits (c, h, w).

    Raises ModelError when a logit is not finite: an overflow must never look like background.
    """
    if not bool(torch.isfinite(logits_CYX.sum())):
        cure = "Use compute.precision=bf16 or fp32" if dtype == torch.float16 else "The weights or the image are broken"
        raise ModelError(f"the network's output is not finite (NaN or overflow at {dtype}). {cure}")
    if spec.head == "sigmoid":
        probability = torch.sigmoid(logits_CYX)
    elif spec.classes == 2:
        probability = torch.sigmoid(logits_CYX[1:] - logits_CYX[:1])  # equals softmax, five times faster
    else:
        probability = torch.softmax(logits_CYX, dim=0)[1:]
    return probability


def quantise(probability_KYX: Tensor) -> Tensor:
    """Probabilities as bytes: p * 255, rounded."""
    return (probability_KYX * 255).round_().to(torch.uint8)


@lru_cache(maxsize=2)
def _load(weights: tuple[Weights, ...], device: str, precision: str, tta: str) -> Network:
    dtype = DTYPES[precision]
    torch.set_num_threads(1)  # two are never bitwise equal to one
    keep_freed_memory()
    exact_gpu_arithmetic()
    members = tuple(_member(one, device, dtype) for one in weights)
    return Network(members, SYMMETRIES[tta], device=device, dtype=dtype)


def _member(weights: Weights, device: str, dtype: torch.dtype) -> Member:
    found = header.sha256(weights.path)
    if found != weights.sha256:
        raise ModelError(
            f"{weights.path}: expected sha256 {weights.sha256[:12]}, found {found[:12]}: the weights changed during "
            "the run"
        )
    model = checkpoint.load(weights.path)
    network = model.to(device=device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks the combination
    return Member(network.eval(), model.spec)


_LOADING = threading.Lock()


def load_network(section: PredictSection) -> Network:
    """The network of a section, loaded once per process.

    Raises ModelError when the weights are not the ones the plan was made with.
    """
    with _LOADING:
        return _load(section.weights, section.device, section.precision, section.tta)


def keep_freed_memory() -> None:
    """Keep freed memory, which glibc returns at every layer, and faults in again."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "gnu_get_libc_version"):
            for option, value in ((-8, 1), (-3, 2**31 - 1), (-1, 2**31 - 1)):  # arena max, mmap and trim threshold
                libc.mallopt(option, value)


def exact_gpu_arithmetic() -> None:
    """No TF32 and no algorithm chosen by timing: the same pixels on every run."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def predict_block(work: Work, section: PredictSection, index: Index) -> Counts:
    """Compute and write one block of probability (k, y, x) uint8; cells not asked for are 0 and cost no call."""
    core, store = work.core(index), work.store
    network = load_network(section)
    wanted = wanted_pixels(store.read("tissue"), section, core)
    before = network.calls.made
    pixels = np.zeros((section.foreground, *core.shape), np.uint8)
    if wanted.any():
        grid = network.grid(core, section.tile_px)
        region = Region.around(store.read("0"), grid)
        for tile in grid:
            place = (slice(None), *tile.core.shift(-core.y0, -core.x0).slices)
            if wanted[place[1:]].any():
                pixels[place] = network.probability(region, tile.core, section.tile_px)
        pixels[:, ~wanted] = 0
    store.write_block(ARRAY, work.plan, core, pixels)
    return {"network_calls": network.calls.made - before, "halved": int(network.largest_px is not None)}


def wanted_pixels(tissue: StoredArray, section: PredictSection, box: Box) -> Array:
    """Which pixels of the box (h, w) lie in a cell that holds any tissue and, with regions, touches one."""
    found = tissue_pixels(tissue, box, section.tissue_factor)
    return found if section.cells is None else found & cell_pixels(section.cells[box.cover(CELL_PX).slices], box)


def tissue_pixels(tissue: StoredArray, box: Box, factor: int) -> Array:
    """Which pixels of the box (h, w) lie in a cell that holds any tissue. ``factor`` image px make a tissue px."""
    cells = box.cover(CELL_PX)
    low = cells.scale(CELL_PX // factor).intersect(Box.of_shape((tissue.shape[0], tissue.shape[1])))
    assert low is not None, "the box lies in the image"
    mask = tissue.read(low)
    starts = [np.arange(0, length, CELL_PX // factor) for length in mask.shape]
    alive = np.logical_or.reduceat(np.logical_or.reduceat(mask, starts[0], axis=0), starts[1], axis=1)
    return cell_pixels(alive, box)


def cell_pixels(cells: Array, box: Box) -> Array:
    """What holds for the cells (rows, cols) that cover a box, for each of its pixels (h, w)."""
    covered = box.cover(CELL_PX)
    whole = np.repeat(np.repeat(cells, CELL_PX, axis=0), CELL_PX, axis=1)
    return np.asarray(whole[box.shift(-covered.y0 * CELL_PX, -covered.x0 * CELL_PX).slices])


def single_pass(network: Network, image: ArrayLike, box: Box) -> Array:
    """The answer of one network call for the whole box, which must start on the step grid: what tiles must equal."""
    side = -(-max(box.shape) // network.shape.step) * network.shape.step
    return network.probability(Region.around(image, network.grid(box, side)), box, side)


def predict_slide(work: Work, section: PredictSection, map_blocks: MapBlocks) -> StageReport:
    """Write the whole probability, block by block."""
    store = work.store
    shape = (section.foreground, *work.shape_yx)
    store.create(ArraySpec(ARRAY, shape, "uint8", work.block_px, work.plan))
    done = store.done(ARRAY, work.plan)
    report = run_blocks("predict", work, done, partial(predict_block, work, section), map_blocks)
    report.facts = _facts(work, section)
    store.commit(ARRAY, work.plan)
    store.stamp("predict", work.plan, report.facts)
    return report


def _facts(work: Work, section: PredictSection) -> dict[str, int]:
    """How much of the image the network was asked about."""
    whole = Box.of_shape(work.shape_yx)
    tissue = work.store.read("tissue")
    alive = sum(int(wanted_pixels(tissue, section, core).sum()) for core in (tile.core for tile in work.grid))
    return {"pixels": whole.area_px, "skipped_pixels": whole.area_px - alive}


def resolve_device(device: str) -> str:
    """``auto`` is CUDA where there is one. Raises ModelError when CUDA is asked for and absent."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            "compute.device=cuda: torch sees no CUDA device here. Use cpu, or check the driver ('overtile doctor')"
        )
    return device


def resolve_precision(precision: str, device: str) -> str:
    """``auto`` is fp16 on CUDA, bf16 on a CPU that multiplies it natively (AVX512-BF16, AMX), else fp32."""
    if precision != "auto":
        return precision
    if device == "cuda":
        return "fp16"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if native else "fp32"
