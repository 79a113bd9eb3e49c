"""The U-Net: the paper's figure, parameter counts, initialisation and skips."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unet_core.networks.unet import UNet, initialise_he
from unet_core.spec import UNetSpec, preset

# Figure 1 of the paper: (channels, side) after every convolution, pooling and up-convolution, in order.
DOWN = "64.570 64.568 64.284 128.282 128.280 128.140 256.138 256.136 256.68 512.66 512.64 512.32 1024.30 1024.28"
UP = "512.56 512.54 512.52 256.104 256.102 256.100 128.200 128.198 128.196 64.392 64.390 64.388 2.388"
FIGURE = [tuple(int(number) for number in pair.split(".")) for pair in f"{DOWN} {UP}".split()]
JOINED = [(1024, 56), (512, 104), (256, 200), (128, 392)]  # copy and crop: input of each first convolution going up


def parameters(spec: UNetSpec) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in UNet(spec).parameters())


def test_the_paper_from_572_to_388() -> None:
    with torch.device("meta"):
        model = UNet(preset("paper"))
    sizes: list[tuple[int, int]] = []
    joined: list[tuple[int, int]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert output.shape[2] == output.shape[3]
        sizes.append((output.shape[1], output.shape[2]))

    def note_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        joined.append((inputs[0].shape[1], inputs[0].shape[2]))

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.MaxPool2d):
            module.register_forward_hook(note)
    for convolve in model.join:
        convolve.register_forward_pre_hook(note_input)
    logits = model(torch.empty(1, 1, 572, 572, device="meta"))
    assert sizes == FIGURE
    assert joined == JOINED
    assert logits.shape == (1, 2, 388, 388)


def test_parameter_counts() -> None:
    assert parameters(preset("paper")) == 31_030_658
    assert parameters(preset("padded")) == 31_030_658
    assert parameters(preset("tiny")) == 1_941_122
    convolutions = [m for m in UNet(preset("tiny")).modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert len(convolutions) == 23  # the paper: "In total the network has 23 convolutional layers"


def test_padded_keeps_the_size() -> None:
    with torch.device("meta"):
        assert UNet(preset("padded"))(torch.empty(1, 1, 256, 256)).shape == (1, 2, 256, 256)
        assert UNet(preset("lesson"))(torch.empty(1, 3, 96, 64)).shape == (1, 2, 96, 64)


@pytest.mark.parametrize("layer", [nn.Conv2d(32, 64, 3), nn.ConvTranspose2d(64, 512, 2, stride=2)])
def test_he_initialisation(layer: Any) -> None:
    torch.manual_seed(0)
    initialise_he(layer)
    incoming = 32 * 9 if isinstance(layer, nn.Conv2d) else 64
    assert float(layer.weight.detach().std()) == pytest.approx(math.sqrt(2 / incoming), rel=0.02)
    assert not layer.bias.any()


def test_activations_keep_their_scale_through_the_network() -> None:
    torch.manual_seed(0)
    model = UNet(UNetSpec(depth=3, width=16)).eval()
    logits = model(torch.randn(1, 3, 188, 188))
    assert 0.1 < float(logits.detach().std()) < 10


def test_the_skip_is_cropped_about_its_centre() -> None:
    """With all weights 0 except an identity through the skip, the output is the centre of the input."""
    model = UNet(UNetSpec(depth=2, width=1, growth=1, in_channels=1, skip="add", head="sigmoid")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for name in ("down.0.0", "down.0.2", "join.1.0", "join.1.2"):
            model.get_parameter(f"{name}.weight")[0, 0, 1, 1] = 1
        model.get_parameter("head.weight").fill_(1)
    x = torch.rand(1, 1, 44, 60)
    torch.testing.assert_close(model(x), x[:, :, 20:-20, 20:-20], rtol=0, atol=0)


def test_dropout_only_in_training() -> None:
    torch.manual_seed(0)
    model = UNet(UNetSpec(depth=1, width=8, dropout=0.5))
    x = torch.randn(1, 3, 34, 34)
    assert not torch.equal(model.train()(x), model(x))
    assert torch.equal(model.eval()(x), model(x))
