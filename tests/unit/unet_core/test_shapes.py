"""ValidShape equals the real network: sizes, reach, and exactness of any core."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_core.errors import SizeError
from unet_core.mirror import Square, read_mirrored
from unet_core.networks.unet import UNet
from unet_core.shapes import ValidShape
from unet_core.spec import UNetSpec

UPS = ("transposed", "nearest", "bilinear")
VARIANTS = [
    {"padding": padding, "up": up, "skip": skip}
    for padding, up, skip in product(("valid", "same"), UPS, ("concat", "add", "none"))
]


def small_spec(depth: int, **changes: Any) -> UNetSpec:
    fields = {"depth": depth, "width": 2, "growth": 1, "in_channels": 1, "classes": 2, **changes}
    return UNetSpec.model_validate(fields)


def positive_network(spec: UNetSpec) -> UNet:
    """A network with positive weights: every input pixel in reach raises the output."""
    model = UNet(spec).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.rand(parameter.shape, generator=generator, dtype=torch.float64) + 0.1
            parameter.copy_(drawn / drawn[0].numel() if parameter.ndim > 1 else 0 * drawn)
    return model


def he_network(spec: UNetSpec) -> UNet:
    torch.manual_seed(1)
    return UNet(spec).double().eval()


def output_sides(spec: UNetSpec, input_px: int) -> list[int]:
    """Sides at every stage of the paper's figure; empty if a step is impossible."""
    cut = 0 if spec.padding == "same" else 4
    sides, side = [input_px], input_px
    for _ in range(spec.depth):
        side -= cut
        if side < 2 or side % 2:
            return []
        side //= 2
        sides.append(side)
    side -= cut
    for _ in range(spec.depth):
        if side < 1:
            return []
        side = 2 * side - cut - (2 if cut and spec.up == "bilinear" else 0)
        sides.append(side)
    return sides if side >= 1 else []


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("up", UPS)
@pytest.mark.parametrize("depth", range(1, 7))
def test_legal_sizes_equal_those_of_the_paper_s_figure(depth: int, padding: str, up: str) -> None:
    spec = small_spec(depth, padding=padding, up=up)
    shape = ValidShape.of(spec)
    for input_px in range(1, shape.smallest_px + 3 * shape.step + 1):
        sides = output_sides(spec, input_px)
        assert shape.is_legal(input_px) == bool(sides)
        if sides:
            assert shape.output_px(input_px) == sides[-1]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(v.values()))
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_output_sizes_of_the_network_equal_the_arithmetic(depth: int, variant: dict[str, str]) -> None:
    spec = small_spec(depth, **variant)
    shape = ValidShape.of(spec)
    with torch.device("meta"):
        model = UNet(spec)
        for input_px in (shape.smallest_px, shape.smallest_px + 3 * shape.step):
            logits = model(torch.empty(1, 1, input_px, input_px + shape.step))
            assert logits.shape[2:] == (shape.output_px(input_px), shape.output_px(input_px + shape.step))


def test_the_paper_at_depth_four() -> None:
    shape = ValidShape.of(UNetSpec())
    assert (shape.step, shape.halo, shape.smallest_px, shape.crop_px) == (16, 92, 188, 0)
    assert shape.output_px(572) == 388
    assert [shape.read_px(core) for core in (384, 512, 1024, 2048)] == [572, 700, 1212, 2236]
    assert [shape.surplus_px(core) for core in (384, 388, 390)] == [4, 0, 14]


def test_known_halos() -> None:
    halos = {(p, u): ValidShape.of(small_spec(4, padding=p, up=u)).halo for p in ("valid", "same") for u in UPS}
    assert halos["valid", "transposed"] == halos["valid", "nearest"] == 92
    assert halos["valid", "bilinear"] == 107
    assert halos["same", "transposed"] == halos["same", "nearest"] == 96
    assert halos["same", "bilinear"] == 112


def averaging(depth: int, up: str) -> UNet:
    """A positive same-padded network with average pooling, so every pixel in reach affects the output."""
    model = positive_network(small_spec(depth, padding="same", up=up))
    model.pool = torch.nn.AvgPool2d(2)  # type: ignore[assignment]  # for these tests only
    return model


