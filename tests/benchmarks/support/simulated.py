"""A preload for dask workers that replaces the network by a wait.

The times of every block are recorded. A machine with few cores thereby simulates one with more, or with GPUs;
everything else in a worker is real. It is passed to ``overtile segment`` by ``DASK_DISTRIBUTED__WORKER__PRELOAD``, with
the folder for the times and the network's speed in the environment.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from distributed import Worker, WorkerPlugin
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from pipeline.inference.predictor import Predictor
from pipeline.stages import predict

FOLDER, SPEED = "OVERTILE_BENCH_FOLDER", "OVERTILE_BENCH_MPX_S"


class Times(WorkerPlugin):
    """Appends ``[function, start, stop]`` of every task to a file of the worker."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"{os.getpid()}.jsonl"
        self.started: dict[str, float] = {}

    def transition(self, key: Any, start: str, finish: str, **_: Any) -> None:
        """Record the start and end of a task."""
        if finish == "executing":
            self.started[key] = time.time()
        elif start == "executing":
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([key.partition("-")[0], self.started.pop(key), time.time()]) + "\n")


def slow_network(mpx_s: float) -> None:
    """Replace the network's forward pass by a wait in proportion to its pixels; dark areas are foreground."""
    load = predict.load_network

    def load_network(inputs: predict.PredictInputs) -> Predictor:
        network = load(inputs)
        (member,) = network.members
        waiting = partial(forward, mpx_s, member.shape.trim_px // 2)
        network.members = (replace(member, forward=waiting),)
        return network

    predict.load_network = load_network


def forward(mpx_s: float, margin_px: int, x_NCHW: Tensor) -> Tensor:
    """Return logits of two classes from local darkness, after the wait."""
    time.sleep(x_NCHW.shape[2] * x_NCHW.shape[3] / 1e6 / mpx_s)
    dark = -1 - interpolate(avg_pool2d(x_NCHW[:, :1].contiguous(), 4), scale_factor=4.0)
    dark = dark[:, :, margin_px : dark.shape[2] - margin_px, margin_px : dark.shape[3] - margin_px]
    return torch.cat((-dark, dark), dim=1)


async def dask_setup(worker: Worker) -> None:
    """Register network and plugin; dask calls this when a worker starts."""
    slow_network(float(os.environ[SPEED]))
    await worker.plugin_add(Times(Path(os.environ[FOLDER])))
