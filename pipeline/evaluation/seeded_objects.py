"""Objects of an image that are split at the seeds of a map, as ``segment`` splits them.

Ids are in a scratch file of four bytes a pixel. First it holds the components of the whole image. Then the objects that
begin in a block are read in one window and split, block after block. An object lies in one window because longer ones
than ``Splitting.largest_px`` are not split.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pipeline.geometry import Box, TileGrid
from pipeline.objects.components import RunLengths, find_runs, rasterize
from pipeline.objects.moments import total
from pipeline.objects.relabel import Limits, MergedObjects
from pipeline.objects.watershed import Splitting, split_objects

Array = NDArray[Any]


def scratch(shape: tuple[int, int], dtype: DTypeLike, *, in_memory: bool) -> Array:
    """Zeros (y, x): in memory, or in an unnamed file that is freed with the array."""
    if in_memory:
        return np.zeros(shape, dtype)
    file: BinaryIO
    with tempfile.TemporaryFile(prefix="overtile-judge-") as file:  # the map keeps it open
        return np.memmap(file, dtype, "w+", shape=shape)


@dataclass(slots=True)
class SeededObjects:
    """Objects of one image.

    Attributes:
        splitting: Parameters of splitting.
        grid: Blocks of the image.
        map_YX: Map of the seeds.
        ids_YX: Id of the object of each pixel, before the limits of area.
        areas: Pixels of each id, 0 of split objects; entry 0 is background.
    """

    splitting: Splitting
    grid: TileGrid
    map_YX: Array
    ids_YX: Array = field(init=False)
    areas: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.ids_YX = scratch(self.grid.area.shape, np.int32, in_memory=len(self.grid) == 1)

    def split(self, whole: MergedObjects, ids: Array) -> None:
        """Split all components.

        Args:
            whole: Components with columns ``area`` and their boxes; ``ids_YX`` holds their ids.
            ids: Id of each piece.
        """
        roots = np.flatnonzero(whole.stands)
        roots = roots[np.argsort(ids[roots])]
        columns = {name: whole.columns[name][roots] for name in ("area", "y0", "x0", "y1", "x1")}
        self.areas = [0, *columns["area"].tolist()]
        y0, x0, y1, x1 = (columns[name] for name in ("y0", "x0", "y1", "x1"))
        small = np.maximum(y1 - y0, x1 - x0) <= self.splitting.largest_px
        for core in (tile.core for tile in self.grid):
            here = small & (y0 >= core.y0) & (y0 < core.y1) & (x0 >= core.x0) & (x0 < core.x1)
            if here.any():
                box = Box(int(y0[here].min()), int(x0[here].min()), int(y1[here].max()), int(x1[here].max()))
                self._split_in(box, np.flatnonzero(here) + 1)

    def kept(self, limits: Limits) -> NDArray[np.bool_]:
        """Whether the object of each id is within the limits of area; background is not."""
        areas = np.array(self.areas)
        return np.asarray(limits.hold(areas) & (areas > 0))

    def _split_in(self, box: Box, objects: Sequence[int] | Array) -> None:
        """Split the objects of these ids, which lie in a box."""
        ids_YX = np.array(self.ids_YX[box.slices])
        chosen = np.zeros(len(self.areas), np.int64)
        chosen[objects] = np.arange(1, len(objects) + 1)
        mine_YX = chosen[ids_YX]
        runs = find_runs(mine_YX)
        parts = split_objects(
            replace(runs, label=runs.label - 1), self.splitting, np.asarray(self.map_YX[box.slices])[mine_YX > 0]
        )
        if not len(parts.owner):
            return
        order = np.lexsort((parts.runs.x0, parts.runs.y))
        pieces = RunLengths(*(getattr(parts.runs, name)[order] for name in RunLengths.__slots__))
        new_YX = rasterize(pieces, (pieces.label + len(self.areas)).astype(np.int32), box.shape)
        for owner in np.unique(parts.owner):
            self.areas[int(objects[owner])] = 0
        self.areas += total(pieces.label, pieces.length).tolist()
        self.ids_YX[box.slices] = np.where(new_YX > 0, new_YX, ids_YX)
