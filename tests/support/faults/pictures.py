"""Slides of flat discs on a pink ground, with known areas.

They are made for networks with known output. The ground is pale tissue, not glass, so that no cell is skipped unless a
test requires it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

PINK, RED, BLUE, DARK, GLASS = (230, 200, 215), (255, 0, 0), (0, 0, 255), (70, 40, 90), (245, 245, 245)


@dataclass(frozen=True, slots=True)
class Disc:
    """A filled circle: centre and radius in pixels."""

    y: int
    x: int
    radius: int
    colour: tuple[int, int, int]

    def mask(self, shape_yx: tuple[int, int]) -> NDArray[np.bool_]:
        """Return a mask (y, x) of its pixels."""
        y, x = np.ogrid[: shape_yx[0], : shape_yx[1]]
        inside: NDArray[np.bool_] = (y - self.y) ** 2 + (x - self.x) ** 2 <= self.radius**2
        return inside


def draw(shape_yx: tuple[int, int], discs: Iterable[Disc], ground: tuple[int, int, int] = PINK) -> NDArray[np.uint8]:
    """Return a picture (y, x, 3), later discs over earlier ones."""
    image = np.empty((*shape_yx, 3), np.uint8)
    image[:] = ground
    for disc in discs:
        image[disc.mask(shape_yx)] = disc.colour
    return image


def red_and_blue(shape_yx: tuple[int, int], period_px: int = 97, radius: int = 21) -> list[Disc]:
    """Return discs of alternating colour on a grid with an odd period, so that some lie on seams."""
    centres = [(y, x) for y in range(40, shape_yx[0], period_px) for x in range(35, shape_yx[1], period_px)]
    return [Disc(y, x, radius, (RED, BLUE)[number % 2]) for number, (y, x) in enumerate(centres)]


def write(path: Path, image_YXC: NDArray[np.uint8], mpp: float | None = 0.5) -> Path:
    """Write a tiled TIFF with a resolution, unless ``mpp`` is None."""
    resolution = None if mpp is None else (1e4 / mpp, 1e4 / mpp)
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(
        path,
        image_YXC,
        tile=(128, 128),
        photometric="rgb",
        compression="deflate",
        resolution=resolution,
        resolutionunit="NONE" if mpp is None else "CENTIMETER",
        metadata=None,
    )
    return path