def cell_reach(depth: int, up: str) -> tuple[int, int]:
    """Reach of non-zero gradients of the real network before and after a cell."""
    step = 2**depth
    start = 9 * step
    x = torch.rand(1, 1, 2 * start + step, step, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(averaging(depth, up)(x)[0, :, start : start + step].sum(), x)
    reached = gradient[0, 0].abs().amax(dim=1).nonzero().ravel()
    return start - int(reached.min()), int(reached.max()) - start - step + 1


@pytest.mark.parametrize("up", UPS)
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_the_halo_of_same_padding_is_a_cells_reach_rounded_up(depth: int, up: str) -> None:
    shape = ValidShape.of(small_spec(depth, padding="same", up=up))
    before, after = cell_reach(depth, up)
    assert before == after
    assert shape.halo - shape.step < before <= shape.halo
    assert shape.halo % shape.step == 0


@given(
    data=st.data(),
    depth=st.integers(1, 3),
    variant=st.sampled_from(VARIANTS),
    batch=st.booleans(),
    positive=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_any_core_on_the_step_equals_the_whole_pass(
    data: st.DataObject, depth: int, variant: dict[str, str], batch: bool, positive: bool
) -> None:
    spec = small_spec(depth, norm="batch" if batch else "none", **variant)
    shape = ValidShape.of(spec)
    model = positive_network(spec) if positive else he_network(spec)
    image = torch.rand(1, 45, 58, generator=torch.Generator().manual_seed(2), dtype=torch.float64).numpy()
    y0, x0 = (data.draw(st.integers(0, side // shape.step - 1)) * shape.step for side in image.shape[1:])
    core = data.draw(st.integers(1, 24))
    whole = whole_pass(model, image)[:, y0 : y0 + core, x0 : x0 + core]
    tile = read_core(model, image, (y0, x0), core)[:, : whole.shape[1], : whole.shape[2]]
    np.testing.assert_allclose(tile, whole, rtol=1e-10, atol=1e-12)


def read_core(model: UNet, image: np.ndarray[Any, Any], start: tuple[int, int], core: int) -> np.ndarray[Any, Any]:
    """Logits (c, core, core) of one tile, read according to ValidShape."""
    shape = model.shape
    read = shape.read_px(core)
    y0, x0 = (axis - shape.halo for axis in start)
    with torch.no_grad():
        logits = model(torch.from_numpy(read_mirrored(image, Square(y0, x0, y0 + read, x0 + read)).copy())[None])
    inside = slice(shape.crop_px, shape.crop_px + core)
    result: np.ndarray[Any, Any] = logits[0, :, inside, inside].numpy()
    return result


def whole_pass(model: UNet, image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Logits of the whole image from one pass over an np.pad mirror image wider than any halo."""
    step, halo = model.shape.step, model.shape.halo
    before = halo + 4 * step  # same padding: its zeros stay far away
    height, width = image.shape[1:]
    legal = model.shape.nearest_legal(max(height, width) + 2 * before + 2 * step)[-1]
    after = [legal - before - side for side in (height, width)]
    padded = np.pad(image, ((0, 0), (before, after[0]), (before, after[1])), mode="reflect")
    with torch.no_grad():
        logits = model(torch.from_numpy(padded)[None])[0].numpy()
    at = before - (halo if model.spec.padding == "valid" else 0)
    result: np.ndarray[Any, Any] = logits[:, at : at + height, at : at + width]
    return result


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_control_off_the_step_is_not_exact(padding: str) -> None:
    model = he_network(small_spec(3, padding=padding))
    image = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(3), dtype=torch.float64).numpy()
    whole = whole_pass(model, image)
    assert np.allclose(read_core(model, image, (16, 24), 16), whole[:, 16:32, 24:40])
    assert not np.allclose(read_core(model, image, (16, 20), 16), whole[:, 16:32, 20:36])


@pytest.mark.parametrize("up", ["transposed", "bilinear"])
def test_control_a_halo_one_step_short_is_not_exact(up: str) -> None:
    """A bright pixel at the end of the reach affects the whole pass but not a tile with a short halo."""
    model = averaging(3, up)
    image = np.zeros((1, 144, 144))
    image[0, 64 - cell_reach(3, up)[0], 72] = 1
    whole = whole_pass(model, image)[:, 64:80, 64:80]
    assert whole.any()
    np.testing.assert_allclose(read_core(model, image, (64, 64), 16), whole, rtol=1e-10)
    halo = model.shape.halo - model.shape.step
    model.shape = ValidShape(8, halo, 8, 0, halo)
    assert not read_core(model, image, (64, 64), 16).any()


@given(
    core=st.integers(1, 3000),
    depth=st.integers(1, 6),
    padding=st.sampled_from(["valid", "same"]),
    up=st.sampled_from(UPS),
)
def test_a_read_is_the_smallest_legal_one_for_core_and_halos(core: int, depth: int, padding: str, up: str) -> None:
    shape = ValidShape.of(small_spec(depth, padding=padding, up=up))
    read = shape.read_px(core)
    assert shape.is_legal(read)
    assert read == core + 2 * shape.halo + shape.surplus_px(core)
    assert shape.output_px(read) >= core + 2 * shape.crop_px
    smaller = read - shape.step
    assert not shape.is_legal(smaller) or smaller < core + 2 * shape.halo


def test_refusals_name_the_nearest_sizes() -> None:
    shape = ValidShape.of(UNetSpec())
    with pytest.raises(SizeError, match=r"input of 570 px.*nearest legal: 556 or 572 px"):
        shape.output_px(570)
    with pytest.raises(SizeError, match="nearest legal: 188 px"):
        shape.output_px(-3)
    with pytest.raises(SizeError, match="core of 0 px"):
        shape.read_px(0)


def test_the_network_rejects_sizes_that_torch_would_round_down() -> None:
    with torch.device("meta"), pytest.raises(SizeError, match="573 px"):
        UNet(small_spec(4))(torch.empty(1, 1, 572, 573))
