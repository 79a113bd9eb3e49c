"""Slides to predict and the whole pass to compare with, for tests of the predict stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.data import immunohistochemistry

from pipeline.execution.blocks import StageContext, StageReport, serial
from pipeline.inference.predictor import Predictor, load_networks
from pipeline.stages.predict import PredictInputs, predict_slide
from pipeline.storage.layout import PROBABILITY
from tests.support.make_store import put_array
from unet_core.model_file.checkpoint import load, save
from unet_core.model_file.header import Weights, sha256
from unet_core.networks.factory import build
from unet_core.networks.unet import SegmentationNetwork
from unet_core.spec import UNetSpec

GOLDEN = Path(__file__).parents[2] / "exactness" / "golden"
CONTEXT, CLASSES = GOLDEN / "context.safetensors", GOLDEN / "classes.safetensors"
PLAN = "d" * 64
FACTOR = 32  # image px along one tissue px
CELL = 512

Image = NDArray[Any]


# ---- the oracle: imports nothing from pipeline ---------------------------------------------------------------------


@lru_cache
def model_of(weights: Path) -> SegmentationNetwork:
    torch.set_num_threads(1)
    return load(weights)


def whole_pass(weights: Path, image_CYX: Image) -> NDArray[np.uint8]:
    """One forward pass over the mirrored image, cropped: softmax (or sigmoid) in fp32, foreground and maps as bytes."""
    model = model_of(weights)
    spec, step = model.spec, 2**model.spec.depth
    around = 6 * step - 4 if spec.padding == "valid" else 12 * step  # same: far beyond what its zeros can reach
    height, width = image_CYX.shape[1:]
    more = [next(n for n in range(step) if model.shape.is_legal(side + 2 * around + n)) for side in (height, width)]
    colour = np.broadcast_to(image_CYX, (spec.in_channels, height, width))
    padded = np.pad(colour, [(0, 0), (around, around + more[0]), (around, around + more[1])], mode="reflect")
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (spec.mean, spec.std))
    x = (padded.astype(np.float32) / np.float32(np.iinfo(image_CYX.dtype).max) - mean) / std
    with torch.inference_mode():
        logits = model(torch.from_numpy(x)[None])[0].double()
        p = answers(logits, spec)
    start = 0 if spec.padding == "valid" else around
    return np.asarray(np.rint(p.numpy() * 255), np.uint8)[:, start : start + height, start : start + width]


def answers(logits_CYX: torch.Tensor, spec: UNetSpec) -> torch.Tensor:
    """Foreground probabilities, then maps, which are the last channels."""
    classes, maps = logits_CYX[: len(logits_CYX) - len(spec.maps)], logits_CYX[len(logits_CYX) - len(spec.maps) :]
    p = torch.sigmoid(classes) if spec.head == "sigmoid" else torch.softmax(classes, 0)[1:]
    return torch.cat((p, torch.sigmoid(maps)))


def assert_equal_to_rounding(found: Image, expected: Image, share: float = 1e-4) -> None:
    assert found.shape == expected.shape
    apart = np.abs(found.astype(np.int16) - expected)
    assert apart.max(initial=0) <= 1
    assert np.count_nonzero(apart) <= max(1, share * apart.size)


# ---- images and slides ---------------------------------------------------------------------------------------------


@lru_cache
def tissue_image() -> Image:
    """Real tissue (3, y, x), repeated with a period that is not a multiple of any step."""
    crop = immunohistochemistry()[:501, :487].transpose(2, 0, 1)
    return np.tile(crop, (1, 3, 3))


def cut(height: int, width: int) -> Image:
    return np.ascontiguousarray(tissue_image()[:, 7 : 7 + height, 11 : 11 + width])


@dataclass(frozen=True)
class Slide:
    """A slide ready to be predicted: image and tissue are in the store."""

    work: StageContext
    section: PredictInputs

    def run(self, map_blocks: Any = serial) -> StageReport:
        return predict_slide(self.work, self.section, map_blocks)

    @property
    def probability(self) -> NDArray[np.uint8]:
        return self.work.store.read(PROBABILITY)[()]

    @property
    def outputs(self) -> NDArray[np.uint8]:
        """Probabilities, then maps (k + m, y, x)."""
        maps = [self.work.store.read(f"maps/{name}/0")[()][None] for name in self.section.maps]
        return np.concatenate([self.probability, *maps])


def all_tissue(shape_yx: tuple[int, int]) -> NDArray[np.bool_]:
    return np.ones([-(-side // FACTOR) for side in shape_yx], bool)


def chosen(*files: Path) -> tuple[Weights, ...]:
    """Weights as in a plan."""
    return tuple(Weights(path, sha256(path)) for path in files)


def slide(
    root: Path, image: Image, *, weights: Path = CONTEXT, tile: int = 256, block: int = 512, precision: str = "fp32"
) -> Slide:
    work = StageContext(root, image.shape[-2:], block, PLAN)
    put_array(work.store, "0", image, "image", block)
    put_array(work.store, "tissue", all_tissue(image.shape[-2:]), "tissue", block)
    spec = model_of(weights).spec
    inputs = PredictInputs(
        weights=chosen(weights),
        tta="none",
        foreground=spec.foreground,
        step_px=16,
        device="cpu",
        precision=precision,
        tile_px=tile,
        tissue_factor=FACTOR,
        cells=None,
        colours=(),
        maps=spec.maps,
    )
    return Slide(work, inputs)


def network_of(weights: Path) -> Predictor:
    return load_networks(chosen(weights), "cpu", "fp32", "none")


def forward_of(network: Predictor) -> Callable[[torch.Tensor], torch.Tensor]:
    """The forward function of a network with one member."""
    (member,) = network.members
    return member.forward


def with_forward(network: Predictor, forward: Callable[[torch.Tensor], torch.Tensor]) -> Predictor:
    """The same network with another forward function."""
    (member,) = network.members
    return replace(network, members=(replace(member, forward=forward),))


def weights_of(folder: Path, spec: UNetSpec, seed: int = 1) -> Path:
    torch.manual_seed(seed)
    model = build(spec).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    save(folder / "random.safetensors", model, {"seed": seed})
    return folder / "random.safetensors"
