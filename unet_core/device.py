"""Where to compute and in which precision, for networks that learn and for networks that answer.

Decision: `auto` is settled once, at the start, and what was settled is written down with the result; a device that is
asked for by name and is not there is refused, never replaced.
"""

from __future__ import annotations

import os

import torch

from unet_core.errors import DeviceError


def resolve_device(device: str) -> str:
    """Return cpu or cuda: ``auto`` is CUDA where there is one. Raises DeviceError for a CUDA that is not there."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            "compute.device=cuda: torch sees no CUDA device here. Use cpu, or check the driver ('overtile doctor')"
        )
    return device


def multiplies_bf16(device: str) -> bool:
    """Return whether bfloat16 is fast there: on CUDA, and on a CPU with AVX512-BF16 or AMX."""
    return device == "cuda" or bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def device_names() -> tuple[str, ...]:
    """Return the CUDA devices of this process, each as CUDA_VISIBLE_DEVICES names it."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return tuple(map(str, range(torch.cuda.device_count())))
    return tuple(name.strip() for name in listed.split(",") if name.strip())
