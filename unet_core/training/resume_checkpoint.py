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
from unet_core.errors import RecipeError
from unet_core.training.optimiser import Watch

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
    watch: Watch = field(default_factory=Watch)


@dataclass(frozen=True, slots=True)
class Saved:
    """Content of the file."""

    position: Position
    tensors: Mapping[str, Tensor]


def write(folder: Path, asked: Mapping[str, Any], position: Position, tensors: Mapping[str, Tensor]) -> None:
    """Write the state of a run. `asked` identifies the run, as JSON-compatible data."""
    content = json.dumps({"asked": asked, "position": asdict(position)}, sort_keys=True)
    write_atomically(folder / NAME, to_bytes(dict(tensors), {ENTRY: content}))


def read(folder: Path, asked: Mapping[str, Any]) -> Saved | None:
    """Return the state of a run; None if there is none.

    Raises:
        RecipeError: The file belongs to another run (the message names the differences) or is damaged.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            content = json.loads((file.metadata() or {}).get(ENTRY, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
    except (SafetensorError, ValueError) as error:
        raise RecipeError(f"{path}: damaged: {error}. Delete it to begin again") from error
    _demand_same(folder, content.get("asked", {}), json.loads(json.dumps(asked)))
    position = content["position"]
    return Saved(Position(**{**position, "watch": Watch(**position["watch"])}), tensors)


def _demand_same(folder: Path, begun: Any, asked: Any) -> None:
    differing = list(_differences("", begun, asked))
    if differing:
        raise RecipeError(
            f"{folder} was begun with {'; '.join(differing[:3])}. The same command goes on with it; for anything else "
            "name another --out"
        )


def _differences(place: str, begun: Any, asked: Any) -> list[str]:
    if isinstance(begun, dict) and isinstance(asked, dict):
        keys = [*begun, *(key for key in asked if key not in begun)]
        return [
            text for key in keys for text in _differences(f"{place}.{key}".strip("."), begun.get(key), asked.get(key))
        ]
    return [] if begun == asked else [f"{place} {_short(begun)}, now {_short(asked)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
