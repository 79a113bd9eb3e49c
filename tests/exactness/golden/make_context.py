"""Make context.safetensors, a small network that depends on its context.

The output at a pixel depends on everything within its halo. A network that only learnt a colour shows no seam however
wrongly it is tiled. This one learns a target that needs context: is the pixel darker than its surroundings of some 90
px? The target is graded, so it saturates nowhere.

    python tests/exactness/golden/make_context.py --images DIR_OF_RGB_IMAGES --steps 700
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from skimage import io
from torch.nn import functional

from unet_core.mirror import Square, read_mirrored
from unet_core.model_file.checkpoint import save
from unet_core.networks.unet import UNet
from unet_core.shapes import ValidShape
from unet_core.spec import UNetSpec

SPEC = UNetSpec(depth=4, width=4, mpp=0.25, class_names=("dark spot",), threshold=0.5)
CORE_PX = 128


def darker_than_around(image_CYX: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return 0..1, (y, x): how much darker a spot of 4 px is than its surroundings (30 px standard deviation)."""
    grey = image_CYX.mean(axis=0) / 255
    excess = ndimage.gaussian_filter(grey, 30, mode="mirror") - ndimage.gaussian_filter(grey, 2, mode="mirror")
    target: NDArray[np.float32] = (1 / (1 + np.exp(-40 * (excess - 0.03)))).astype(np.float32)
    return target


def draw(cases: list[NDArray[np.float32]], count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return crops (n, 3, read, read) in 0..1 and their targets (n, core, core); cases are (r, g, b, target)."""
    shape = ValidShape.of(SPEC)
    read_px = shape.read_px(CORE_PX)
    crops = []
    for i in torch.randint(len(cases), (count,), generator=generator).tolist():
        y0, x0 = (int(torch.randint(side, (), generator=generator)) - read_px // 2 for side in cases[i].shape[1:])
        crop = torch.from_numpy(read_mirrored(cases[i], Square(y0, x0, y0 + read_px, x0 + read_px)).copy())
        crops.append(torch.rot90(crop, int(torch.randint(4, (), generator=generator)), (1, 2)))
    stacked = torch.stack(crops)
    noise = 0.02 * torch.randn(stacked[:, :3].shape, generator=generator)
    last = shape.halo + shape.output_px(read_px)
    return stacked[:, :3] + noise, stacked[:, 3, shape.halo : last, shape.halo : last]


def main() -> None:
    """Train for a fixed number of steps and write the file next to this script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("context.safetensors"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    cases = []
    for path in sorted(arguments.images.glob("*.png")):
        image_CYX = io.imread(path)[..., :3].transpose(2, 0, 1)
        cases.append(np.concatenate([image_CYX.astype(np.float32) / 255, darker_than_around(image_CYX)[None]]))
    model = UNet(SPEC).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(arguments.steps):
        optimiser.param_groups[0]["lr"] = 3e-3 * (1 + math.cos(math.pi * step / arguments.steps)) / 2
        x_NCHW, answer_NHW = draw(cases, 6, generator)
        logits_NCHW = model((x_NCHW - 0.5) / 0.25)
        loss = functional.binary_cross_entropy_with_logits(logits_NCHW[:, 1] - logits_NCHW[:, 0], answer_NHW)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % 50 == 49:
            print(f"step {step + 1}: loss {float(loss.detach()):.4f}", flush=True)
    save(arguments.out, model, {"task": "darker than around", "steps": arguments.steps, "seed": 0}, precision="half")


if __name__ == "__main__":
    main()
