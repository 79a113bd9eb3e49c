"""Recorded feature maps and gradients equal those computed by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from unet_core.networks.activations import network_parts, record_activations, skip_gradients
from unet_core.networks.factory import build
from unet_core.networks.whole_pass import to_input
from unet_core.spec import UNetSpec

PADDED: dict[str, Any] = {"width": 2, "in_channels": 1, "padding": "same", "norm": "batch"}
ATTENTION = UNetSpec(architecture="attention", depth=1, **PADDED)
NESTED = UNetSpec(architecture="unet++", depth=4, growth=1, **PADDED)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def spots(at_yx: tuple[int, int], side: int = 64) -> np.ndarray:
    """A dark image with one bright square of 8 px."""
    image = np.zeros((1, side, side + 16), np.uint8)
    image[:, at_yx[0] : at_yx[0] + 8, at_yx[1] : at_yx[1] + 8] = 255
    return image


@pytest.mark.parametrize(
    "spec",
    [
        UNetSpec(depth=3, width=2, in_channels=1),
        UNetSpec(depth=3, width=2, in_channels=1, up="bilinear"),
        UNetSpec(depth=2, width=2, in_channels=1, padding="same"),
        UNetSpec(architecture="attention", depth=2, **PADDED),
        NESTED,
    ],
    ids=lambda spec: f"{spec.architecture} {spec.padding} {spec.up}",
)
def test_feature_maps_are_aligned_with_the_image(spec: UNetSpec) -> None:
    """With positive weights every map is brightest around the bright square, at its level's resolution."""
    model = build(spec)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                layer.weight.fill_(1 / layer.weight[0].numel())
    model.spec = spec.model_copy(update={"mean": (0.0,), "std": (1.0,)})
    watched = record_activations(model, spots((24, 40)))
    assert {one.level for one in watched.levels} == set(range(spec.depth + 1))
    for one in watched.levels:
        factor = 2**one.level
        assert one.values_CYX.shape == (spec.channels[one.level], 64 // factor, 80 // factor), one.name
        if one.level <= 2:
            weight = one.values_CYX.mean(axis=0) - one.values_CYX.mean(axis=0).min()
            weight = weight**2
            centre = [(np.indices(weight.shape)[axis] * weight).sum() / weight.sum() for axis in (0, 1)]
            expected = [(28 - 0.5 * factor) / factor, (44 - 0.5 * factor) / factor]
            assert centre == pytest.approx(expected, abs=1.5), one.name
    assert len(watched.gates) == (spec.depth if spec.architecture == "attention" else 0)


def test_feature_maps_equal_the_outputs_of_the_parts() -> None:
    spec = UNetSpec(depth=1, width=3, in_channels=1, padding="same")
    model: Any = build(spec).eval()
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32)).astype(np.uint8)
    watched = record_activations(model, image)
    halo, read = model.shape.halo, model.shape.read_px(32)
    padded = np.pad(image, ((0, 0), (halo, read - 32 - halo), (halo, read - 32 - halo)), mode="reflect")
    with torch.no_grad():
        x = to_input(torch.from_numpy(padded), spec)
        down = model.down[0](x)
        bottom = model.bottom(model.pool(down))
        up = model.join[0](torch.cat([down, model.up[0](bottom)], 1))
    found = {one.name: one.values_CYX for one in watched.levels}
    inside, half = slice(halo, halo + 32), slice(halo // 2, halo // 2 + 16)
    assert [*found] == ["down 1", "bottom", "up 1"]
    assert np.array_equal(found["down 1"], down[0, :, inside, inside].numpy())
    assert np.array_equal(found["bottom"], bottom[0, :, half, half].numpy())
    assert np.array_equal(found["up 1"], up[0, :, inside, inside].numpy())


@pytest.mark.parametrize("skip", ["concat", "add"])
def test_the_gradient_of_a_skip_equals_that_of_a_copy_of_its_tensor(skip: Any) -> None:
    model: Any = build(UNetSpec(depth=1, width=3, in_channels=1, padding="same", skip=skip)).eval()
    x, target = torch.randn(2, 1, 16, 16), torch.randint(0, 2, (2, 16, 16))
    (flow,) = skip_gradients(model, lambda: functional.cross_entropy(model(x), target))
    down = model.down[0](x)
    handed, below = (one.detach().requires_grad_() for one in (down, model.up[0](model.bottom(model.pool(down)))))
    joined = torch.cat([handed, below], 1) if skip == "concat" else handed + below
    functional.cross_entropy(model.head(model.join[0](joined)), target).backward()
    assert flow.name == "skip 1"
    assert flow.skip == pytest.approx(norm_of(handed), rel=1e-5)
    assert flow.below == pytest.approx(norm_of(below), rel=1e-5)
    assert norm_of(handed) > 0


def norm_of(leaf: Tensor) -> float:
    assert leaf.grad is not None
    return float(leaf.grad.norm())


def test_attention_weights_are_those_of_the_gates() -> None:
    """Weights of the gates and gradients of the weighted skips."""
    model: Any = build(ATTENTION).eval()
    image = np.random.default_rng(0).integers(0, 256, (1, 16, 16)).astype(np.uint8)
    (gate,) = record_activations(model, image).gates
    assert gate.values_CYX.shape == (1, 16, 16)
    assert (gate.values_CYX > 0).all()
    assert (gate.values_CYX < 1).all()
    head, layer, reduce = model.model
    x, target = torch.randn(1, 1, 16, 16), torch.randint(0, 2, (1, 16, 16))
    (flow,) = skip_gradients(model, lambda: functional.cross_entropy(model(x), target))
    with torch.no_grad():
        lower = layer.upconv(layer.submodule(head(x)))
        let_through = layer.attention(g=lower, x=head(x))
    let_through.requires_grad_()
    functional.cross_entropy(reduce(layer.merge(torch.cat([let_through, lower], 1))), target).backward()
    assert flow.skip == pytest.approx(norm_of(let_through), rel=1e-5)


def test_every_skip_of_a_nested_network_is_measured_and_no_gradient_remains() -> None:
    model = build(NESTED).train()
    x = torch.randn(1, 1, 32, 32)
    flows = skip_gradients(model, lambda: model(x).square().mean())
    assert len(flows) == 10
    assert all(flow.skip > 0 for flow in flows)
    assert {part.name for part in network_parts(model).joins} == {flow.name for flow in flows}
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_a_network_without_skips_has_no_skip_gradients() -> None:
    model = build(UNetSpec(depth=1, width=2, in_channels=1, padding="same", skip="none"))
    assert skip_gradients(model, lambda: model(torch.randn(1, 1, 16, 16)).mean()) == ()
