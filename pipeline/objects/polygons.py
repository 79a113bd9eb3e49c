"""Polygons of labelled objects on the pixel grid, traced block by block and joined.

Coordinates are integer pixel corners until they are scaled, so parts of neighbouring blocks meet exactly, areas are
exact, and a joined outline equals that of one trace of the whole image.

      +--+--+..+--+       x to the right, y down, (0, 0) is the upper left corner of the first pixel;
      |##|##:##|          a part ends at its block's edge (:), the union removes that edge again
      +--+--+..+
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import rasterio.features
import shapely
from numpy.typing import NDArray
from shapely import MultiPolygon, Polygon

Ring = list[list[float]]
Outline = list[list[Ring]]
"""Polygons of one object, each a list of rings, the outer one first; rings are closed lists of [x, y]."""


_AT_ONCE = 512  # shapes converted to lists at a time: more live lists slow Python's garbage collector


@dataclass(frozen=True, slots=True)
class PolygonParts:
    """Polygons of the objects in one block as flat arrays, which are stored without pickling.

    Attributes:
        ids: Object of each polygon (p,).
        rings: Number of rings of each polygon (p,).
        points: Number of points of each ring (r,).
        corners: Pixel corners (x, y) in the whole image (n, 2).
    """

    ids: NDArray[np.uint32]
    rings: NDArray[np.int32]
    points: NDArray[np.int32]
    corners: NDArray[np.int32]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All contents as named arrays, to be stored."""
        return {"ids": self.ids, "rings": self.rings, "points": self.points, "corners": self.corners}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> PolygonParts:
        """The inverse of ``arrays``."""
        return cls(arrays["ids"], arrays["rings"], arrays["points"], arrays["corners"])

    def select(self, chosen: NDArray[np.bool_]) -> PolygonParts:
        """The polygons for which ``chosen`` (p,) is True."""
        rings = np.repeat(chosen, self.rings)
        return PolygonParts(
            self.ids[chosen], self.rings[chosen], self.points[rings], self.corners[np.repeat(rings, self.points)]
        )

    def polygons(self) -> NDArray[Any]:
        """One shapely Polygon for each entry of ``ids``."""
        offsets = _offsets(self.points), _offsets(self.rings)
        return np.asarray(shapely.from_ragged_array(shapely.GeometryType.POLYGON, self.corners.astype(float), offsets))


def trace(labels_YX: NDArray[np.uint32], origin_yx: tuple[int, int]) -> PolygonParts:
    """Trace pixel-exact polygons, with holes, of every 4-connected piece of every object in a block.

    An object whose pieces meet only at a corner, or in another block, gives several polygons. Tracing 8-connected
    pieces would give rings that touch themselves, which are not valid polygons (OGC 06-103r4, 6.1.11).

    Args:
        labels_YX: Object ids of the block, 0 = background.
        origin_yx: Upper left pixel of the block in the whole image.

    Returns:
        Polygons sorted by id.
    """
    signed = np.ascontiguousarray(labels_YX).view(
        np.int32
    )  # the tracer does not support uint32; the bits stay the same
    shapes = list(rasterio.features.shapes(signed, mask=labels_YX > 0, connectivity=4))
    ids = np.array([int(value) for _, value in shapes], np.int64).astype(np.uint32)
    order = np.argsort(ids, kind="stable")
    traced = [shapes[index][0]["coordinates"] for index in order]
    every_ring = [ring for rings in traced for ring in rings]
    numbers = itertools.chain.from_iterable(itertools.chain.from_iterable(every_ring))
    corners = np.fromiter(numbers, np.float64).astype(np.int32).reshape(-1, 2)
    return PolygonParts(
        ids[order],
        np.array([len(rings) for rings in traced], np.int32),
        np.array([len(ring) for ring in every_ring], np.int32),
        corners + np.array(origin_yx[::-1], np.int32),
    )


def join(pieces: Sequence[Polygon], *, across_blocks: bool) -> Polygon | MultiPolygon:
    """Join the pieces of one object.

    Args:
        pieces: Polygons of the object.
        across_blocks: Whether they come from several blocks. Pieces of one block never share an edge and need no union.

    Returns:
        A Polygon, or a MultiPolygon where pieces meet at a corner or not at all.
    """
    if len(pieces) == 1:
        return pieces[0]
    return shapely.union_all(np.asarray(pieces)) if across_blocks else MultiPolygon(pieces)


def outlines(shapes: Sequence[Polygon | MultiPolygon], scale_yx: tuple[float, float]) -> Iterator[Outline]:
    """Convert shapes to rings of corners; the result does not depend on how the object was divided into blocks.

    Rings start at their leftmost upper corner and are sorted by it; outer rings run counter-clockwise in (x, y), holes
    clockwise (RFC 7946, 3.1.6).

    Args:
        shapes: Shapes in pixel corners of the image.
        scale_yx: Factor for y and for x, to level 0 for example.

    Yields:
        The rings of each shape. Coordinates are whole numbers at scale 1, else rounded to a thousandth of a pixel.
    """
    for start in range(0, len(shapes), _AT_ONCE):
        yield from _outlines(shapes[start : start + _AT_ONCE], scale_yx)


def _outlines(shapes: Sequence[Polygon | MultiPolygon], scale_yx: tuple[float, float]) -> Iterator[Outline]:
    normal = shapely.orient_polygons(shapely.normalize(np.asarray(shapes, object)), exterior_cw=False)
    kind, points, (ring_ends, polygon_ends, *shape_ends) = shapely.to_ragged_array(normal)
    corners, ring_ends = _corners_only(points.astype(np.int64), np.asarray(ring_ends))
    scaled = _scale(corners, scale_yx)
    rings = [scaled[start:end] for start, end in itertools.pairwise(ring_ends.tolist())]
    spans = itertools.pairwise(polygon_ends.tolist())
    polygons = [[rings[start], *sorted(rings[start + 1 : end])] for start, end in spans]
    if kind == shapely.GeometryType.POLYGON:
        yield from ([polygon] for polygon in polygons)
    else:
        yield from (sorted(polygons[start:end]) for start, end in itertools.pairwise(shape_ends[0].tolist()))


def _corners_only(points: NDArray[np.int64], ring_ends: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Drop points in the middle of a straight edge, which joins leave behind. A ring's first point is a corner."""
    before, after = np.diff(points, axis=0, prepend=points[:1]), np.diff(points, axis=0, append=points[-1:])
    keep = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    keep[ring_ends[:-1]] = True
    keep[ring_ends[1:] - 1] = True
    kept_before = np.concatenate([[0], np.cumsum(keep)])
    return points[keep], kept_before[ring_ends]


def _scale(corners: NDArray[np.int64], scale_yx: tuple[float, float]) -> list[list[float]]:
    if scale_yx == (1.0, 1.0):
        return list(corners.tolist())
    return list((corners * np.array(scale_yx[::-1])).round(3).tolist())


def _offsets(counts: NDArray[np.int32]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
