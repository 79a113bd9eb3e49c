"""Device and precision of training and prediction.

`auto` is resolved once, at the start, and the result is recorded with the output. A device requested by name that does
not exist is an error; it is never replaced.
"""

from __future__ import annotations

import os

import torch

from unet_core.errors import DeviceError


def resolve_device(device: str) -> str:
    """Return ``cpu`` or ``cuda``; ``auto`` is CUDA if available.

    Raises:
        DeviceError: CUDA is requested and not available.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            "compute.device=cuda: torch sees no CUDA device here. Use cpu, or check the driver ('overtile doctor')"
        )
    return device


def multiplies_bf16(device: str) -> bool:
    """Return whether bfloat16 is fast on the device: CUDA, or a CPU with AVX512-BF16 or AMX."""
    return device == "cuda" or bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def device_names() -> tuple[str, ...]:
    """Return the CUDA devices of this process, as CUDA_VISIBLE_DEVICES names them."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return tuple(map(str, range(torch.cuda.device_count())))
    return tuple(name.strip() for name in listed.split(",") if name.strip())
