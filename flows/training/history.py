"""What a training left behind, as plain data for its report: the course it took, the command that repeats it.

The one decision made here: only files of the run and its recipe are read, so the page can be made again from a run that
ended long ago; the command names every key that is not the default, so it needs no file of configuration.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.reports.figures import MetricCurves
from flows.training.training_data import TrainRequest
from pipeline.storage.atomic_files import read_json_lines
from unet_core.model_file.header import describe
from unet_core.training.config import TrainConfig
from unet_core.training.metrics_log import NAME as METRICS
from unet_core.training.trainer import BEST


def history_of(folder: Path) -> MetricCurves:
    """The course of a training, from its record."""
    lines = read_json_lines(folder / METRICS)
    steps = [line for line in lines if "loss" in line]
    judged = [line for line in lines if "validation" in line]
    levels = list(steps[0]["gradient_norms"]) if steps else []
    scores = list(judged[0]["validation"]) if judged else []
    return MetricCurves(
        steps=[line["step"] for line in steps],
        loss=[line["loss"] for line in steps],
        rate=[line["rate"] for line in steps],
        norms={level: [line["gradient_norms"][level] for line in steps] for level in levels},
        judged=[line["step"] for line in judged],
        scores={name: [line["validation"][name] for line in judged] for name in scores},
        best_step=best_step(folder),
        seconds=steps[-1]["seconds"] if steps else 0.0,
    )


def best_step(folder: Path) -> int:
    """The step that the kept network is of."""
    return int(describe(folder / BEST).provenance["steps"])


def keys(recipe: TrainConfig) -> dict[str, Any]:
    """Every key of a recipe as ``--set`` names it, with its value as JSON has it."""
    content = recipe.model_dump(mode="json")
    return {f"{section}.{key}": value for section, inside in content.items() for key, value in inside.items()}


def changed_keys(recipe: TrainConfig) -> dict[str, Any]:
    """The keys that are not the default."""
    usual = keys(TrainConfig())
    return {key: value for key, value in keys(recipe).items() if value != usual.get(key)}


def command_of(request: TrainRequest) -> str:
    """The command that trains this again."""
    cases = ["--cases", str(request.cases)] if request.cases else []
    words = ["overtile", "train", "--images", str(request.images), "--masks", str(request.masks), *cases]
    return shlex.join([*words, "--out", str(request.out), *_settings(changed_keys(request.recipe))])


def _settings(changed: Mapping[str, Any]) -> list[str]:
    return [word for key, value in changed.items() for word in ("--set", f"{key}={json.dumps(value)}")]
