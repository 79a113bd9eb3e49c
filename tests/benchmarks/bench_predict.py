"""Throughput of the predict stage relative to the bare network.

Also the throughput of two workers relative to one. Both sides run the same network object in the same process, block by
block in turn, and are compared in CPU seconds. The stage opens, reads, mirrors, normalises, quantises, compresses and
writes; the bare side has normalised inputs in memory and discards its outputs.

    python tests/benchmarks/bench_predict.py
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.tissue import MPP, Tissue
from torch import Tensor

from pipeline.execution.blocks import MapBlocks, StageContext
from pipeline.execution.local_cluster import local_cluster
from pipeline.geometry import Box
from pipeline.inference.predictor import MirroredRegion
from pipeline.stages.predict import PredictInputs, load_network, predict_block
from pipeline.storage.layout import PROBABILITY
from pipeline.storage.slide_store import ArraySpec, Index
from unet_core.model_file.checkpoint import save
from unet_core.model_file.header import Weights, sha256
from unet_core.networks.unet import UNet
from unet_core.networks.whole_pass import to_input
from unet_core.spec import preset

ROUNDS = 5
BLOCK_PX, TILE_PX, BLOCKS = 2048, 1024, 4
"""Blocks per side of the slide: 4 x 4 blocks in total."""
INNER: tuple[Index, ...] = ((1, 1), (1, 2), (2, 1), (2, 2))
"""Blocks with neighbours on all sides, as most blocks have; these read the most pixels."""
MAPPED = 8
"""Number of blocks that workers are timed with."""
TISSUE_FACTOR = 32


def make_slide(folder: Path) -> tuple[StageContext, PredictInputs]:
    """Make a slide as ingest and tissue leave it, all tissue, and a width-16 network with random (He) weights."""
    torch.manual_seed(0)
    weights = folder / "tiny.safetensors"
    save(weights, UNet(preset("tiny", mpp=MPP)), {"weights": "random"})
    side_px = BLOCKS * BLOCK_PX
    work = StageContext(folder / "slide", (side_px, side_px), BLOCK_PX, "predict!")
    store, tissue, low_px = work.store, Tissue(), side_px // TISSUE_FACTOR
    store.create(ArraySpec("0", (3, side_px, side_px), "uint8", BLOCK_PX, "ingest!!", codec="lz4"))
    for tile in work.grid:
        store.write_block("0", "ingest!!", tile.core, tissue.cut(tile.core).transpose(2, 0, 1).copy())
    store.create(ArraySpec("tissue", (low_px, low_px), "bool", BLOCK_PX, "tissue!!"))
    store.write_block("tissue", "tissue!!", Box(0, 0, low_px, low_px), np.ones((low_px, low_px), bool))
    store.create(ArraySpec(PROBABILITY, (1, side_px, side_px), "uint8", BLOCK_PX, work.plan_hash))
    inputs = PredictInputs(
        weights=(Weights(weights, sha256(weights)),),
        tta="none",
        foreground=1,
        step_px=16,
        device="cpu",
        precision="fp32",
        tile_px=TILE_PX,
        tissue_factor=TISSUE_FACTOR,
        cells=None,
        colours=(),
    )
    return work, inputs


def inputs_of(work: StageContext, section: PredictInputs, index: Index) -> list[Tensor]:
    """Return the network's inputs for one block: x_NCHW in fp32, channels last."""
    network = load_network(section)
    grid = network.grid(work.core(index), section.tile_px)
    region = MirroredRegion.read_around(work.store.read("0"), grid)
    spec = network.members[0].spec
    return [to_input(torch.from_numpy(region.read(tile.read)), spec, network.dtype) for tile in grid]


def bare(forward: Callable[[Tensor], Tensor], inputs: list[Tensor]) -> None:
    """Run the network over the tiles and discard its outputs."""
    with torch.inference_mode():
        for x_NCHW in inputs:
            forward(x_NCHW)


def cpu_seconds(function: Callable[[], object]) -> float:
    """Return the CPU seconds of a call in this process, all threads."""
    start = time.process_time()
    function()
    return time.process_time() - start


def measure_plumbing(work: StageContext, section: PredictInputs, rounds: int) -> dict[str, float]:
    """Measure throughput of the stage and the bare network in MPx per CPU second, and the median ratio."""
    forward = load_network(section).members[0].forward
    inputs = {index: inputs_of(work, section, index) for index in INNER}
    seconds: dict[str, list[float]] = {"stage": [], "bare": []}
    for number in range(rounds + 1):  # the first round warms up
        spent = dict.fromkeys(seconds, 0.0)
        for turn, index in enumerate(INNER):
            sides: dict[str, Callable[[], object]] = {
                "stage": partial(predict_block, work, section, index),
                "bare": partial(bare, forward, inputs[index]),
            }
            for side in sorted(sides, reverse=bool((turn + number) % 2)):
                spent[side] += cpu_seconds(sides[side])
        for side in seconds:
            seconds[side].extend([spent[side]] if number else [])
    mpx = len(INNER) * BLOCK_PX**2 / 1e6
    ratios = [bare_s / stage_s for bare_s, stage_s in zip(seconds["bare"], seconds["stage"], strict=True)]
    return {
        "stage_mpx_per_cpu_s": mpx / statistics.median(seconds["stage"]),
        "bare_mpx_per_cpu_s": mpx / statistics.median(seconds["bare"]),
        "stage_over_bare": statistics.median(ratios),
        "stage_over_bare_lowest": min(ratios),
        "stage_over_bare_highest": max(ratios),
    }


def wall_seconds(work: StageContext, section: PredictInputs, map_blocks: MapBlocks, blocks: int) -> float:
    """Return the wall seconds for the first blocks of the slide."""
    start = time.monotonic()
    indices: Iterator[Index] = (tile.index for tile in islice(work.grid, blocks))
    done = list(map_blocks(partial(predict_block, work, section), indices))
    assert len(done) == blocks
    return time.monotonic() - start


def measure_workers(work: StageContext, section: PredictInputs, rounds: int) -> dict[str, float]:
    """Measure wall seconds with one and with two warm workers, and the median of the rounds' ratios."""
    one_s, two_s = [], []
    with local_cluster(1) as one, local_cluster(2) as two:
        for cluster in (one, two):
            list(cluster(partial(predict_block, work, section), INNER))  # loads the network in every worker
        for number in range(rounds):
            if number % 2:
                two_s.append(wall_seconds(work, section, two, MAPPED))
            one_s.append(wall_seconds(work, section, one, MAPPED))
            if not number % 2:
                two_s.append(wall_seconds(work, section, two, MAPPED))
    ratios = [slow / fast for slow, fast in zip(one_s, two_s, strict=True)]
    return {
        "one_worker_wall_s": statistics.median(one_s),
        "two_workers_wall_s": statistics.median(two_s),
        "two_workers_over_one": statistics.median(ratios),
        "two_workers_over_one_lowest": min(ratios),
        "two_workers_over_one_highest": max(ratios),
    }


def measure_predict(rounds: int = ROUNDS) -> dict[str, Any]:
    """Run both measurements on one slide."""
    with tempfile.TemporaryDirectory() as folder:
        work, section = make_slide(Path(folder))
        plumbing = measure_plumbing(work, section, rounds)
        return {"rounds": rounds, **plumbing, **measure_workers(work, section, rounds)}


if __name__ == "__main__":
    print(json.dumps(measure_predict(int(sys.argv[1]) if sys.argv[1:] else ROUNDS), indent=1))
