"""An array that records its reads."""

from __future__ import annotations

from typing import Any

import numpy as np


class Watched:
    """Slices like its array and records the shape of every read."""

    def __init__(self, pixels: np.ndarray[Any, Any]) -> None:
        self.pixels = pixels
        self.shape = pixels.shape
        self.read: list[tuple[int, ...]] = []

    def __getitem__(self, key: tuple[slice, ...]) -> Any:
        result = self.pixels[key]
        self.read.append(result.shape)
        return result
