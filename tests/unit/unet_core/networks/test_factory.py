"""U-Net++ and Attention U-Net: receptive fields are measured, and inexact networks are rejected."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from unet_core.errors import ArchitectureError, CheckpointError, SizeError
from unet_core.mirror import Square, read_mirrored
from unet_core.model_file.checkpoint import load, save, with_spec
from unet_core.model_file.header import describe
from unet_core.networks.factory import build, require_exact
from unet_core.networks.unet import SegmentationNetwork, UNet
from unet_core.shapes import JointShape, ValidShape
from unet_core.spec import UNetSpec, preset

SPECS = [
    UNetSpec(architecture=name, depth=depth, width=2, growth=1, in_channels=1, padding="same", norm="batch")
    for name, depths in (("unet++", (4,)), ("attention", (1, 2, 3, 4)))
    for depth in depths
]
each_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.architecture} {spec.depth}")


pytestmark = pytest.mark.usefixtures("one_thread")


def layers_of(network: nn.Module, *kinds: Any) -> Iterator[tuple[nn.Module, str, Any]]:
    """Layers of given types, each with its parent module and name."""
    for name, layer in list(network.named_modules()):
        if isinstance(layer, kinds):
            parent, _, own = name.rpartition(".")
            yield network.get_submodule(parent), own, layer


def positive(spec: UNetSpec) -> SegmentationNetwork:
    """A network with positive weights and average pooling, so every pixel in reach affects the output."""
    model = build(spec).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, _, layer in layers_of(model, nn.Conv2d, nn.ConvTranspose2d):
            drawn = torch.rand(layer.weight.shape, generator=generator, dtype=torch.float64) + 0.1
            layer.weight.copy_(drawn / drawn[0].numel())
    for parent, own, layer in layers_of(model, nn.MaxPool2d):
        setattr(parent, own, nn.AvgPool2d(layer.kernel_size))
    return model


def he(spec: UNetSpec, seed: int = 1) -> SegmentationNetwork:
    """Random weights at the scale of training, with batch statistics as after training."""
    torch.manual_seed(seed)
    model = build(spec).double().eval()
    for _, _, layer in layers_of(model, nn.BatchNorm2d):
        layer.running_mean.normal_(0, 0.2)
        layer.running_var.uniform_(0.5, 1.5)
    return model


def reach(spec: UNetSpec) -> list[tuple[int, int]]:
    """For each phase within the step: reach of an output pixel before and after its cell."""
    step = 2**spec.depth
    start = 7 * step
    x = torch.rand(step, 1, 2 * start + step, step, dtype=torch.float64).requires_grad_()  # an image for each phase
    logits = positive(spec)(x)
    requested = torch.stack([logits[phase, :, start + phase].sum() for phase in range(step)])
    (gradient,) = torch.autograd.grad(requested.sum(), x)
    reached = [one[0].abs().amax(dim=1).nonzero().ravel() for one in gradient]
    return [(start - int(rows.min()), int(rows.max()) - start - step + 1) for rows in reached]


@each_spec
def test_the_halo_is_the_measured_reach_rounded_up(spec: UNetSpec) -> None:
    shape, found = ValidShape.of(spec), reach(spec)
    furthest = max(max(before, after) for before, after in found)
    print(f"{spec.architecture}, depth {spec.depth}: halo {shape.halo}, reach by phase {found}")
    assert shape.halo - shape.step < furthest <= shape.halo
    assert shape.halo % shape.step == 0


def test_known_halos() -> None:
    halos = {(spec.architecture, spec.depth): ValidShape.of(spec).halo for spec in SPECS}
    assert halos == {("unet++", 4): 96, ("attention", 1): 8, ("attention", 2): 16, ("attention", 3): 32} | {
        ("attention", 4): 64
    }


@each_spec
def test_a_shift_by_the_step_shifts_the_output_and_by_half_a_step_changes_it(spec: UNetSpec) -> None:
    model = he(spec) if spec.architecture == "unet++" else positive(spec)  # its averages would blur the difference
    shape = ValidShape.of(spec)
    side, step, halo = 2 * shape.halo + 5 * shape.step, shape.step, shape.halo
    image = torch.rand(1, 1, side + step, side, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with torch.no_grad():
        upright, whole, half = (model(image[:, :, by : side + by]) for by in (0, step, step // 2))
    kept = slice(halo, halo + 2 * step)
    expected = upright[:, :, halo + step : halo + 3 * step, kept]
    torch.testing.assert_close(whole[:, :, kept, kept], expected, rtol=1e-10, atol=1e-12)
    moved = upright[:, :, halo + step // 2 : halo + step // 2 + 2 * step, kept]
    assert not torch.allclose(half[:, :, kept, kept], moved, rtol=1e-10, atol=1e-12)


@each_spec
def test_any_core_on_the_step_equals_the_whole_pass(spec: UNetSpec) -> None:
    model, shape = he(spec), ValidShape.of(spec)
    image = torch.rand(1, 45, 58, generator=torch.Generator().manual_seed(2), dtype=torch.float64).numpy()
    around = shape.halo + 2 * shape.step
    after = [-(-length // shape.step) * shape.step - length + around for length in image.shape[1:]]
    padded = np.pad(image, ((0, 0), (around, after[0]), (around, after[1])), mode="reflect")
    with torch.no_grad():
        whole = model(torch.from_numpy(padded)[None])[0, :, around : around + 45, around : around + 58].numpy()
    for y0, x0, core in ((0, 0, shape.step), (shape.step, 2 * shape.step, 24), (32, 16, 5)):
        read = shape.read_px(core)
        box = Square(y0 - shape.halo, x0 - shape.halo, y0 - shape.halo + read, x0 - shape.halo + read)
        with torch.no_grad():
            tile = model(torch.from_numpy(read_mirrored(image, box).copy())[None])[0].numpy()
        inside = slice(shape.crop_px, shape.crop_px + core)
        expected = whole[:, y0 : y0 + core, x0 : x0 + core]
        found = tile[:, inside, inside][:, : expected.shape[1], : expected.shape[2]]
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


# ---- what is no network of ours ------------------------------------------------------------------------------------


@each_spec
def test_no_layer_depends_on_the_whole_tile(spec: UNetSpec) -> None:
    network = build(spec)
    kinds = {type(module).__name__ for module in network.modules()}
    assert not {kind for kind in kinds if any(word in kind for word in ("Instance", "Group", "Layer", "Adaptive"))} - {
        "AttentionLayer"
    }
    assert "BatchNorm2d" in kinds
    assert not [module for module in network.modules() if getattr(module, "align_corners", None)]
    convolutions = sum(isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) for module in network.modules())
    assert sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) >= convolutions


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.InstanceNorm2d(2), "InstanceNorm2d"),
        (nn.GroupNorm(1, 2), "GroupNorm"),
        (nn.LayerNorm(2), "LayerNorm"),
        (nn.AdaptiveAvgPool2d(1), "AdaptiveAvgPool2d"),
        (nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), "aligned corners"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_layers_that_depend_on_the_whole_tile_are_rejected_by_name(layer: nn.Module, words: str) -> None:
    with pytest.raises(ArchitectureError, match=rf"layer 1\.0: .*{words}"):
        require_exact(nn.Sequential(nn.Conv2d(2, 2, 3), nn.Sequential(layer)))
    require_exact(nn.Sequential(nn.BatchNorm2d(2), nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)))


def test_monai_s_own_networks_are_rejected() -> None:
    from monai.networks.nets.attentionunet import AttentionUnet
    from monai.networks.nets.basic_unetplusplus import BasicUNetPlusPlus

    for network in (AttentionUnet(2, 3, 2, (4, 8, 16), (2, 2)), BasicUNetPlusPlus(2)):
        with pytest.raises(ArchitectureError, match="InstanceNorm2d"):
            require_exact(network)


@each_spec
def test_a_size_that_monai_would_pad_is_rejected(spec: UNetSpec) -> None:
    side = 3 * 2**spec.depth
    assert build(spec).eval()(torch.zeros(1, 1, side, 2 * side)).shape == (1, 2, side, 2 * side)
    with pytest.raises(SizeError, match=f"{side + 1} px"):
        build(spec)(torch.zeros(1, 1, side, side + 1))


def test_a_default_spec_builds_the_u_net() -> None:
    assert type(build(UNetSpec(depth=1, width=2))) is UNet


# ---- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["unet++", "attention"])
def test_a_model_file_is_read_back_to_the_bit(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    model = build(preset(name, width=2, dropout=0.2)).train()
    model(torch.rand(2, 3, 32, 32))  # the statistics are no longer their defaults
    save(tmp_path / "net.safetensors", model, {"steps": 1})
    loaded = load(tmp_path / "net.safetensors")
    assert loaded.spec == model.spec == describe(tmp_path / "net.safetensors").spec
    x = torch.rand(1, 3, 48, 32)
    with torch.no_grad():
        assert torch.equal(loaded(x), model.eval()(x))
        changed = with_spec(loaded, loaded.spec.model_copy(update={"threshold": 0.3}))
        assert torch.equal(changed(x), loaded(x))
    assert changed.spec.threshold == 0.3


def test_weights_of_another_architecture_are_rejected(tmp_path: Path) -> None:
    model = build(preset("unet++", width=2))
    model.spec = preset("attention", width=2)
    save(tmp_path / "net.safetensors", model, {})
    with pytest.raises(CheckpointError, match="weights and spec are of different networks"):
        load(tmp_path / "net.safetensors")


# ---- several networks, one read ------------------------------------------------------------------------------------

SEVERAL = [
    UNetSpec(),
    UNetSpec(depth=1),
    UNetSpec(depth=3, up="bilinear"),
    UNetSpec(depth=2, padding="same"),
    preset("unet++"),
    preset("attention", depth=3),
]


@pytest.mark.parametrize("core", [16, 64, 240, 1024])
def test_each_of_several_networks_gets_its_own_part_of_the_read(core: int) -> None:
    shapes = [ValidShape.of(spec) for spec in SEVERAL]
    joint = JointShape(tuple(shapes))
    assert (joint.step, joint.halo) == (16, 96)
    read = core + 2 * joint.halo + joint.surplus_px(core)
    ends = []
    for shape in shapes:
        own = joint.window(shape, core)
        assert own.start + shape.halo == joint.halo, "its core starts where the common core does"
        assert own.stop - own.start == shape.read_px(core)
        assert 0 <= own.start < own.stop <= read
        ends.append(own.stop)
    assert max(ends) == read, "and no more is read than needed"


@pytest.mark.parametrize("spec", SEVERAL, ids=lambda spec: f"{spec.architecture} {spec.depth}")
def test_the_joint_shape_of_one_network_is_its_own(spec: UNetSpec) -> None:
    alone = ValidShape.of(spec)
    joint = JointShape((alone,))
    assert (joint.step, joint.halo) == (alone.step, alone.halo)
    for core in (64, 128, 1024):
        assert joint.surplus_px(core) == alone.surplus_px(core)
        assert joint.window(alone, core) == slice(0, alone.read_px(core))
