"""Convert a PyTorch checkpoint to a model file.

A child process extracts the tensors; the spec is given. Nothing is guessed: names and shapes must be those of the
network, and the user states what tensors do not show (padding, normalisation, resolution, ...).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import safe_open
from torch import Tensor

from unet_core.errors import CheckpointError
from unet_core.model_file.checkpoint import load, save
from unet_core.model_file.header import sha256
from unet_core.model_file.torch_reader import NOTES
from unet_core.networks.factory import build
from unet_core.networks.unet import SegmentationNetwork
from unet_core.spec import UNetSpec

SHOWN = 4
PATIENCE_S = 600


def convert(source: Path, target: Path, spec: UNetSpec) -> list[str]:
    """Write the weights in `source` as a model file.

    Args:
        source: Checkpoint saved by torch.save.
        target: Model file to write.
        spec: Description of the network.

    Returns:
        Notes on wrappers and prefixes that were removed.

    Raises:
        CheckpointError: The file holds more than tensors (nothing of it is run), names or shapes are not those of the
            network, or the written file does not reproduce the network's output.
    """
    tensors, notes = read_apart(source)
    model = build(spec)
    _require_fit(source, tensors, model)
    model.load_state_dict({name: tensors[name].to(own.dtype) for name, own in model.state_dict().items()})
    provenance = {"converted": {"file": source.name, "sha256": sha256(source), "notes": notes}}
    save(target, model.eval(), provenance)
    _require_same_answer(target, model)
    return notes


def read_apart(source: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Return tensors by name and notes; a child process reads the checkpoint without running code in it."""
    package = Path(__file__).parents[2]
    with TemporaryDirectory(prefix="overtile-") as folder:
        plain = Path(folder) / "tensors.safetensors"
        child = subprocess.run(  # noqa: S603  this interpreter and two paths
            [sys.executable, "-m", "unet_core.model_file.torch_reader", str(source.resolve()), str(plain)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(package)},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        if child.returncode:
            raise CheckpointError(f"{source}: {_why(child)}")
        with safe_open(plain, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()[NOTES])  # noqa: SIM118  not a mapping


def _why(child: subprocess.CompletedProcess[str]) -> str:
    """Return the child's error in one line."""
    found = re.search(r"GLOBAL ([\w.]+)", child.stderr)
    if found:
        return (
            f"expected a state_dict of tensors, found a pickle that calls {found[1]}; it was not run. If you trust "
            "the file, load it with torch and save model.state_dict()"
        )
    last = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
    return f"expected a state_dict saved by torch.save, found something else ({last})"


def _require_fit(source: Path, tensors: Mapping[str, Tensor], model: SegmentationNetwork) -> None:
    """Compare names, then shapes, with those of the network that the spec describes."""
    own = model.state_dict()
    missing, strange = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or strange:
        raise CheckpointError(
            f"{source}: names differ from the network's: the spec expects {_some(missing, 'no others')}; the file has "
            f"{_some(strange, 'no others')}. Give the spec the weights were trained with, or rename the entries"
        )
    for name, tensor in own.items():
        if tensor.shape != tensors[name].shape:
            raise CheckpointError(
                f"{source}: tensor {name}: expected {tuple(tensor.shape)} (from the spec), found "
                f"{tuple(tensors[name].shape)}. Give the spec the weights were trained with"
            )


def _some(names: list[str], none: str) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more if names else none


def _require_same_answer(target: Path, model: SegmentationNetwork) -> None:
    """Read the file back and compare one forward pass to the bit."""
    side = model.shape.smallest_px
    image = torch.rand(1, model.spec.in_channels, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        same = torch.equal(load(target)(image), model(image))
    if not same:
        target.unlink()
        raise CheckpointError(
            f"{target}: verification failed: the written file does not reproduce the network's output. Check the disk"
        )
