"""Tissue of any size for benchmarks: real stained colon, repeated.

The period is odd, so that no two network calls see the same picture at the same phase. Slides are written tile by tile,
so that no benchmark holds one in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.data import immunohistochemistry
from tifffile import TiffWriter

from pipeline.geometry import Box, TileGrid

PERIOD_PX = (509, 505)
MPP = 0.25
GLASS = 243
_STORED_TILE_PX = 512


def _one_period() -> NDArray[np.uint8]:
    return np.asarray(immunohistochemistry()[: PERIOD_PX[0], : PERIOD_PX[1]])


@dataclass(frozen=True, slots=True)
class Tissue:
    """Periodic tissue (skimage.data.immunohistochemistry) from which boxes are cut; ``period`` is (y, x, c).

    Rows and columns from ``covered_px`` on are glass.
    """

    period: NDArray[np.uint8] = field(default_factory=_one_period)
    covered_px: int | None = None

    def cut(self, box: Box, reduction: int = 1) -> NDArray[np.uint8]:
        """Return pixels (y, x, c) of a box in coordinates reduced by ``reduction`` (nearest neighbour)."""
        rows, cols = (
            np.arange(start, stop) * reduction % period
            for start, stop, period in zip((box.y0, box.x0), (box.y1, box.x1), PERIOD_PX, strict=True)
        )
        pixels = self.period[np.ix_(rows, cols)]
        if self.covered_px is not None:
            pixels[np.arange(box.y0, box.y1) * reduction >= self.covered_px] = GLASS
            pixels[:, np.arange(box.x0, box.x1) * reduction >= self.covered_px] = GLASS
        return pixels


def write_slide(path: Path, side_px: int, levels: int = 4, covered: float = 1.0) -> Path:
    """Write a square pyramidal tiled JPEG TIFF at 0.25 um per pixel; tissue covers this fraction of each side."""
    tissue = Tissue(covered_px=round(covered * side_px))
    with TiffWriter(path, bigtiff=True) as tiff:
        for level in range(levels):
            reduction = 2**level
            side = side_px // reduction
            options: dict[str, Any] = {
                "subfiletype": 1 if level else 0,
                "resolution": (1e4 / (MPP * reduction),) * 2,
                "resolutionunit": "CENTIMETER",
            }
            tiff.write(
                _stored_tiles(tissue, side, reduction),
                shape=(side, side, 3),
                dtype=np.uint8,
                tile=(_STORED_TILE_PX, _STORED_TILE_PX),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 90},
                metadata=None,
                **options,
            )
    return path


def _stored_tiles(tissue: Tissue, side: int, reduction: int) -> Iterator[NDArray[np.uint8]]:
    whole = Box(0, 0, -(-side // _STORED_TILE_PX) * _STORED_TILE_PX, -(-side // _STORED_TILE_PX) * _STORED_TILE_PX)
    return (tissue.cut(tile.core, reduction) for tile in TileGrid(whole, _STORED_TILE_PX))
