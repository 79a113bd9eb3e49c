"""Objects somebody drew in QuPath, as a label image that is painted window by window.

Coordinates are QuPath's (see ``regions``): pixels of level 0, x before y. The one decision made here: a pixel belongs
to an object when its centre lies in the drawn area, asked of the area itself in coordinates of the whole slide. So
windows of any size agree to the pixel. Of areas that overlap the smallest wins: what was drawn inside something is
more than a part of it, in whatever order it was saved.

Areas of the class ``Region*`` (QuPath's own name for it) are no objects: they say which parts of the slide were
annotated at all. In those of the classes ``exclude`` and ``Ignore*`` nobody says what is there: they are cut out of all
objects, and ``ignored`` tells where they are.
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
"""A window of fewer pixels is asked pixel by pixel; a larger one first as a whole."""

Labels = NDArray[np.int32]


class _Rule(NamedTuple):
    """When a point lies in an area, and what implies that all points of a box do."""

    holds: Callable[..., NDArray[np.bool_]]
    holds_all: Callable[..., bool]


_IN_OBJECT = _Rule(shapely.intersects_xy, shapely.covers)  # on the outline is inside
_IN_HOLE = _Rule(shapely.contains_xy, shapely.contains_properly)  # on the outline is not cut out


@dataclass(frozen=True, slots=True, eq=False)
class QuPathObjects:
    """The objects of one slide, numbered from 1 in the order of the file; ``kinds`` are their classes ("" for none).

    ``areas`` and ``holes`` are well-known binary, so that no two threads share a geometry; ``bounds`` (n, 4) are
    x0, y0, x1, y1 of objects, then of holes. ``parts`` are the boxes that were annotated, none when all of it was.
    """

    kinds: tuple[str, ...]
    areas: tuple[bytes, ...]
    holes: tuple[bytes, ...]
    parts: tuple[Box, ...]
    bounds: NDArray[np.float64]
    order: NDArray[np.intp]

    @classmethod
    def read(cls, path: Path, shape_yx: tuple[int, int]) -> Self:
        """The annotations of a slide of this level-0 shape.

        Raises SlideError naming the file for what is no area, for annotations that all lie outside the slide, and for
        a Region* that is no rectangle or holds no pixel of the slide.
        """
        features = read_features(path)
        kinds = [feature.kind.casefold() for feature in features]
        parts = [part for part, kind in zip(features, kinds, strict=True) if kind == ANNOTATED]
        holes = tuple(hole.area for hole, kind in zip(features, kinds, strict=True) if kind in EXCLUDED)
        objects = [one for one, kind in zip(features, kinds, strict=True) if kind not in (ANNOTATED, *EXCLUDED)]
        if objects:
            _regions(objects).check_inside(path, shape_yx)
        areas = tuple(one.area for one in objects)
        shapes = shapely.from_wkb(np.array([*areas, *holes], object))
        return cls(
            tuple(one.kind for one in objects),
            areas,
            holes,
            tuple(_part(path, part, shape_yx) for part in parts),
            shapely.bounds(shapes).reshape(-1, 4),
            np.argsort(-shapely.area(shapes[: len(areas)]), kind="stable"),
        )

    def paint(self, box: Box) -> Labels:
        """The number of the object at each pixel of the box (y, x), 0 for none."""
        found: Labels = np.zeros(box.shape, np.int32)
        touched = self._touched(box)
        for number in self.order[touched[self.order]]:
            _fill(found, box, _Piece(shapely.from_wkb(self.areas[number]), int(number) + 1, _IN_OBJECT))
        if touched[len(self.areas) :].any():
            found[self.ignored(box)] = 0
        return found

    def ignored(self, box: Box) -> NDArray[np.bool_]:
        """Which pixels of the box (y, x) lie in a hole."""
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
    """The whole pixels of a Region*."""
    shape = shapely.from_wkb(part.area)
    x0, y0, x1, y1 = shapely.bounds(shape)
    where = f"{path}: {part.name or 'Region*'} at x {x0:.0f} to {x1:.0f}, y {y0:.0f} to {y1:.0f}"
    if shapely.area(shape) < (1 - 1e-6) * (x1 - x0) * (y1 - y0):
        raise SlideError(f"{where}: expected a rectangle: tiles for training are cut out of it. Draw it as one")
    top, left = max(0, math.ceil(y0)), max(0, math.ceil(x0))
    bottom, right = min(shape_yx[0], math.floor(y1)), min(shape_yx[1], math.floor(x1))
    if bottom <= top or right <= left:
        raise SlideError(
            f"{where}: expected an area of the slide ({shape_yx[1]} x {shape_yx[0]} px), found none of it there. "
            f"Export it from this very slide"
        )
    return Box(top, left, bottom, right)


# ---- painting --------------------------------------------------------------------------------------------------------


class _Piece(NamedTuple):
    """An area, the number it is painted with and its rule."""

    area: Any
    number: int
    rule: _Rule


def _fill(out: Labels, origin: Box, piece: _Piece) -> None:
    """Paint one area into a window."""
    x0, y0, x1, y1 = shapely.bounds(piece.area)
    around = Box(int(y0) - 1, int(x0) - 1, int(y1) + 1, int(x1) + 1).intersect(origin)
    if around is None:
        return
    shapely.prepare(piece.area)
    for box, inside in _settled(around, piece):
        window = out[box.shift(-origin.y0, -origin.x0).slices]
        window[inside] = piece.number


def _settled(box: Box, piece: _Piece) -> Iterator[tuple[Box, Any]]:
    """Boxes that make up the window, with their pixels that lie in the area; those without any are left out."""
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
