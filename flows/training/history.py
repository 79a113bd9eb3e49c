"""Metrics and command line of a training run, as plain data for its report.

Only files of the run and its config are read, so the report of an old run can be rebuilt. The command names every key
that differs from its default, so it needs no config file.
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
    """Read the metrics of a run from its log."""
    lines = read_json_lines(folder / METRICS)
    steps = [line for line in lines if "loss" in line]
    validations = [line for line in lines if "validation" in line]
    levels = list(steps[0]["gradient_norms"]) if steps else []
    scores = list(validations[0]["validation"]) if validations else []
    return MetricCurves(
        steps=[line["step"] for line in steps],
        loss=[line["loss"] for line in steps],
        rate=[line["rate"] for line in steps],
        norms={level: [line["gradient_norms"][level] for line in steps] for level in levels},
        validation_steps=[line["step"] for line in validations],
        scores={name: [line["validation"][name] for line in validations] for name in scores},
        best_step=best_step(folder),
        seconds=steps[-1]["seconds"] if steps else 0.0,
    )


def best_step(folder: Path) -> int:
    """Return the step of the selected checkpoint."""
    return int(describe(folder / BEST).provenance["steps"])


def config_keys(recipe: TrainConfig) -> dict[str, Any]:
    """Return every key of a config as named by ``--set``, with its JSON value."""
    content = recipe.model_dump(mode="json")
    return {f"{section}.{key}": value for section, values in content.items() for key, value in values.items()}


def changed_keys(recipe: TrainConfig) -> dict[str, Any]:
    """Return the keys that differ from their default."""
    defaults = config_keys(TrainConfig())
    return {key: value for key, value in config_keys(recipe).items() if value != defaults.get(key)}


def command_of(request: TrainRequest) -> str:
    """Return the command line that repeats a training run."""
    cases = ["--cases", str(request.cases)] if request.cases else []
    words = ["overtile", "train", "--images", str(request.images), "--masks", str(request.masks), *cases]
    return shlex.join([*words, "--out", str(request.out), *_settings(changed_keys(request.recipe))])


def _settings(changed: Mapping[str, Any]) -> list[str]:
    return [word for key, value in changed.items() for word in ("--set", f"{key}={json.dumps(value)}")]
