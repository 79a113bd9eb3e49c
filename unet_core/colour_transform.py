"""Apply a slide's colour map to pixels: the same bytes on any device and in any tile.

Logarithm and exponential are looked up in tables that are made once; between them are single multiplications and
additions, which round alike everywhere. The result has the slide's number type, rounded once; training and prediction
continue from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from unet_core.normalisation import ColourMap
from unet_core.optical_density import optical_density

STEPS = 8192
"""Table entries of the exponential per unit of density: one step is at most 0.03 of 255 grey levels."""


@dataclass(frozen=True, slots=True)
class Tables:
    """A colour map for one number type: density of each value in steps, value of each step (or value) by channel."""

    density: Tensor
    values: tuple[Tensor, ...]


def recolour(pixels_CYX: Tensor, colours: ColourMap) -> Tensor:
    """Return pixels (c, y, x) of unsigned integers in the colours of the map: same shape, same type."""
    if colours.matrix is None and colours.ranks is None:
        return pixels_CYX
    tables = _tables(colours, str(pixels_CYX.dtype).removeprefix("torch."), pixels_CYX.device)
    index_CYX: Sequence[Tensor] = list(pixels_CYX.int())
    if colours.matrix is not None:
        density_CYX = [_looked_up(tables.density, one) for one in index_CYX]
        index_CYX = [
            _mixed(density_CYX, row, offset * STEPS, len(tables.values[0]) - 1)
            for row, offset in zip(colours.matrix, colours.offset, strict=True)
        ]
    shown = [_looked_up(table, index) for table, index in zip(tables.values, index_CYX, strict=True)]
    return torch.stack(shown).to(pixels_CYX.dtype)


def _looked_up(table: Tensor, index_YX: Tensor) -> Tensor:
    return table.index_select(0, index_YX.flatten()).view(index_YX.shape)


def _mixed(density_CYX: Sequence[Tensor], row: Sequence[float], offset: float, last: int) -> Tensor:
    """Return one channel's density in whole steps; a fused multiply-add would round differently."""
    total = density_CYX[0] * row[0]
    for one, factor in zip(density_CYX[1:], row[1:], strict=True):
        total += one * factor
    total += offset
    return total.round_().clamp_(0, last).int()


@lru_cache(maxsize=64)
def _tables(colours: ColourMap, dtype: str, device: torch.device) -> Tables:
    every = np.arange(np.iinfo(dtype).max + 1, dtype=dtype)
    density = optical_density(every)
    most = float(every[-1])
    values = every.astype(np.float64)
    if colours.matrix is not None:
        steps = np.arange(round(STEPS * density[0]) + 1) / STEPS
        values = np.rint((most + 1) * np.exp(-steps) - 1)
    by_channel = [values] * 3
    if colours.ranks is not None:
        knots = [np.array(ranks).T for ranks in colours.ranks]
        by_channel = [np.rint(most * np.interp(values, known, rank)) for known, rank in knots]
    stored = torch.uint8 if dtype == "uint8" else torch.int32
    return Tables(
        torch.from_numpy((density * STEPS).astype(np.float32)).to(device),
        tuple(torch.from_numpy(one).to(device=device, dtype=stored) for one in by_channel),
    )
