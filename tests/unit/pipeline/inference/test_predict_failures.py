"""Failures of the network: running out of memory halves the tile, a non-finite output is an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import ModelError
from pipeline.geometry import Box
from pipeline.inference.predictor import MirroredRegion, Predictor, activate
from pipeline.stages import predict
from pipeline.storage.layout import PROBABILITY
from tests.support.make_store import tree_bytes
from tests.unit.pipeline.predicting import (
    PLAN,
    assert_equal_to_rounding,
    cut,
    forward_of,
    network_of,
    slide,
    with_forward,
)
from unet_core.model_file.checkpoint import save
from unet_core.networks.unet import UNet
from unet_core.spec import UNetSpec

# ---- out of memory -------------------------------------------------------------------------------------------------


def without_memory_above(network: Predictor, side_px: int) -> tuple[Predictor, list[int]]:
    """The same network on a device that runs out of memory above ``side_px``; and the widths of its inputs."""
    given: list[int] = []

    def forward(x_NCHW: torch.Tensor) -> torch.Tensor:
        given.append(x_NCHW.shape[-1])
        if x_NCHW.shape[-1] > side_px:
            raise torch.OutOfMemoryError(f"tried to allocate {x_NCHW.numel()} floats")
        return forward_of(network)(x_NCHW)

    return with_forward(network, forward), given


@pytest.mark.parametrize(("tile", "fits", "side"), [(512, 444, 256), (384, 380, 192), (512, 316, 128)])
def test_fault_12_out_of_memory_halves_the_tile_and_changes_no_byte(
    wide: Path, tile: int, fits: int, side: int
) -> None:
    network = network_of(wide)
    image, core = cut(400, 400), Box(0, 0, 384, 384)
    region = MirroredRegion.read_around(image, network.grid(core, tile))
    small, given = without_memory_above(network, fits)
    halved = small.probability(region, core, tile)
    assert np.array_equal(halved, network.probability(region, core, tile))
    assert small.largest_px == side
    assert given[-1] == side + 188
    tried = len(given)
    small.probability(region, Box(0, 0, 64, 64), tile)
    assert set(given[tried:]) == {side + 188}, "what did not fit once is not tried again"


@pytest.mark.parametrize(("tile", "fits", "side"), [(256, 316, 128), (240, 316, 112), (64, 204, 16)])
def test_narrow_networks_and_small_inputs_round_at_most_one_level_differently(
    network: Predictor, tile: int, fits: int, side: int
) -> None:
    image, core = cut(180, 180), Box(0, 0, 100, 164)
    region = MirroredRegion.read_around(image, network.grid(core, tile))
    small, _ = without_memory_above(network, fits)
    assert_equal_to_rounding(small.probability(region, core, tile), network.probability(region, core, tile))
    assert small.largest_px == side


def test_out_of_memory_in_the_middle_of_a_block_leaves_no_trace_in_it(wide: Path) -> None:
    network = network_of(wide)
    image, core = cut(300, 500), Box(0, 0, 256, 500)
    region = MirroredRegion.read_around(image, network.grid(core, 256))
    calls = 0

    def forward(x_NCHW: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise torch.OutOfMemoryError("out of memory")
        return forward_of(network)(x_NCHW)

    found = with_forward(network, forward).probability(region, core, 256)
    assert np.array_equal(found, network.probability(region, core, 256))


def test_fault_12_run_with_halved_tiles_writes_same_bytes_and_reports_it(
    tmp_path: Path, wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = cut(300, 600)
    undisturbed, halved = (slide(tmp_path / name, image, weights=wide, tile=512) for name in ("one", "two"))
    assert undisturbed.run().counts["halved"] == 0
    small, _ = without_memory_above(network_of(wide), 500)
    monkeypatch.setattr(predict, "load_network", lambda section: small)
    assert halved.run().counts["halved"] > 0
    assert tree_bytes(halved.work.store.zarr) == tree_bytes(undisturbed.work.store.zarr)


def test_fault_12_no_memory_for_smallest_tile_is_an_error(
    tmp_path: Path, network: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = slide(tmp_path, cut(100, 100))
    small, given = without_memory_above(network, 0)
    monkeypatch.setattr(predict, "load_network", lambda section: small)
    with pytest.raises(ModelError, match="out of memory even for the smallest tile"):
        made.run()
    assert given == [444, 316, 252, 220, 204], "each half tried once"
    assert made.work.store.done(PROBABILITY, PLAN) == set()
    assert made.work.store.stamped("predict") is None


def test_other_device_errors_do_not_halve_tile(network: Predictor) -> None:
    def forward(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("device-side assert")

    core = Box(0, 0, 64, 64)
    broken = with_forward(network, forward)
    with pytest.raises(RuntimeError, match="device-side assert"):
        broken.probability(MirroredRegion.read_around(cut(64, 64), network.grid(core, 64)), core, 64)
    assert broken.largest_px is None


# ---- not a number --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("channel", [0, 1])
@pytest.mark.parametrize("place", [(0, 0), (99, 99), (50, 3)])
def test_fault_57_single_non_finite_logit_fails_slide(
    tmp_path: Path,
    network: Predictor,
    monkeypatch: pytest.MonkeyPatch,
    value: float,
    channel: int,
    place: tuple[int, int],
) -> None:
    def forward(x_NCHW: torch.Tensor) -> torch.Tensor:
        logits = forward_of(network)(x_NCHW)
        logits[0, channel, *place] = value
        return logits

    made = slide(tmp_path, cut(100, 100), tile=128)
    monkeypatch.setattr(predict, "load_network", lambda section: with_forward(network, forward))
    with pytest.raises(ModelError, match="not finite"):
        made.run()
    assert made.work.store.done(PROBABILITY, PLAN) == set()
    assert made.work.store.stamped("predict") is None


def test_infinities_of_both_signs_do_not_cancel() -> None:
    logits = torch.zeros(2, 4, 4)
    logits[0, 0, 0], logits[0, 0, 1] = float("inf"), float("-inf")
    with pytest.raises(ModelError, match="not finite"):
        activate(logits, UNetSpec(), torch.float32)


def test_overflow_in_half_precision_names_remedy() -> None:
    logits = torch.full((2, 4, 4), 70_000.0).to(torch.float16).float()
    with pytest.raises(ModelError, match=r"overflow.*bf16 or fp32"):
        activate(logits, UNetSpec(), torch.float16)


def test_weights_that_are_not_finite_give_no_background(tmp_path: Path) -> None:
    model = UNet(UNetSpec(depth=1, width=2))
    with torch.no_grad():
        for name in ("down.0.0.weight", "down.0.2.weight", "bottom.0.weight", "bottom.2.weight"):
            model.get_parameter(name).fill_(1e15)
    save(tmp_path / "huge.safetensors", model, {})
    made = slide(
        tmp_path / "slide", np.full((3, 60, 60), 250, np.uint8), weights=tmp_path / "huge.safetensors", tile=64
    )
    with pytest.raises(ModelError, match="not finite"):
        made.run()
