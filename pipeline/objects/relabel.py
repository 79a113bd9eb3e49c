"""Merge pieces into objects, filter them, and number them in raster order.

An object is represented by its *root*, the lowest-numbered of its pieces. The parts of a split object replace it.
Filters (area, regions) apply to whole objects and to parts, never to pieces. Numbers are given last, in raster order of
first pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SlideError
from pipeline.geometry import Box
from pipeline.objects.components import (
    HORIZONTAL,
    VERTICAL,
    BlockGraph,
    Components,
    RunLengths,
    same_class_edges,
    union_find,
)
from pipeline.objects.moments import lowest, total

Array = NDArray[Any]

MAX_OBJECTS = 2**32 - 1
_MERGED_BY = {
    **dict.fromkeys(("area", "sum_y", "sum_x"), np.add),
    **dict.fromkeys(("first", "y0", "x0"), np.minimum),
    **dict.fromkeys(("y1", "x1"), np.maximum),
}


def boxes(pieces: RunLengths, core: Box) -> dict[str, Array]:
    """Half-open box of each piece of the block ``core``, as columns y0, x0, y1, x1 in pixels of the image."""
    piece_index = pieces.label - 1
    y0, x0 = lowest(piece_index, pieces.y), lowest(piece_index, pieces.x0)
    y1, x1 = -lowest(piece_index, -pieces.y - 1), -lowest(piece_index, -pieces.x1)
    return {"y0": y0 + core.y0, "x0": x0 + core.x0, "y1": y1 + core.y0, "x1": x1 + core.x0}


def coordinate_sums(pieces: RunLengths, core: Box) -> dict[str, Array]:
    """Sums of y and of x over the pixels of each piece, as columns in pixels of the image."""
    piece_index, length = pieces.label - 1, pieces.length
    sum_y = (pieces.y + core.y0) * length
    sum_x = (2 * core.x0 + pieces.x0 + pieces.x1 - 1) * length // 2  # mean of the first and last pixel of a run
    return {"sum_y": total(piece_index, sum_y), "sum_x": total(piece_index, sum_x)}


@dataclass(frozen=True, slots=True)
class MergedObjects:
    """Candidates for numbering: all pieces of an image in block order, then the parts of split objects.

    Attributes:
        union: Pieces joined into objects.
        stands: True for roots and parts (n,).
        group: Class of each piece and part (n,).
        columns: Sums by name; those of whole objects where ``stands`` is True, undefined elsewhere.
    """

    union: Components
    stands: Array
    group: Array
    columns: dict[str, Array]

    @classmethod
    def of(cls, joined: BlockGraph) -> Self:
        """Merge touching pieces of equal class."""
        union = union_find(joined)
        stands = np.ones(len(joined.group), np.bool_)
        stands[union.other.piece] = False
        columns = {name: union.merge(_MERGED_BY[name], column) for name, column in joined.columns.items()}
        return cls(union, stands, joined.group, columns)

    @property
    def root(self) -> Array:
        """Root of each piece (n,)."""
        root = np.arange(len(self.group))
        root[self.union.piece] = self.union.root
        return root

    def with_parts(self, split: Array, group: Array, columns: dict[str, Array]) -> MergedObjects:
        """Append parts that replace split objects.

        Args:
            split: Roots of the objects that were split.
            group: Class of each part.
            columns: Sums of each part; only columns that both have are kept.
        """
        stands = self.stands.copy()
        stands[split] = False
        return MergedObjects(
            self.union,
            np.concatenate((stands, np.ones(len(group), np.bool_))),
            np.concatenate((self.group, group)),
            {name: np.concatenate((self.columns[name], columns[name])) for name in self.columns if name in columns},
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """Smallest and largest area of an object that is kept, in pixels, both inclusive."""

    min_px: int = 0
    max_px: int | None = None

    def hold(self, area_px: Array) -> Array:
        """Mask of the areas within the limits."""
        return np.asarray((area_px >= self.min_px) & (area_px <= (np.inf if self.max_px is None else self.max_px)))


@dataclass(frozen=True, slots=True)
class NumberedObjects:
    """Final ids, and counts of the objects that are kept.

    Attributes:
        ids: Id of every piece in block order, then of every part (uint32); 0 = removed.
        objects: Number of objects of each class from 0 (0 is background: none).
        area_px: Number of their pixels.
    """

    ids: Array
    objects: Array
    area_px: Array


def number_objects(merged: MergedObjects, kept: Array) -> NumberedObjects:
    """Number objects from 1 in raster order of their first pixel.

    Args:
        merged: Merged objects.
        kept: Mask of pieces and parts that pass the filters; only entries that stand count.

    Raises:
        SlideError: There are more than ``MAX_OBJECTS`` objects.
    """
    area, first, union = merged.columns["area"], merged.columns["first"], merged.union
    roots = np.flatnonzero(merged.stands & kept)
    if len(roots) > MAX_OBJECTS:
        raise SlideError(
            f"expected at most {MAX_OBJECTS} objects, found {len(roots)}: the mask is noise, not objects. "
            f"Raise objects.threshold or objects.min_area_um2"
        )
    ids = np.zeros(len(area), np.uint32)
    ids[roots[np.argsort(first[roots])]] = np.arange(1, len(roots) + 1, dtype=np.uint32)
    ids[union.piece] = ids[union.root]
    objects, area_px = np.zeros((2, int(merged.group.max(initial=0)) + 1), np.int64)
    np.add.at(objects, merged.group[roots], 1)
    np.add.at(area_px, merged.group[roots], area[roots])
    return NumberedObjects(ids, objects, area_px)


def count_seam_objects(joined: BlockGraph, ids: Array) -> dict[str, int]:
    """Count the objects that cross seams.

    A corner is crossed when at least two diagonally opposite of the four pixels that meet there belong to the object.

    Args:
        joined: Pieces and contacts.
        ids: Final id of each piece, 0 = removed.

    Returns:
        Number of objects by kind of seam: ``vertical``, ``horizontal``, ``corner``.
    """
    owner = ids[joined.contacts[0, same_class_edges(joined)]]
    seam = joined.seam[same_class_edges(joined)]
    first, second = ids[joined.corners]
    crossing = {"vertical": owner[seam == VERTICAL], "horizontal": owner[seam == HORIZONTAL]}
    crossing["corner"] = first[first == second]
    return {name: int(np.count_nonzero(np.unique(found))) for name, found in crossing.items()}
