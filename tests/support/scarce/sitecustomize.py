"""Simulate a device with little memory.

torch's convolution refuses inputs wider than SCARCE_PX pixels. Python imports this at the start of each process that
finds it, including the workers of a command. torch is patched when it is imported, below all code of overtile.
"""

from __future__ import annotations

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


class Scarce(MetaPathFinder):
    """Finds torch and limits its memory once it is loaded."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        assert spec is not None, "torch is installed"
        loader: Any = spec.loader
        load = loader.exec_module

        def load_and_limit(torch: ModuleType) -> None:
            load(torch)
            limit(torch, int(os.environ["SCARCE_PX"]))

        loader.exec_module = load_and_limit
        return spec


def limit(torch: Any, most_px: int) -> None:
    """Make convolutions of wider inputs run out of memory, as on CUDA."""
    functional = torch.nn.functional
    convolve = functional.conv2d

    def conv2d(x_NCHW: Any, *rest: Any, **named: Any) -> Any:
        if x_NCHW.shape[-1] > most_px:
            raise torch.OutOfMemoryError(f"out of memory. Tried to allocate {x_NCHW.numel() * 64 / 2**20:.0f} MiB")
        return convolve(x_NCHW, *rest, **named)

    functional.conv2d = conv2d


sys.meta_path.insert(0, Scarce())
