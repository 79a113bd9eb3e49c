"""QuPath annotations as a label image that is rasterised window by window.

Coordinates are those of QuPath (see ``regions``): pixels of level 0, x before y. A pixel belongs to an object when its
centre lies in the annotated area or on its outline, evaluated in coordinates of the whole slide, so windows of any size
agree to the pixel. Where areas overlap the smallest wins, independent of their order in the file.
``rasterio.features.rasterize`` is not used because it assigns centres on an outline by side.

Areas of the class ``Region*`` (QuPath's own name) are not objects but mark the annotated parts of the slide. Areas of
the classes ``exclude`` and ``Ignore*`` are removed from all objects, and ``ignored`` returns them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import shapely
from numpy.typing import NDArray

from pipeline.errors import SlideError
from pipeline.geometry import Box
from pipeline.inputs.regions import EXCLUDED, Feature, Regions, read_features

ANNOTATED = "region*"
_POINTS = 1 << 12
"""Smaller windows are tested pixel by pixel, larger ones first as a whole."""

Labels = NDArray[np.int32]


class _Rule(NamedTuple):
    """Predicate for points, and one for boxes that implies it for all their points."""

    holds: Callable[..., NDArray[np.bool_]]
    holds_all: Callable[..., bool]


_IN_OBJECT = _Rule(shapely.intersects_xy, shapely.covers)  # the outline is inside
_IN_HOLE = _Rule(shapely.contains_xy, shapely.contains_properly)  # the outline is not removed


@dataclass(frozen=True, slots=True, eq=False)
class QuPathObjects:
    """Objects of one slide, numbered from 1 in the order of the file.

    Attributes:
        kinds: Class of each object, "" for none.
        areas: Objects as well-known binary, so that threads do not share geometries.
        holes: Excluded areas as well-known binary.
        parts: Annotated boxes; empty when the whole slide is annotated.
        bounds: Bounds x0, y0, x1, y1 of objects, then of holes (n, 4).
        order: Indices of objects by decreasing area.
    """

    kinds: tuple[str, ...]
    areas: tuple[bytes, ...]
    holes: tuple[bytes, ...]
    parts: tuple[Box, ...]
    bounds: NDArray[np.float64]
    order: NDArray[np.intp]

    @classmethod
    def read(cls, path: Path, shape_yx: tuple[int, int]) -> Self:
        """Read the annotations of a slide.

        Args:
            path: GeoJSON file.
            shape_yx: Shape of level 0.

        Raises:
            SlideError: A feature is neither an area nor a point, all annotations lie outside the slide, or a
                ``Region*`` is not a rectangle or holds no pixel of the slide.
        """
        features = read_features(path, beside_points=True)
        kinds = [feature.kind.casefold() for feature in features]
        parts = [part for part, kind in zip(features, kinds, strict=True) if kind == ANNOTATED]
        holes = tuple(feature.area for feature, kind in zip(features, kinds, strict=True) if kind in EXCLUDED)
        objects = [feature for feature, kind in zip(features, kinds, strict=True) if kind not in (ANNOTATED, *EXCLUDED)]
        if objects:
            _regions(objects).check_inside(path, shape_yx)
        areas = tuple(feature.area for feature in objects)
        shapes = shapely.from_wkb(np.array([*areas, *holes], object))
        return cls(
            tuple(feature.kind for feature in objects),
            areas,
            holes,
            tuple(_part(path, part, shape_yx) for part in parts),
            shapely.bounds(shapes).reshape(-1, 4),
            np.argsort(-shapely.area(shapes[: len(areas)]), kind="stable"),
        )

    def paint(self, box: Box) -> Labels:
        """Number of the object at each pixel of a box (y, x), 0 for none."""
        found: Labels = np.zeros(box.shape, np.int32)
        touched = self._touched(box)
        for number in self.order[touched[self.order]]:
            _fill(found, box, _Piece(shapely.from_wkb(self.areas[number]), int(number) + 1, _IN_OBJECT))
        if touched[len(self.areas) :].any():
            found[self.ignored(box)] = 0
        return found

    def ignored(self, box: Box) -> NDArray[np.bool_]:
        """Mask (y, x) of the pixels of a box that lie in an excluded area."""
        found: Labels = np.zeros(box.shape, np.int32)
        for number in np.flatnonzero(self._touched(box)[len(self.areas) :]):
            _fill(found, box, _Piece(shapely.from_wkb(self.holes[number]), 1, _IN_HOLE))
        return found > 0

    def _touched(self, box: Box) -> NDArray[np.bool_]:
        x0, y0, x1, y1 = self.bounds.T
        return np.asarray((x1 >= box.x0) & (x0 <= box.x1) & (y1 >= box.y0) & (y0 <= box.y1))


def _regions(objects: Sequence[Feature]) -> Regions:
    return Regions(
        tuple(one.name or one.kind or f"object {number}" for number, one in enumerate(objects, 1)),
        tuple(one.kind for one in objects),
        tuple(one.area for one in objects),
    )


def _part(path: Path, part: Feature, shape_yx: tuple[int, int]) -> Box:
    """Whole pixels of a ``Region*``."""
    shape = shapely.from_wkb(part.area)
    x0, y0, x1, y1 = shapely.bounds(shape)
    where = f"{path}: {part.name or 'Region*'} at x {x0:.0f} to {x1:.0f}, y {y0:.0f} to {y1:.0f}"
    if shapely.area(shape) < (1 - 1e-6) * (x1 - x0) * (y1 - y0):
        raise SlideError(f"{where}: expected a rectangle: training tiles are taken from it. Draw a rectangle")
    top, left = max(0, math.ceil(y0)), max(0, math.ceil(x0))
    bottom, right = min(shape_yx[0], math.floor(y1)), min(shape_yx[1], math.floor(x1))
    if bottom <= top or right <= left:
        raise SlideError(
            f"{where}: expected an area of the slide ({shape_yx[1]} x {shape_yx[0]} px), found none. "
            f"Export the annotations of this slide"
        )
    return Box(top, left, bottom, right)


# ---- rasterisation ---------------------------------------------------------------------------------------------------


class _Piece(NamedTuple):
    """An area, its number and its predicates."""

    area: Any
    number: int
    rule: _Rule


def _fill(out: Labels, origin: Box, piece: _Piece) -> None:
    """Rasterise one area into a window, in place."""
    x0, y0, x1, y1 = shapely.bounds(piece.area)
    around = Box(int(y0) - 1, int(x0) - 1, int(y1) + 1, int(x1) + 1).intersect(origin)
    if around is None:
        return
    shapely.prepare(piece.area)
    for box, inside in _settled(around, piece):
        window = out[box.shift(-origin.y0, -origin.x0).slices]
        window[inside] = piece.number


def _settled(box: Box, piece: _Piece) -> Iterator[tuple[Box, Any]]:
    """Divide a window into boxes, each with the mask or slice of its pixels inside; empty boxes are left out."""
    if box.area_px <= _POINTS:
        y, x = np.mgrid[box.y0 : box.y1, box.x0 : box.x1] + 0.5
        yield box, piece.rule.holds(piece.area, x, y)
        return
    centres = shapely.box(box.x0 + 0.25, box.y0 + 0.25, box.x1 - 0.25, box.y1 - 0.25)
    if piece.rule.holds_all(piece.area, centres):
        yield box, slice(None)
    elif shapely.intersects(piece.area, centres):
        for half in _halves(box):
            yield from _settled(half, piece)


def _halves(box: Box) -> tuple[Box, Box]:
    height, width = box.shape
    if height >= width:
        middle = box.y0 + height // 2
        return Box(box.y0, box.x0, middle, box.x1), Box(middle, box.x0, box.y1, box.x1)
    middle = box.x0 + width // 2
    return Box(box.y0, box.x0, box.y1, middle), Box(box.y0, middle, box.y1, box.x1)
