"""Dots: centres of objects whose outlines are unknown, from CSV tables and QuPath's points.

A table has the columns x and y and optionally class: pixels of level 0, counted from 0, x to the right. A table without
lines is an image without objects. Points of a GeoJSON file have QuPath's coordinates, in which the centre of the first
pixel is (0.5, 0.5). Positions are stored in those coordinates; ``points_in`` converts them to array indices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import shapely
from numpy.typing import NDArray

from pipeline.annotations.qupath_objects import ANNOTATED, QuPathObjects
from pipeline.errors import SlideError, TableError
from pipeline.geometry import Box
from pipeline.inputs.cases_table import decimal_number, read_rows
from pipeline.inputs.regions import EXCLUDED, PointFeature, read_points

X, Y, CLASS = "x", "y", "class"
Points = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Dots:
    """Dots of one image, in the order of the file.

    Attributes:
        yx_N2: Positions in level-0 pixels; the centre of the first pixel is (0.5, 0.5).
        kinds: Class of each dot, "" for none.
        where: File and line (or feature) of each dot, for messages.
    """

    yx_N2: NDArray[np.float64]
    kinds: tuple[str, ...]
    where: tuple[str, ...]

    @classmethod
    def read_table(cls, path: Path, shape_yx: tuple[int, int]) -> Self:
        """Read a CSV table.

        Args:
            path: The table.
            shape_yx: Shape of level 0.

        Raises:
            ConfigError: The table is malformed, or a dot lies outside the image; the message names file and line.
        """
        rows = [(f"{path}, line {line}", cells) for line, cells in read_rows(path, X, (X, Y, CLASS), Y)]
        found = [(_number(where, cells, Y), _number(where, cells, X)) for where, cells in rows]
        kinds = tuple(cells.get(CLASS, "").strip() for _, cells in rows)
        places = tuple(where for where, _ in rows)
        for where, at_yx in zip(places, found, strict=True):
            _check_inside(where, at_yx, shape_yx)
        return cls(np.array(found, np.float64).reshape(-1, 2) + 0.5, kinds, places)

    @classmethod
    def of_drawn(cls, path: Path, drawn: QuPathObjects, shape_yx: tuple[int, int]) -> Self:
        """Read the points of a GeoJSON file. Those on an outlined object or in an excluded area are left out.

        Args:
            path: The file.
            drawn: Its areas.
            shape_yx: Shape of level 0.

        Raises:
            SlideError: A point lies outside the image, or has a class of areas.
        """
        points = read_points(path)
        for point in points:
            _check_point(point, shape_yx)
        yx_N2 = np.array([(point.y, point.x) for point in points], np.float64).reshape(-1, 2)
        kept = np.flatnonzero(~_covered(yx_N2, (*drawn.areas, *drawn.holes)))
        return cls(yx_N2[kept], tuple(points[i].kind for i in kept), tuple(points[i].where for i in kept))

    def distinct(self) -> Self:
        """The same without dots that repeat the position and class of an earlier one."""
        first: dict[tuple[float, float, str], int] = {}
        for i, ((y, x), kind) in enumerate(zip(self.yx_N2.tolist(), self.kinds, strict=True)):
            first.setdefault((y, x, kind), i)
        kept = list(first.values())
        return type(self)(self.yx_N2[kept], tuple(self.kinds[i] for i in kept), tuple(self.where[i] for i in kept))

    def numbered(self, names: Sequence[str]) -> Points:
        """Positions and class numbers: level-0 y, x and class (n, 3) in float64; a single name is that of all dots."""
        numbers = [1 if len(names) == 1 else names.index(kind) + 1 for kind in self.kinds]
        return np.column_stack((self.yx_N2, np.array(numbers, np.float64)))


def points_in(area: Box, points_N3: Points, shape_yx: tuple[int, int], scale_yx: tuple[float, float]) -> Points:
    """Dots in a part of an image.

    Args:
        area: The part, in pixels of the image.
        points_N3: Level-0 y, x and class, as ``Dots.numbered`` returns.
        shape_yx: Shape of the image.
        scale_yx: Level-0 pixels per pixel of the image.

    Returns:
        Array indices y, x and class (m, 3) in float32: the centre of the first pixel of the part is (0, 0).
    """
    last = np.nextafter(np.array(shape_yx, np.float64), 0)
    yx_N2 = np.clip(points_N3[:, :2] / scale_yx, 0, last)  # a length that is rounded down loses part of a pixel
    start, stop = np.array([area.y0, area.x0]), np.array([area.y1, area.x1])
    inside = ((yx_N2 >= start) & (yx_N2 < stop)).all(axis=1)
    index_N2 = np.clip(yx_N2[inside] - start - 0.5, 0, stop - start - 1)
    return np.column_stack((index_N2, points_N3[inside, 2])).astype(np.float32)


def _number(where: str, cells: dict[str, str], column: str) -> float:
    text = cells[column].strip()
    if math.isfinite(value := decimal_number(text)):
        return value
    raise TableError(where, f"expected a number as {column}, in pixels of level 0, found {text!r}")


def _check_inside(where: str, at_yx: tuple[float, float], shape_yx: tuple[int, int]) -> None:
    """Check a position; the lower right border itself is accepted and belongs to the last pixel."""
    if all(0 <= at <= length for at, length in zip(at_yx, shape_yx, strict=True)):
        return
    raise TableError(
        where,
        f"expected a dot in the image, x 0 to {shape_yx[1]} and y 0 to {shape_yx[0]}, found x {at_yx[1]:g}, y "
        f"{at_yx[0]:g}. It belongs to another image or to a reduced copy: give pixels of level 0, or remove the line",
    )


def _check_point(point: PointFeature, shape_yx: tuple[int, int]) -> None:
    if point.kind.casefold() in (ANNOTATED, *EXCLUDED):
        raise SlideError(f"{point.where}: expected an area of class {point.kind}, found a point. Draw an area")
    _check_inside(point.where, (point.y, point.x), shape_yx)


def _covered(yx_N2: NDArray[np.float64], areas: Sequence[bytes]) -> NDArray[np.bool_]:
    """Whether each point lies in one of the areas."""
    found = np.zeros(len(yx_N2), bool)
    if areas and len(yx_N2):
        tree = shapely.STRtree(shapely.from_wkb(np.array(areas, object)))
        found[tree.query(shapely.points(yx_N2[:, ::-1]), predicate="intersects")[0]] = True
    return found
