"""Child process that extracts the tensors of a PyTorch checkpoint.

A pickle is a program. Torch's `weights_only` reader runs only a short list of its own functions, and it runs in a child
process, so an exploit of it does not reach the parent. The output is a file of tensors.

    python -m unet_core.model_file.torch_reader IN.pt OUT.safetensors
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
NOTES = "notes"
"""Entry of the header with notes on what was removed."""


def unwrapped(content: object) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors of a checkpoint by name, and notes on removed wrappers and prefixes.

    Raises:
        ValueError: The checkpoint holds anything but named tensors.
    """
    notes: list[str] = []
    while isinstance(content, Mapping) and (inner := _inside(content)):
        notes.append(f"took the entry {inner!r}")
        content = content[inner]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"expected a state_dict (names and tensors), found {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(f"expected names and tensors, found {name!r}: {type(value).__name__}")
    tensors = dict(content)
    while prefix := next((one for one in PREFIXES if all(name.startswith(one) for name in tensors)), ""):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        notes.append(f"took {prefix!r} off every name")
    return tensors, notes


def _inside(content: Mapping[Any, Any]) -> str | None:
    return next((name for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)


def main() -> None:
    """Read the checkpoint and write its tensors."""
    source, target = map(Path, sys.argv[1:])
    tensors, notes = unwrapped(torch.load(source, map_location="cpu", weights_only=True))
    own = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}  # tensors share no memory
    save_file(own, target, {NOTES: json.dumps(notes)})


if __name__ == "__main__":
    main()
