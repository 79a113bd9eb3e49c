"""Boxes, tiles and grids: the pixels that a tile owns and the pixels that it reads.

Integers only. Boxes are half-open, and every pair is in the order (y, x) or (row, col). Cores partition the image
without overlap, so nothing is blended. Every read of a grid has the same shape, also at the edges: the reader mirrors
what lies beyond the image, and the result is cropped after the network.

      read  +-----------------------+
            | halo                  |     read = core + 2 * halo + surplus (surplus on the lower right)
            |    +-------------+    |     core starts on a multiple of the grid's core length
            |    |    core     |    |     the last core of a row or column is cropped by the image's edge
            |    +-------------+    |
            +-----------------------+
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Box:
    """Half-open rectangle of pixels, ``y0 <= y < y1`` and ``x0 <= x < x1``. May lie outside the image."""

    y0: int
    x0: int
    y1: int
    x1: int

    def __post_init__(self) -> None:
        if self.y1 < self.y0 or self.x1 < self.x0:
            raise ValueError(f"box {self} ends before it starts")

    def __str__(self) -> str:
        return f"[{self.y0}:{self.y1}, {self.x0}:{self.x1}]"

    @classmethod
    def of_shape(cls, shape_yx: tuple[int, int]) -> Box:
        """The box of an image of this shape."""
        return cls(0, 0, *shape_yx)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.y1 - self.y0, self.x1 - self.x0

    @property
    def area_px(self) -> int:
        """Number of pixels."""
        return (self.y1 - self.y0) * (self.x1 - self.x0)

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the last two axes of an array that contains the box."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)

    def expand(self, before_px: int, after_px: int | None = None) -> Box:
        """Grow by ``before_px`` at the upper left and ``after_px`` (default: the same) at the lower right."""
        after = before_px if after_px is None else after_px
        return Box(self.y0 - before_px, self.x0 - before_px, self.y1 + after, self.x1 + after)

    def shift(self, dy: int, dx: int) -> Box:
        """Move by (dy, dx)."""
        return Box(self.y0 + dy, self.x0 + dx, self.y1 + dy, self.x1 + dx)

    def intersect(self, other: Box) -> Box | None:
        """The common pixels; None when there are none."""
        y0, x0 = max(self.y0, other.y0), max(self.x0, other.x0)
        y1, x1 = min(self.y1, other.y1), min(self.x1, other.x1)
        return Box(y0, x0, y1, x1) if y0 < y1 and x0 < x1 else None

    def scale(self, factor: int) -> Box:
        """Multiply every coordinate by ``factor``: turns a box of cells into a box of pixels."""
        return Box(self.y0 * factor, self.x0 * factor, self.y1 * factor, self.x1 * factor)

    def cover(self, cell_px: int) -> Box:
        """The smallest box of cells, ``cell_px`` wide, that covers this box (in cell indices)."""
        return Box(self.y0 // cell_px, self.x0 // cell_px, -(-self.y1 // cell_px), -(-self.x1 // cell_px))


@dataclass(frozen=True, slots=True)
class Tile:
    """One tile of a grid: ``row`` and ``col`` in the grid, the core that it owns and the read, in pixels."""

    row: int
    col: int
    core: Box
    read: Box

    @property
    def index(self) -> tuple[int, int]:
        """(row, col)."""
        return self.row, self.col

    @property
    def core_in_read(self) -> Box:
        """The core in coordinates of the read."""
        return self.core.shift(-self.read.y0, -self.read.x0)


@dataclass(frozen=True, slots=True)
class TileGrid:
    """Partition of a box into cores of ``core_px``, each read with ``halo_px`` around and ``surplus_px`` after.

    The grid starts at the upper left corner of ``area``. Every read has the side ``core_px + 2 * halo_px + surplus_px``
    whatever the size of its core, so that a network sees a single input shape.
    """

    area: Box
    core_px: int
    halo_px: int = 0
    surplus_px: int = 0

    def __post_init__(self) -> None:
        if self.core_px < 1 or self.halo_px < 0 or self.surplus_px < 0 or self.area.area_px < 1:
            raise ValueError(f"no grid of core {self.core_px}, halo {self.halo_px} over {self.area}")

    def __str__(self) -> str:
        return f"{self.rows} x {self.cols} cores of {self.core_px} px over {self.area}"

    @property
    def rows(self) -> int:
        """Number of rows of cores."""
        return -(-self.area.shape[0] // self.core_px)

    @property
    def cols(self) -> int:
        """Number of columns of cores."""
        return -(-self.area.shape[1] // self.core_px)

    @property
    def read_px(self) -> int:
        """Side of every read."""
        return self.core_px + 2 * self.halo_px + self.surplus_px

    def __len__(self) -> int:
        return self.rows * self.cols

    def tile(self, row: int, col: int) -> Tile:
        """The tile at (row, col); raises IndexError outside the grid."""
        if not (0 <= row < self.rows and 0 <= col < self.cols):
            raise IndexError(f"no tile ({row}, {col}) in {self}")
        full = Box(0, 0, self.core_px, self.core_px).shift(
            self.area.y0 + row * self.core_px, self.area.x0 + col * self.core_px
        )
        core = full.intersect(self.area)
        assert core is not None
        return Tile(row, col, core, full.expand(self.halo_px, self.halo_px + self.surplus_px))

    def __iter__(self) -> Iterator[Tile]:
        """All tiles in raster order."""
        return (self.tile(row, col) for row in range(self.rows) for col in range(self.cols))
