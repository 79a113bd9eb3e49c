"""From pieces to numbered objects: what stands for an object, which are kept, in which order they are numbered.

An object stands at its *root*, the lowest-numbered of its pieces; when it was split, its parts stand in its place. The
one decision made here: whatever drops objects (area, regions) is asked of whole objects and of parts, never of pieces,
and numbers are given last, in raster order of first pixels.
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
    """Columns: the half-open box of each piece of the block ``core``, in pixels of the image."""
    piece_index = pieces.label - 1
    y0, x0 = lowest(piece_index, pieces.y), lowest(piece_index, pieces.x0)
    y1, x1 = -lowest(piece_index, -pieces.y - 1), -lowest(piece_index, -pieces.x1)
    return {"y0": y0 + core.y0, "x0": x0 + core.x0, "y1": y1 + core.y0, "x1": x1 + core.x0}


def coordinate_sums(pieces: RunLengths, core: Box) -> dict[str, Array]:
    """Columns: the sums of y and of x over the pixels of each piece, in pixels of the image."""
    piece_index, length = pieces.label - 1, pieces.length
    sum_y = (pieces.y + core.y0) * length
    sum_x = (2 * core.x0 + pieces.x0 + pieces.x1 - 1) * length // 2  # of a run, first and last pixel's mean
    return {"sum_y": total(piece_index, sum_y), "sum_x": total(piece_index, sum_x)}


@dataclass(frozen=True, slots=True)
class MergedObjects:
    """What may be numbered: all pieces of an image in block order, then parts of split objects.

    ``stands`` marks roots and parts; only there are the ``columns`` those of whole objects.
    """

    union: Components
    stands: Array
    group: Array
    columns: dict[str, Array]

    @classmethod
    def of(cls, joined: BlockGraph) -> Self:
        """Pieces that touch, united."""
        union = union_find(joined)
        stands = np.ones(len(joined.group), np.bool_)
        stands[union.other.piece] = False
        columns = {name: union.merge(_MERGED_BY[name], column) for name, column in joined.columns.items()}
        return cls(union, stands, joined.group, columns)

    @property
    def root(self) -> Array:
        """The root of each piece."""
        root = np.arange(len(self.group))
        root[self.union.piece] = self.union.root
        return root

    def with_parts(self, split: Array, group: Array, columns: dict[str, Array]) -> MergedObjects:
        """With parts at the end, in place of the objects whose roots are ``split``; only columns that both have."""
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
        """Which areas lie within."""
        return np.asarray((area_px >= self.min_px) & (area_px <= (np.inf if self.max_px is None else self.max_px)))


@dataclass(frozen=True, slots=True)
class NumberedObjects:
    """The final id (uint32, 0 = removed) of every piece in block order, then of every part, and what was kept.

    ``objects`` and ``area_px`` count kept objects and their pixels for classes 0.. (0 is background: none).
    """

    ids: Array
    objects: Array
    area_px: Array


def number_objects(whole: MergedObjects, kept: Array) -> NumberedObjects:
    """Number the objects that stand and are ``kept`` 1.. in raster order of their first pixel.

    Raises SlideError when there are more objects than a uint32 can tell apart.
    """
    area, first, union = whole.columns["area"], whole.columns["first"], whole.union
    roots = np.flatnonzero(whole.stands & kept)
    if len(roots) > MAX_OBJECTS:
        raise SlideError(
            f"expected at most {MAX_OBJECTS} objects, found {len(roots)}: the mask is noise, not objects. "
            f"Raise objects.threshold or objects.min_area_um2"
        )
    ids = np.zeros(len(area), np.uint32)
    ids[roots[np.argsort(first[roots])]] = np.arange(1, len(roots) + 1, dtype=np.uint32)
    ids[union.piece] = ids[union.root]
    objects, area_px = np.zeros((2, int(whole.group.max(initial=0)) + 1), np.int64)
    np.add.at(objects, whole.group[roots], 1)
    np.add.at(area_px, whole.group[roots], area[roots])
    return NumberedObjects(ids, objects, area_px)


def count_seam_objects(joined: BlockGraph, ids: Array) -> dict[str, int]:
    """Objects of these ids (of pieces) that cross a vertical seam, a horizontal seam, a four-block corner.

    A corner is crossed when at least two diagonally opposite of the four pixels that meet there are the object's own.
    """
    owner = ids[joined.contacts[0, same_class_edges(joined)]]
    seam = joined.seam[same_class_edges(joined)]
    first, second = ids[joined.corners]
    crossing = {"vertical": owner[seam == VERTICAL], "horizontal": owner[seam == HORIZONTAL]}
    crossing["corner"] = first[first == second]
    return {name: int(np.count_nonzero(np.unique(found))) for name, found in crossing.items()}
