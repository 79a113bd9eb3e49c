"""Save and load a network as one .safetensors file.

Weights are computed with in single precision and may be stored in half. The tensors of a file are compared with those
that its spec describes before use, so a wrong file is an error and never partly loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from unet_core.atomic_write import write_atomically
from unet_core.errors import CheckpointError
from unet_core.model_file.header import ENTRY, FORMAT_VERSION, describe, resolve
from unet_core.networks.factory import build
from unet_core.networks.unet import SegmentationNetwork
from unet_core.spec import UNetSpec


def save(
    path: Path,
    model: SegmentationNetwork,
    provenance: Mapping[str, Any],
    *,
    precision: Literal["half", "single"] = "single",
) -> None:
    """Write weights, spec and provenance atomically. Equal inputs give equal bytes.

    Args:
        path: File to write.
        model: Network with its spec.
        provenance: JSON-compatible record of how the network was made.
        precision: Stored precision of the weights.

    Raises:
        CheckpointError: A weight is not finite at that precision.
    """
    tensors = {name: _stored(tensor, precision) for name, tensor in model.state_dict().items()}
    for name, tensor in tensors.items():
        _require_finite(path, name, tensor)
    own = {
        "format_version": FORMAT_VERSION,
        "spec": model.spec.model_dump(mode="json"),
        "provenance": dict(provenance),
    }
    write_atomically(path, to_bytes(tensors, {ENTRY: json.dumps(own, sort_keys=True)}))


def load(path: Path) -> SegmentationNetwork:
    """Return the network in eval mode with single precision weights, on the CPU.

    Raises:
        CheckpointError: The file is a pickle or truncated, tensors do not fit the spec, or a weight is not finite.
        MissingLibraryError: The architecture needs MONAI, which is not installed.
    """
    spec = describe(path).spec
    with torch.device("meta"):  # no initialisation: weights are overwritten
        model = build(spec)
    _require_fit(path, model)
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged: {error}; copy it again") from error
    for name, tensor in tensors.items():
        _require_finite(path, name, tensor)
    singles = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    model.load_state_dict(singles, assign=True)
    return model.eval()


def load_model(name_or_path: str | Path) -> SegmentationNetwork:
    """Load a network by name or from a file.

    Args:
        name_or_path: Built-in model (``nuclei``: its default version, ``nuclei@1``: that version) or a model file.

    Returns:
        The network in eval mode with single precision weights, on the CPU. ``network.spec`` describes it.

    Raises:
        UnknownModelError: There is neither such a built-in model nor such a file.
        CheckpointError: The file is not a valid model file.
        MissingLibraryError: The architecture needs MONAI, which is not installed.
    """
    return load(resolve(name_or_path))


def save_model(
    model: SegmentationNetwork,
    path: str | Path,
    *,
    provenance: Mapping[str, Any] | None = None,
    precision: Literal["half", "single"] = "single",
) -> None:
    """Write a network as a model file: weights, spec and provenance in one .safetensors file.

    Args:
        model: The network; its ``spec`` is stored in the header.
        path: File to write; it is replaced atomically.
        provenance: JSON-compatible record of how the network was made.
        precision: Stored precision of the weights.

    Raises:
        CheckpointError: A weight is not finite at that precision.
    """
    save(Path(path), model, provenance or {}, precision=precision)


def with_spec(model: SegmentationNetwork, spec: UNetSpec) -> SegmentationNetwork:
    """Return a network with the same weights and another spec of the same shape, in eval mode."""
    with torch.device("meta"):
        changed = build(spec)
    changed.load_state_dict(model.state_dict(), assign=True)
    return changed.eval()


def _stored(tensor: Tensor, precision: str) -> Tensor:
    if precision == "half" and tensor.is_floating_point():
        tensor = tensor.half()
    return tensor.detach().cpu().contiguous()


def _require_finite(path: Path, name: str, tensor: Tensor) -> None:
    if not torch.isfinite(tensor).all():
        bad = int((~torch.isfinite(tensor)).sum())
        raise CheckpointError(
            f"{path}: expected finite weights, found {bad} of {tensor.numel()} NaN or infinite in {name}: training "
            "diverged, or the numbers do not fit the stored precision"
        )


def _require_fit(path: Path, model: SegmentationNetwork) -> None:
    """Compare names and shapes in the file with those that its spec describes."""
    found = {name: tensor.shape for name, tensor in describe(path).tensors.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                f"{path}: tensor {name}: expected {expected.get(name, 'none')} (from the spec in the header), found "
                f"{found.get(name, 'none')}: weights and spec are of different networks"
            )
