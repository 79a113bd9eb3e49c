"""Overhead of training relative to a bare loop.

Measured are the weight map and the rate of training steps. Both sides take the same steps with the same network,
settings and tiles, in turns, in wall seconds. The bare side uses tiles drawn beforehand; the other draws them as a
training run does, weight maps and augmentation included, and starts every turn with an empty queue.

    python tests/benchmarks/bench_training.py [STEPS [ROUNDS]]
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unet_core.data.augmentation import Augmentation
from unet_core.data.prefetch import Batches
from unet_core.data.sampler import AnnotatedImage, SampleBatch, Sampler, Sampling
from unet_core.data.weight_map import separation_weights
from unet_core.networks.unet import UNet
from unet_core.shapes import ValidShape
from unet_core.spec import preset
from unet_core.training.loss import LossSettings, loss_for

MAP_PX, MAP_OBJECTS = 1000, 300
IMAGES, IMAGE_PX, OBJECTS = 16, (256, 320), 42
"""Similar to the annotated images of nuclei that the built-in model was trained on."""


def discs(size: tuple[int, int], count: int, seed: int) -> NDArray[np.int32]:
    """Return labels of ``count`` discs of 4 to 14 px radius, each at least partly visible."""
    generator = np.random.default_rng(seed)
    labels = np.zeros(size, np.int32)
    y, x = np.ogrid[: size[0], : size[1]]
    for label in range(1, count + 1):
        while True:
            (cy, cx), radius = generator.integers(0, size), generator.integers(4, 15)
            free = ((y - cy) ** 2 + (x - cx) ** 2 < radius**2) & (labels == 0)
            if free.any():
                labels[free] = label
                break
    assert len(np.unique(labels)) == count + 1
    return labels


def picture(labels_YX: NDArray[np.int32], seed: int) -> NDArray[np.uint8]:
    """Return a picture of the discs as stained nuclei."""
    generator = np.random.default_rng(seed)
    nucleus, tissue = (np.reshape(rgb, (3, 1, 1)) for rgb in ((90, 60, 140), (230, 170, 200)))
    colours = np.where(labels_YX[None] > 0, nucleus, tissue)
    return (colours + generator.normal(0, 8, colours.shape)).clip(0, 255).astype(np.uint8)


def measure_map(rounds: int = 5) -> dict[str, float]:
    """Measure the seconds of computing the weight map of one image."""
    labels = discs((MAP_PX, MAP_PX), MAP_OBJECTS, 0)
    seconds = []
    for _ in range(rounds):
        began = time.monotonic()
        separation_weights(labels)
        seconds.append(time.monotonic() - began)
    return {"weight_map_s": statistics.median(seconds)}


class BareLoop:
    """Forward, backward, step: the preset `tiny` with AdamW, in half precision if the processor supports it."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = UNet(preset("tiny")).train()
        self.model.to(memory_format=torch.channels_last)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.loss = loss_for(LossSettings(), self.model.spec)

    def steps(self, batches: Iterable[SampleBatch]) -> float:
        """Return the wall seconds of one step per batch."""
        began = time.monotonic()
        for batch in batches:
            x_NCHW = ((batch.image_NCHW - 0.5) / 0.25).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                logits_NCHW = self.model(x_NCHW)
            loss = self.loss(logits_NCHW, batch.target_NHW, batch.weight_NHW)
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimiser.step()
            loss.item()
        return time.monotonic() - began


def cpu_seconds(function: Callable[[], object], times: int = 5) -> float:
    """Return the CPU seconds of this process for one call, all threads."""
    began = time.process_time()
    for _ in range(times):
        function()
    return (time.process_time() - began) / times


def measure_steps(steps: int, rounds: int) -> dict[str, float]:
    """Measure seconds per step of the bare loop, and the median ratio of its time to that of a run."""
    labels = [discs(IMAGE_PX, OBJECTS, seed) for seed in range(IMAGES)]
    cases = [AnnotatedImage(str(seed), picture(one, seed), one) for seed, one in enumerate(labels)]
    loop, sampling = BareLoop(), Sampling()
    shape = ValidShape.of(loop.model.spec)
    read_px = shape.read_px(sampling.output_px)
    sampler = Sampler(cases, (read_px, shape.output_px(read_px)), sampling, Augmentation())
    generator = torch.Generator().manual_seed(0)
    prepared = [sampler.draw(generator) for _ in range(steps)]
    loop.steps(prepared[:2])
    drawing_s, bare_cpu_s = cpu_seconds(lambda: sampler.draw(generator)), cpu_seconds(lambda: loop.steps(prepared[:1]))
    bare_s, run_s = [], []
    for number in range(rounds):
        for side in ("bare", "run") if number % 2 else ("run", "bare"):
            if side == "bare":
                bare_s.append(loop.steps(prepared))
            else:
                with Batches(sampler, torch.Generator().manual_seed(0)) as batches:
                    run_s.append(loop.steps(islice(batches, steps)))
    ratios = [bare / run for bare, run in zip(bare_s, run_s, strict=True)]
    return {
        "bare_step_s": statistics.median(bare_s) / steps,
        "drawing_over_bare_step_cpu": drawing_s / bare_cpu_s,
        "step_over_bare": statistics.median(ratios),
        "step_over_bare_lowest": min(ratios),
        "step_over_bare_highest": max(ratios),
    }


def main(steps: int = 20, rounds: int = 5) -> dict[str, Any]:
    """Run both measurements."""
    return {"steps": steps, "rounds": rounds, **measure_map(), **measure_steps(steps, rounds)}


if __name__ == "__main__":
    print(json.dumps(main(*map(int, sys.argv[1:])), indent=1))
