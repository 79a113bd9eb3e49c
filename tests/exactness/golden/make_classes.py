"""Make classes.safetensors, a three-class network with known class maps.

Its weights are set by hand; the network is not trained. Flat red is "red cell", flat blue is "blue cell", anything
bright or without colour is background. It has two levels for the sake of the geometry; the weights of the deeper one
are zero.

    python tests/exactness/golden/make_classes.py
"""

from __future__ import annotations

from pathlib import Path

import torch

from unet_core.model_file.checkpoint import save
from unet_core.networks.unet import UNet
from unet_core.spec import UNetSpec

SPEC = UNetSpec(
    depth=2,
    width=2,
    classes=3,
    mpp=0.5,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    class_names=("red cell", "blue cell"),
    colours=((200, 30, 30), (30, 60, 200)),
)
STRENGTH = 20.0  # logit of a pure colour over background: probability 255 of 255


def by_hand() -> UNet:
    """Return a network with logits (background 0, red 20 * (2 (r - b) - 1), blue 20 * (2 (b - r) - 1)).

    White, grey and green give both colours -20; pure red gives red +20. A pixel depends on its own colour only.
    """
    model = UNet(SPEC).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        first, second = (model.get_parameter(f"down.0.{i}.weight") for i in (0, 2))
        first[0, :, 1, 1] = torch.tensor([1.0, 0.0, -1.0])  # r - b
        first[1, :, 1, 1] = torch.tensor([-1.0, 0.0, 1.0])  # b - r
        for channel in range(2):
            second[channel, channel, 1, 1] = 1.0
        last = len(model.join) - 1
        for i in (0, 2):
            for channel in range(2):  # the skipped features come first in the concatenation
                model.get_parameter(f"join.{last}.{i}.weight")[channel, channel, 1, 1] = 1.0
        for channel in range(2):
            model.get_parameter("head.weight")[channel + 1, channel, 0, 0] = 2 * STRENGTH
            model.get_parameter("head.bias")[channel + 1] = -STRENGTH
    return model


if __name__ == "__main__":
    target = Path(__file__).with_name("classes.safetensors")
    save(target, by_hand(), {"task": "red and blue, by hand"}, precision="half")
