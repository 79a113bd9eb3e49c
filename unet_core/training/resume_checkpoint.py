"""State from which a killed training run resumes.

One file holds all of it (weights, optimiser, random states, position, configuration) and is renamed into place, so a
kill never mixes the weights of one step with the optimiser of another. `last.safetensors` and `best.safetensors` are
written after it. The log is cut back to the length that is stored here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from unet_core.atomic_write import write_atomically
from unet_core.data.map_targets import NO_MAPS
from unet_core.errors import RecipeError
from unet_core.training.config import TrainConfig
from unet_core.training.optimiser import ValidationHistory

NAME = "resume.safetensors"
ENTRY = "overtile-training"


@dataclass(frozen=True, slots=True)
class Position:
    """Progress of a run. `reserve_s`: estimated time of model selection; `judged`: the last validated step."""

    step: int = 0
    seconds: float = 0.0
    log_bytes: int = 0
    reserve_s: float = 0.0
    judged: int | None = None
    done: bool = False
    watch: ValidationHistory = field(default_factory=ValidationHistory)


@dataclass(frozen=True, slots=True)
class SavedRun:
    """Content of the file."""

    position: Position
    tensors: Mapping[str, Tensor]


def write(folder: Path, identity: Mapping[str, Any], position: Position, tensors: Mapping[str, Tensor]) -> None:
    """Write the state of a run. `asked` identifies the run, as JSON-compatible data."""
    content = json.dumps({"asked": identity, "position": asdict(position)}, sort_keys=True)
    write_atomically(folder / NAME, to_bytes(dict(tensors), {ENTRY: content}))


def read(folder: Path, identity: Mapping[str, Any]) -> SavedRun | None:
    """Return the state of a run; None if there is none.

    Raises:
        RecipeError: The file belongs to another run (the message names the differences) or is damaged.
    """
    path = folder / NAME
    if not path.exists():
        return None
    content, tensors = _stored(path)
    _require_same(folder, content.get("asked", {}), json.loads(json.dumps(identity)))
    position = content["position"]
    return SavedRun(Position(**{**position, "watch": ValidationHistory(**position["watch"])}), tensors)


def continued(folder: Path, recipe: TrainConfig) -> TrainConfig:
    """Return the recipe with which a run in this folder was started, where it does not state later settings.

    A run that was started before networks had maps, or before the weights were averaged, goes on without them.

    Raises:
        RecipeError: The file is damaged.
    """
    path = folder / NAME
    if not path.exists():
        return recipe
    stored = _stored(path)[0].get("asked", {}).get("recipe", {})
    changes: dict[str, Any] = {}
    if "maps" not in stored and "maps" not in recipe.model_fields_set:
        changes["maps"] = NO_MAPS
    if "average" not in stored.get("optimiser", {}) and "average" not in recipe.optimiser.model_fields_set:
        changes["optimiser"] = recipe.optimiser.model_copy(update={"average": 0.0})
    return recipe.model_copy(update=changes)


def _stored(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            content = json.loads((file.metadata() or {}).get(ENTRY, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
    except (SafetensorError, ValueError) as error:
        raise RecipeError(f"{path}: damaged: {error}. Delete it to start again") from error
    return content, tensors


def _require_same(folder: Path, stored: Any, identity: Any) -> None:
    differing = list(_differences("", stored, identity))
    if differing:
        raise RecipeError(
            f"{folder} holds another run, started with {'; '.join(differing[:3])}. Repeat the command of that run to "
            "resume it, or choose another --out"
        )


def _differences(prefix: str, stored: Any, identity: Any) -> list[str]:
    if isinstance(stored, dict) and isinstance(identity, dict):
        keys = [*stored, *(key for key in identity if key not in stored)]
        return [
            text
            for key in keys
            for text in _differences(f"{prefix}.{key}".strip("."), stored.get(key), identity.get(key))
        ]
    return [] if stored == identity else [f"{prefix} {_short(stored)}, now {_short(identity)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
