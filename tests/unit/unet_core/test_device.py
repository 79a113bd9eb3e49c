"""Choice of device and precision."""

from __future__ import annotations

import pytest
import torch

from tests.unit.unet_core.training_runs import recipe
from unet_core.device import multiplies_bf16, resolve_device
from unet_core.errors import DeviceError
from unet_core.networks.unet import UNet
from unet_core.spec import UNetSpec
from unet_core.training.loss import LossSettings, loss_for
from unet_core.training.train_state import TrainState, learns_in_bf16

SPEC = UNetSpec(depth=1, width=2)


@pytest.mark.parametrize(("available", "auto"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_cuda_if_available(monkeypatch: pytest.MonkeyPatch, available: bool, auto: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert resolve_device("auto") == auto
    assert resolve_device("cpu") == "cpu"


def test_a_missing_device_is_rejected_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    requested = recipe(compute={"device": "cuda"})
    with pytest.raises(DeviceError, match=r"compute\.device=cuda: torch sees no CUDA device here\. Use cpu"):
        TrainState.of(UNet(SPEC), loss_for(LossSettings(), SPEC, (0.5, 0.5)), requested)


@pytest.mark.parametrize(("avx", "amx"), [(True, False), (False, True), (False, False)])
def test_bf16_is_used_where_it_is_fast(monkeypatch: pytest.MonkeyPatch, avx: bool, amx: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert multiplies_bf16("cpu") is (avx or amx)
    assert multiplies_bf16("cuda")
    for precision, expected in (("auto", avx or amx), ("bf16", True), ("fp32", False)):
        assert learns_in_bf16(recipe(compute={"precision": precision}), "cpu") is expected
