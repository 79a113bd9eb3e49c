"""Tiny training runs in this process, and independent readers of their output."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from tests.support.make_discs import drawn
from unet_core.data.sampler import AnnotatedImage
from unet_core.training.config import TrainConfig
from unet_core.training.resume_checkpoint import Position
from unet_core.training.trainer import TrainData, TrainJob, train

CLOCK = {"seconds", "reserve_s"}
"""Fields of a position that hold times, which differ between runs."""


class Silent:
    """A listener that records validations."""

    def __init__(self) -> None:
        self.scores: dict[int, Mapping[str, float]] = {}

    def begun(self, order: TrainJob, position: Position) -> None:
        pass

    def stepped(self, record: Mapping[str, Any], progress: float) -> None:
        pass

    def validated(self, step: int, scores: Mapping[str, float]) -> None:
        self.scores[step] = scores


def case(seed: int) -> AnnotatedImage:
    image, labels = drawn(seed)
    return AnnotatedImage(f"{seed}", np.ascontiguousarray(image.transpose(2, 0, 1)), labels.astype(np.int32))


def material(training: int = 3, held_back: int = 1) -> TrainData:
    cases = [case(seed) for seed in range(training + held_back)]
    return TrainData(cases[:training], cases[training:], ("disc",))


def recipe(**sections: dict[str, Any]) -> TrainConfig:
    """A network that trains in milliseconds, with dropout, so torch's own generator is used."""
    small: dict[str, dict[str, Any]] = {
        "network": {"depth": 1, "width": 2, "dropout": 0.5},
        "sampling": {"batch": 2, "output_px": 32},
        "schedule": {"steps": 7, "warmup": 2},
        "stopping": {"every": 3},
        "compute": {"device": "cpu", "precision": "fp32", "threads": 1},
    }
    return TrainConfig.model_validate(
        {name: small.get(name, {}) | sections.get(name, {}) for name in {*small, *sections}}
    )


def run(folder: Path, given: TrainConfig, seen: TrainData | None = None) -> Position:
    folder.mkdir(exist_ok=True)
    return train(TrainJob(folder, seen or material(), given), Silent())


def lines(folder: Path) -> list[dict[str, Any]]:
    """The log without times."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


def state(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The resume state without times: plain data, and tensors (weights, optimiser, random states)."""
    with safe_open(folder / "resume.safetensors", framework="pt") as file:
        content = json.loads(file.metadata()["overtile-training"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
    content["position"] = {key: value for key, value in content["position"].items() if key not in CLOCK | {"log_bytes"}}
    return content, tensors


def assert_equal_runs(one: Path, other: Path) -> None:
    """Weights, optimiser, random states, losses and models of two runs are equal to the bit."""
    (content, tensors), (other_content, other_tensors) = state(one), state(other)
    assert lines(one) == lines(other)
    assert content == other_content
    assert tensors.keys() == other_tensors.keys()
    assert [name for name, tensor in tensors.items() if not torch.equal(tensor, other_tensors[name])] == []
    for name in ("best.safetensors", "last.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
