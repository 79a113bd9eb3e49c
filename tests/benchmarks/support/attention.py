"""Gain of attention gates at three ratios of class imbalance.

Both networks have equal budgets. The budget is arithmetic. Both networks are trained on the same images in the same
order, for as many steps as the same number of operations allows; the plain U-Net has the same padding, norm, depth and
width. In synthetic images, filled discs have to be distinguished from rings of the same brightness, so that the context
of a pixel decides. The ratios differ only in the number of discs. The score is the pixel Dice on held-out images at
threshold 0.5.

    python tests/benchmarks/support/attention.py [TERA_OPERATIONS] [SEEDS]
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from unet_core.networks.factory import build
from unet_core.networks.model_summary import operations_per_px
from unet_core.spec import UNetSpec

SIDE_PX, BATCH, TEST_IMAGES = 96, 4, 24
RADIUS_PX, RINGS = 5, 8
DISCS = (24, 6, 1)
"""Discs per image, covering about a fifth, a twentieth, and less than a hundredth of its pixels."""
TERA_OPERATIONS, SEEDS = 0.4, 3
BACKWARD = 3  # forward and backward together cost three forward passes

COMMON = {"depth": 3, "width": 8, "in_channels": 1, "padding": "same", "norm": "batch"}
SPECS = {name: UNetSpec.model_validate({**COMMON, "architecture": name}) for name in ("unet", "attention")}


def images(count: int, discs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return images (n, 1, h, w) and masks (n, h, w): discs among rings, with noise."""
    centres = torch.rand((count, discs + RINGS, 2), generator=generator) * SIDE_PX
    axis = torch.arange(SIDE_PX, dtype=torch.float32)
    y, x = (centres[..., None, number] - axis for number in (0, 1))
    distance = torch.hypot(y[..., :, None], x[..., None, :])  # (n, shapes, h, w)
    inside = distance[:, :discs].amin(1) <= RADIUS_PX
    on_ring = ((distance[:, discs:] - RADIUS_PX).abs().amin(1) <= 1) & ~inside
    noise = torch.randn((count, SIDE_PX, SIDE_PX), generator=generator)
    return ((inside | on_ring).float() + 0.6 * noise)[:, None], inside


def train(spec: UNetSpec, discs: int, operations: float, seed: int) -> nn.Module:
    """Return a network trained for as many steps as the operations allow."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = build(spec).train()
    steps = round(operations / (BACKWARD * operations_per_px(spec) * BATCH * SIDE_PX**2))
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        x_NCHW, inside_NYX = images(BATCH, discs, generator)
        loss = functional.cross_entropy(network(x_NCHW), inside_NYX.long())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network.eval()


def dice(network: nn.Module, discs: int) -> float:
    """Return the Dice over the pixels of all test images."""
    x_NCHW, inside_NYX = images(TEST_IMAGES, discs, torch.Generator().manual_seed(10**6))
    with torch.inference_mode():
        found = network(x_NCHW).argmax(1).bool()
    return float(2 * (found & inside_NYX).sum() / (found.sum() + inside_NYX.sum()))


def verdict(gains: Sequence[Sequence[float]]) -> str:
    """State the trend over the three ratios, if it exceeds the spread between seeds."""
    middle = [statistics.median(one) for one in gains]
    spread = max(max(one) - min(one) for one in gains)
    change = middle[-1] - middle[0]
    trend = "there is no trend" if abs(change) <= spread else f"the gain {'grows' if change > 0 else 'shrinks'}"
    return f"{trend}: from the first ratio to the last it changes by {change:+.3f}, and seeds differ by {spread:.3f}"


def main(tera_operations: float, seeds: int) -> None:
    """Train all networks and print the table."""
    torch.set_num_threads(1)
    print(f"{tera_operations} tera-operations of training for each network, seeds 0 to {seeds - 1}\n")
    print("| foreground | U-Net Dice | Attention U-Net Dice | gain, median | gain by seed |\n|---|---|---|---|---|")
    gains = []
    for discs in DISCS:
        share = images(TEST_IMAGES, discs, torch.Generator().manual_seed(10**6))[1].float().mean()
        scores = {
            name: [dice(train(spec, discs, 1e12 * tera_operations, seed), discs) for seed in range(seeds)]
            for name, spec in SPECS.items()
        }
        gains.append([ours - plain for plain, ours in zip(scores["unet"], scores["attention"], strict=True)])
        middles = " | ".join(f"{statistics.median(one):.3f}" for one in scores.values())
        each = ", ".join(f"{one:+.3f}" for one in gains[-1])
        print(f"| {share:.1%} | {middles} | {statistics.median(gains[-1]):+.3f} | {each} |", flush=True)
    print(f"\n{verdict(gains)}")


if __name__ == "__main__":
    main(float(sys.argv[1]) if sys.argv[1:] else TERA_OPERATIONS, int(sys.argv[2]) if sys.argv[2:] else SEEDS)
