"""Regions of a slide drawn in QuPath, and the points and rectangles of the slide inside them.

Coordinates are QuPath's: pixels of level 0, (0, 0) the upper left *corner* of the first pixel, x before y in the file.
Areas are stored as drawn and evaluated point by point or rectangle by rectangle. Nothing is rasterised, so no result
depends on a resolution, a block or a cell.

Areas of the classes ``exclude`` and ``Ignore*`` (QuPath's name for it), in any letter case, are cut out of all regions.
A ring that crosses itself is filled by the even-odd rule (an edge that is walked twice counts once).
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from pipeline.errors import SlideError

EXCLUDED = ("exclude", "ignore*")
EXTENSIONS = (".geojson", ".geojson.gz")
LARGEST_BYTES = 64 * 2**20
"""Limit of the unpacked GeoJSON; a million corners need half of it."""

Coordinates = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Regions:
    """Areas of one slide, in the order of the file; equal by value, hashable and cheap to pickle.

    Attributes:
        names: Distinct names.
        classes: Class of each region; "" without one.
        areas: Each area as well-known binary, so that threads never share a geometry.
        holes: Areas cut out of every region, as well-known binary.
    """

    names: tuple[str, ...]
    classes: tuple[str, ...]
    areas: tuple[bytes, ...]
    holes: tuple[bytes, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Regions:
        """Read the annotations of a GeoJSON file as QuPath exports it, optionally gzipped.

        Raises:
            SlideError: If a feature is not an area, or the file has no region; the message names the file and the
            feature.
        """
        features = read_features(path)
        kept = [feature for feature in features if feature.kind.casefold() not in EXCLUDED]
        if not kept:
            content = f"{len(features)} areas to exclude and nothing else" if features else "none"
            raise SlideError(
                f"{path}: expected at least one region, found {content}. Draw one in QuPath (a rectangle around the "
                f"slide keeps all of it) and export it again, or leave the file out and switch off input.regions"
            )
        holes = tuple(feature.area for feature in features if feature.kind.casefold() in EXCLUDED)
        names = _distinct([region.name or region.kind or f"region {number}" for number, region in enumerate(kept, 1)])
        return cls(names, tuple(region.kind for region in kept), tuple(region.area for region in kept), holes)

    def digest(self) -> str:
        """SHA-256 of the areas and holes, in order. Names and classes do not affect pixels and are left out."""
        hashed = hashlib.sha256()
        for group in (self.areas, self.holes):
            hashed.update(len(group).to_bytes(8, "little"))
            for area in group:
                hashed.update(len(area).to_bytes(8, "little") + area)
        return hashed.hexdigest()

    def summary(self) -> dict[str, Any]:
        """JSON form: names and classes in the order of the indices, and the digest."""
        return {"names": list(self.names), "classes": list(self.classes), "digest": self.digest()}

    def region_of(self, y_px: Coordinates, x_px: Coordinates) -> NDArray[np.int32]:
        """Find the region of each point.

        A point on the outline of a region is inside it; a point on the outline of an excluded area is not excluded.

        Args:
            y_px: Level-0 pixel-edge coordinates: the centre of the first pixel is 0.5.
            x_px: The same along x; broadcast against ``y_px``.

        Returns:
            Index of the first region that contains each point; -1 outside all regions and in excluded areas.
        """
        yx = np.stack([np.asarray(values, np.float64) for values in np.broadcast_arrays(y_px, x_px)])
        indices = np.full(yx.shape[1:], -1, np.int32)
        for number, area in enumerate(self.areas):
            indices[_points_inside(shapely.intersects_xy, area, yx, indices < 0)] = number
        for hole in self.holes:
            indices[_points_inside(shapely.contains_xy, hole, yx, indices >= 0)] = -1
        return indices

    def touched(self, y_px: Coordinates, x_px: Coordinates) -> Mask:
        """Find the rectangles of a grid that share some area with a region; a shared edge is no area.

        Args:
            y_px: rows + 1 edges, ascending level-0 coordinates.
            x_px: cols + 1 edges, ascending level-0 coordinates.

        Returns:
            Boolean (rows, cols) array.
        """
        touched = np.zeros((len(y_px) - 1, len(x_px) - 1), bool)
        merged = self._merged()
        for row, (top, bottom) in enumerate(itertools.pairwise(y_px)):
            strip = shapely.intersection(merged, shapely.box(x_px[0], top, x_px[-1], bottom))
            if shapely.area(strip) > 0:
                cells = shapely.box(x_px[:-1], top, x_px[1:], bottom)
                touched[row] = shapely.area(shapely.intersection(strip, cells)) > 0
        return touched

    def cells(self, shape_yx: tuple[int, int], cell_px: int, level0_from_image: tuple[float, float]) -> Mask:
        """Find the cells of an image that share some area with a region.

        Args:
            shape_yx: (y, x) shape of the image in pixels.
            cell_px: Side of a cell in image pixels.
            level0_from_image: (y, x) factors from image to level-0 coordinates.

        Returns:
            Boolean (rows, cols) array.
        """
        edges = [
            np.append(np.arange(0, length, cell_px), length) * scale
            for length, scale in zip(shape_yx, level0_from_image, strict=True)
        ]
        return self.touched(edges[0], edges[1])

    def check_inside(self, slide: Path, shape_yx: tuple[int, int]) -> tuple[str, ...]:
        """Check the regions against the extent of a slide.

        Args:
            slide: Path of the slide, for messages.
            shape_yx: (y, x) shape of its level 0.

        Returns:
            One warning for each region that is partly or completely outside the slide.

        Raises:
            SlideError: If all regions are outside: they were drawn on another slide, or on a copy of another size.
        """
        extent = shapely.box(0, 0, shape_yx[1], shape_yx[0])
        areas = shapely.from_wkb(self.areas)
        inside = shapely.area(shapely.intersection(areas, extent)) / shapely.area(areas)
        if not (inside > 0).any():
            x0, y0, x1, y1 = shapely.total_bounds(areas)
            raise SlideError(
                f"{slide}: all {len(areas)} regions lie outside the slide: expected coordinates within {shape_yx[1]} x "
                f"{shape_yx[0]} (x, y; pixels of level 0), found {x0:.0f} to {x1:.0f}, {y0:.0f} to {y1:.0f}. They "
                f"belong to another slide, or were drawn on a reduced copy: export them from this file"
            )
        return tuple(
            f"{slide}: {1 - part:.1%} of region {name!r} lies outside the slide"
            for name, part in zip(self.names, inside, strict=True)
            if part < 1
        )

    def rings(self) -> Iterator[Coordinates]:
        """The (x, y) corners of each outline of regions, holes and excluded areas; the first corner is repeated."""
        for area in (*self.areas, *self.holes):
            for ring in shapely.get_rings(shapely.get_parts(shapely.from_wkb(area))):
                yield shapely.get_coordinates(ring)

    def _merged(self) -> Any:
        """All regions without the excluded areas, as one geometry."""
        areas, holes = (shapely.union_all(shapely.from_wkb(list(group))) for group in (self.areas, self.holes))
        return shapely.difference(areas, holes) if self.holes else areas


def find_regions(source: Path, key: str) -> Path:
    """Find the regions file of a slide.

    Args:
        source: A GeoJSON file, or a folder of ``<key>.geojson`` (``.geojson.gz``).
        key: Key of the slide.

    Raises:
        SlideError: If the folder has none; the message lists the paths tried.
    """
    if not source.is_dir():
        return source
    tried = [source / f"{key}{extension}" for extension in EXTENSIONS]
    for path in tried:
        if path.is_file():
            return path
    raise SlideError(
        f"{key}: no regions: expected {' or '.join(map(str, tried))}. Export the slide's annotations from QuPath as "
        f"GeoJSON under that name, or run slides without regions in a run of their own"
    )


def _points_inside(holds: Callable[..., Mask], area: bytes, yx: Coordinates, candidates: Mask) -> Mask:
    """The candidate points for which ``holds(area, x, y)``."""
    shape, (y, x) = shapely.from_wkb(area), yx
    x0, y0, x1, y1 = shapely.bounds(shape)
    inside: Mask = candidates & (y >= y0) & (y <= y1) & (x >= x0) & (x <= x1)
    shapely.prepare(shape)
    inside[inside] = holds(shape, x[inside], y[inside])
    return inside


# ---- the file --------------------------------------------------------------------------------------------------------


POINTS = ("Point", "MultiPoint")


def read_features(path: Path, *, beside_points: bool = False) -> list[Feature]:
    """Every area of a GeoJSON file, excluded ones too.

    Args:
        path: The file.
        beside_points: Whether points are left out instead of refused.

    Raises:
        SlideError: A feature is not an area.
    """
    return [
        Feature.of(path, number, feature)
        for number, feature in enumerate(_features(path), 1)
        if not (beside_points and _type_of(feature) in POINTS)
    ]


@dataclass(frozen=True, slots=True)
class PointFeature:
    """One point: file and feature for messages, class ("" without one), level-0 coordinates in pixels."""

    where: str
    kind: str
    x: float
    y: float


def read_points(path: Path) -> list[PointFeature]:
    """Every point of a GeoJSON file in the order of the file; each position of a MultiPoint is one.

    Raises:
        SlideError: A position is invalid.
    """
    found = []
    for number, feature in enumerate(_features(path), 1):
        if _type_of(feature) in POINTS:
            where, _, kind = _described(path, number, feature)
            found += [PointFeature(where, kind, x, y) for x, y in _positions(where, feature["geometry"])]
    return found


def _type_of(feature: Any) -> Any:
    """Type of the geometry of a feature; None without one."""
    geometry = feature.get("geometry") if isinstance(feature, dict) else None
    return geometry.get("type") if isinstance(geometry, dict) else None


def _positions(where: str, geometry: Any) -> list[tuple[float, float]]:
    """Positions (x, y) of a point or of several."""
    try:
        shape = shapely.force_2d(shapely.from_geojson(json.dumps(geometry)))
    except shapely.errors.GEOSException as error:
        raise SlideError(f"{where}: expected positions [x, y], found something else ({error})") from error
    return [(float(x), float(y)) for x, y in shapely.get_coordinates(shape)]


@dataclass(frozen=True, slots=True)
class Feature:
    """One annotation: name and class ("" without one), area as well-known binary."""

    name: str
    kind: str
    area: bytes

    @classmethod
    def of(cls, path: Path, number: int, feature: Any) -> Feature:
        """Create it from a GeoJSON feature. Raises SlideError naming the file and the feature."""
        where, name, kind = _described(path, number, feature)
        return cls(name, kind, shapely.to_wkb(_area(where, feature.get("geometry"))))


def _described(path: Path, number: int, feature: Any) -> tuple[str, str, str]:
    """Place for messages, name and class of a feature."""
    where = f"{path}: feature {number}"
    if not isinstance(feature, dict):
        raise SlideError(f"{where}: expected a GeoJSON feature, found {str(feature)[:40]!r}")
    properties = feature.get("properties") or {}
    if not isinstance(properties, dict):
        raise SlideError(f"{where}: expected properties by name, found {str(properties)[:40]!r}")
    name, kind = _text(properties.get("name")), _class_of(properties.get("classification"))
    return where + (f" ({name or kind})" if name or kind else ""), name, kind


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def _class_of(classification: Any) -> str:
    """Name of a class. QuPath writes ``name``, and for a derived class its ``names``."""
    if not isinstance(classification, dict):
        return _text(classification)
    names = classification.get("names")
    parts = names if isinstance(names, list) else [classification.get("name")]
    return ": ".join(text for part in parts if (text := _text(part)))


def _area(where: str, geometry: Any) -> Any:
    """The polygons of a geometry, valid and flat."""
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind not in ("Polygon", "MultiPolygon"):
        raise SlideError(
            f"{where}: expected a Polygon or a MultiPolygon, found {kind or 'no geometry'}: it has no area. Export "
            f"areas only (delete points and lines)"
        )
    try:
        shape = shapely.force_2d(shapely.from_geojson(json.dumps(geometry)))
    except shapely.errors.GEOSException as error:
        raise SlideError(f"{where}: expected rings of [x, y], closed; found something else ({error})") from error
    area = shape if shapely.is_valid(shape) else _even_odd(shape)
    if not shapely.area(area) > 0:
        raise SlideError(f"{where}: expected an area, found one of 0 pixels: delete it, or draw it again")
    return area


def _even_odd(shape: Any) -> Any:
    """Area inside self-crossing rings; overlapping polygons of one feature are one area."""
    pieces = shapely.get_parts(shapely.make_valid(shapely.get_parts(shape)))
    return shapely.union_all(pieces[shapely.get_dimensions(pieces) == 2])


def _features(path: Path) -> Sequence[Any]:
    """Features of a file: a collection, a list, one feature or one geometry."""
    content = _parsed(path)
    if isinstance(content, list):
        return content
    match content:
        case {"type": "FeatureCollection", "features": list(features)}:
            return features
        case {"type": "Feature"}:
            return [content]
        case {"type": "Polygon" | "MultiPolygon"}:
            return [{"geometry": content}]
    raise SlideError(
        f"{path}: expected a GeoJSON FeatureCollection as QuPath exports it (File, Export objects as GeoJSON), found "
        f"{_kind_of(content)}"
    )


def _kind_of(content: Any) -> str:
    return f"type {content.get('type')!r}" if isinstance(content, Mapping) else type(content).__name__


def _parsed(path: Path) -> Any:
    try:
        with (gzip.open if path.suffix.casefold() == ".gz" else open)(path, "rb") as file:
            raw = file.read(LARGEST_BYTES + 1)
        if len(raw) > LARGEST_BYTES:
            raise SlideError(
                f"{path}: expected at most {LARGEST_BYTES >> 20} MiB of GeoJSON, found more: these are detections or a "
                f"pixel classification rather than drawn regions. Simplify them in QuPath"
            )
        return json.loads(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise SlideError(f"{path}: the regions cannot be read ({error})") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, SlideError):
            raise
        raise SlideError(f"{path}: expected GeoJSON, found something else ({error}). Export it again") from error


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """The same names, repeated ones with a number appended."""
    return tuple(_numbered(names))


def _numbered(names: Sequence[str]) -> Iterator[str]:
    taken: set[str] = set()
    for name in names:
        number, free = 1, name
        while free in taken or (number > 1 and free in names):
            number += 1
            free = f"{name} ({number})"
        taken.add(free)
        yield free
