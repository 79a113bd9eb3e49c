"""Export of a complete result's objects as GeoJSON, GeoParquet and CSV.

Only complete results are exported, and each file is written atomically. Exports are copies beside the result, in
``exports``, and may be deleted.

Coordinates are pixels of the slide's level 0, x to the right and y down from its upper left corner, as in QuPath.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray
from shapely import MultiPolygon, Polygon

from pipeline.errors import ConfigError
from pipeline.execution.blocks import StageContext
from pipeline.exports.polygon_stream import object_shapes
from pipeline.image_info import ClassInfo
from pipeline.objects.polygons import Outline, outlines
from pipeline.objects.table_reader import as_text, read_groups, read_rows
from pipeline.rendering.contrast import class_colours
from pipeline.stages.export import ExportInputs, features_of, write_collection
from pipeline.storage.atomic_files import write_atomic
from pipeline.storage.layout import GEOJSON, TABLE
from pipeline.storage.manifest import read_manifest
from pipeline.storage.slide_store import SlideStore
from unet_core.spec import MapName

GEOMETRY = "geometry"
GEO = {
    "version": "1.1.0",
    "primary_column": GEOMETRY,
    "columns": {GEOMETRY: {"encoding": "WKB", "geometry_types": ["Polygon", "MultiPolygon"], "crs": None}},
}
"""GeoParquet 1.1 metadata. No coordinate reference system: pixels of a slide have no position on Earth."""


@dataclass(frozen=True, slots=True)
class CompleteResult:
    """A complete result and its manifest."""

    store: SlideStore
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, store: SlideStore) -> CompleteResult:
        """Open the result of a slide.

        Raises:
            ConfigError: The result is not complete.
            DamagedError: The manifest differs from what was written.
        """
        manifest = read_manifest(store)
        if manifest is None:
            raise ConfigError(f"{store.root} is not complete: expected a finished result. Run segment again first")
        return cls(store, manifest)

    @property
    def section(self) -> ExportInputs:
        """Labels, scale and classes of the objects.

        Raises:
            ConfigError: The result was made without objects.
        """
        plan = self.manifest["plan"]
        if "label" not in plan["hashes"]:
            raise ConfigError(f"{self.store.root} has no objects: they were switched off. Segment with objects on")
        spec = plan["model"]["spec"]
        names = tuple(spec["class_names"])
        colours = spec["colours"] or class_colours(len(names))
        y, x = plan["image"]["level0_from_image_yx"]
        classes = ClassInfo(names, tuple((r, g, b) for r, g, b in colours))
        return ExportInputs(plan["hashes"]["label"], (y, x), classes)

    @property
    def map_names(self) -> tuple[MapName, ...]:
        """Names of the network's maps; empty without any."""
        return tuple(self.manifest["plan"]["model"]["spec"].get("maps", ()))

    @property
    def work(self) -> StageContext:
        """Shape and blocks of the slide."""
        plan = self.manifest["plan"]
        height, width = plan["image"]["shape_yx"]
        return StageContext(
            self.store.root, (height, width), plan["config"]["tiles"]["block"], plan["hashes"].get("label", "")
        )

    @property
    def table(self) -> Path:
        """Path of the object table."""
        return self.store.root / TABLE


# ---- GeoJSON ---------------------------------------------------------------------------------------------------------


def write_geojson(result: CompleteResult, path: Path) -> None:
    """Write one feature for each object, for QuPath.

    The features are those of ``objects.geojson.gz``; they are traced where that file does not exist.
    """
    section = result.section
    packed = result.store.root / GEOJSON
    write_atomic(path, partial(_unpack, packed) if packed.exists() else partial(_trace, result, section))


def _unpack(packed: Path, file: BinaryIO) -> None:
    with gzip.open(packed) as source:
        shutil.copyfileobj(source, file)


def _trace(result: CompleteResult, section: ExportInputs, file: BinaryIO) -> None:
    lines = (
        line for shapes in object_shapes(result.work, section) for line in features_of(result.work, section, shapes)
    )
    write_collection(lines, file.write)


# ---- GeoParquet ------------------------------------------------------------------------------------------------------


def write_geoparquet(result: CompleteResult, path: Path) -> None:
    """Write the object table with the shape of each object as WKB, in pixels of level 0.

    Format: GeoParquet 1.1 (geoparquet.org), one row group for each block that completes objects. Rows are in the order
    in which blocks complete objects; ``id`` identifies them.
    """
    write_atomic(path, partial(_write_geoparquet, result, result.section))


def _write_geoparquet(result: CompleteResult, section: ExportInputs, file: BinaryIO) -> None:
    schema = pq.read_schema(result.table)
    metadata = {**(schema.metadata or {}), b"geo": json.dumps(GEO).encode()}
    schema = schema.append(pa.field(GEOMETRY, pa.binary(), nullable=False)).with_metadata(metadata)
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for shapes in object_shapes(result.work, section):
            if shapes:
                rows = read_rows(result.table, np.fromiter(shapes, np.int64))
                wkb = shapely.to_wkb(geometries(shapes, section.level0_from_image))
                writer.write_table(rows.append_column(schema.field(GEOMETRY), pa.array(wkb, pa.binary())).cast(schema))


def geometries(shapes: Mapping[int, Polygon | MultiPolygon], scale_yx: tuple[float, float]) -> NDArray[Any]:
    """Shapes scaled to level 0, with corners in the order of the GeoJSON export."""
    return np.array([_geometry(outline) for outline in outlines(list(shapes.values()), scale_yx)], object)


def _geometry(outline: Outline) -> Polygon | MultiPolygon:
    polygons = [Polygon(rings[0], rings[1:]) for rings in outline]
    return polygons[0] if len(polygons) == 1 else MultiPolygon(polygons)


# ---- CSV -------------------------------------------------------------------------------------------------------------


def write_csv(result: CompleteResult, path: Path) -> None:
    """Write the object table as CSV with the columns and units of ``objects.parquet``, safe for spreadsheets."""
    result.section  # noqa: B018  rejects a result without objects
    write_atomic(path, partial(_write_csv, result))


def _write_csv(result: CompleteResult, file: BinaryIO) -> None:
    tables = read_groups(result.table)
    first = as_text(next(tables))
    with pyarrow.csv.CSVWriter(file, first.schema) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(as_text(table))
