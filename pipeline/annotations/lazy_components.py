"""Connected components of an image that is read in windows.

Only one number for each piece of each block is stored, never a label of a pixel. A window is labelled again block by
block when it is read, and drawn with the final numbers. Windows of any size have the numbers that
``skimage.measure.label`` assigns in the whole image, and memory depends on the number of pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import Box, TileGrid
from pipeline.objects.components import BlockPart, join, label_pieces, object_part, rasterize
from pipeline.objects.relabel import MergedObjects, number_objects

CONNECTIVITY = 8
BLOCK_PX = 512

ReadClasses = Callable[[Box], NDArray[np.uint8]]


@dataclass(frozen=True, slots=True, eq=False)
class LazyComponents:
    """Components of equal class of an image, numbered as in the whole image.

    Attributes:
        classes: Reads the classes (y, x) of a box.
        grid: The blocks.
        ids: Number of each piece in block order.
        starts: Index of the first piece of each block.
    """

    classes: ReadClasses
    grid: TileGrid
    ids: NDArray[np.int32]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, classes: ReadClasses, shape_yx: tuple[int, int], block_px: int = BLOCK_PX) -> Self:
        """Label every block once.

        Raises:
            SlideError: There are too many components to number.
        """
        grid = TileGrid(Box.of_shape(shape_yx), block_px)
        joined = join(_rows(classes, grid), CONNECTIVITY)
        merged = MergedObjects.of(joined)
        ids = number_objects(merged, np.ones(len(merged.group), np.bool_)).ids
        return cls(classes, grid, ids.astype(np.int32), joined.starts)

    @property
    def count(self) -> int:
        """Number of components."""
        return int(self.ids.max(initial=0))

    def read(self, box: Box) -> NDArray[np.int32]:
        """Numbers (y, x) in a box inside the image, 0 for background."""
        found: NDArray[np.int32] = np.zeros(box.shape, np.int32)
        blocks = box.cover(self.grid.core_px)
        for row in range(blocks.y0, blocks.y1):
            for col in range(blocks.x0, blocks.x1):
                core = self.grid.tile(row, col).core
                if common := core.intersect(box):
                    inside = common.shift(-core.y0, -core.x0).slices
                    found[common.shift(-box.y0, -box.x0).slices] = self._block(row, col, core)[inside]
        return found

    def _block(self, row: int, col: int, core: Box) -> NDArray[Any]:
        pieces = label_pieces(self.classes(core), CONNECTIVITY)
        first = self.starts[row * self.grid.cols + col] - 1
        return rasterize(pieces, self.ids[first + pieces.label], core.shape)


def _rows(classes: ReadClasses, grid: TileGrid) -> Iterator[list[BlockPart]]:
    width = grid.area.shape[1]
    for row in range(grid.rows):
        cores = [grid.tile(row, col).core for col in range(grid.cols)]
        yield [_part(classes(core), core, width) for core in cores]


def _part(classes_YX: NDArray[np.uint8], core: Box, width_px: int) -> BlockPart:
    return object_part(label_pieces(classes_YX, CONNECTIVITY), classes_YX, core, width_px)
