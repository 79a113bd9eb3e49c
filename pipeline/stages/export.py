"""Export: objects as GeoJSON for QuPath in ``objects.geojson.gz``, exact outlines in level-0 pixels.

A block traces its objects and writes the features of those that lie inside it. Pieces of objects that reach a
neighbouring block are joined in one pass over the blocks. An object is written as soon as the last block with a piece
of it was read, so only objects on seams wait in memory. The order of features does not depend on the order of mapping:
block by block in raster order, first the objects inside the block by id, then those that it completes by id.

Format: RFC 7946 geometry with QuPath's properties (objectType, classification, measurements), coordinates in pixels
of the full-resolution slide with the origin at its upper left corner, y down, as QuPath reads them.
"""

from __future__ import annotations

import gzip
import json
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from shapely import MultiPolygon, Polygon

from pipeline.errors import DamagedError, StoreError
from pipeline.execution.blocks import Counts, MapBlocks, StageContext, StageReport, run_blocks
from pipeline.geometry import Box
from pipeline.image_info import ClassInfo
from pipeline.objects.polygons import Outline, PolygonParts, join, outlines, trace
from pipeline.objects.table_reader import count_objects, read_objects
from pipeline.storage.atomic_files import fsync_dir, remove, write_atomic
from pipeline.storage.layout import GEOJSON, OBJECTS, TABLE
from pipeline.storage.slide_store import Index, StoredArray

STAGE = "export"
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "overtile:object")
_COMPRESSION = 4  # four times faster than level 6 for a sixth more bytes


@dataclass(frozen=True, slots=True)
class ExportInputs:
    """What is exported.

    Attributes:
        objects_plan: Plan hash of the labels.
        level0_from_image: Pixels of the slide's level 0 along one pixel of the image, (y, x).
        classes: Names and colours of the classes.
    """

    objects_plan: str
    level0_from_image: tuple[float, float]
    classes: ClassInfo


def export_block(context: StageContext, inputs: ExportInputs, index: Index) -> Counts:
    """Write the features of the objects inside one block, and the pieces of those that reach its neighbours.

    Raises:
        StoreError: The labels have another plan.
        DamagedError: The table lacks one of the objects.
    """
    core = context.core(index)
    labels = labels_of(context, inputs).read(core)
    parts = trace(labels, (core.y0, core.x0))
    shared = np.isin(parts.ids, ids_on_seams(labels, core, context.shape_yx))
    inside = grouped(parts.ids[~shared], parts.polygons()[~shared])
    shapes = {identity: join(pieces, across_blocks=False) for identity, pieces in inside.items()}
    text = ",\n".join(features_of(context, inputs, shapes))
    result = parts.select(shared).arrays() | {"text": np.frombuffer(zlib.compress(text.encode(), 1), np.uint8)}
    context.store.save_result(STAGE, context.plan_hash, index, result | {"inside": np.array(len(shapes))})
    return {"polygons": len(parts.ids)}


def export_slide(context: StageContext, inputs: ExportInputs, map_blocks: MapBlocks) -> StageReport:
    """Write ``objects.geojson.gz`` atomically; the bytes do not depend on the order of the blocks.

    Raises:
        DamagedError: Labels and table have different numbers of objects.
    """
    store = context.store
    store.sweep_results(STAGE, context.plan_hash)
    done = store.results(STAGE, context.plan_hash)
    report = run_blocks(STAGE, context, done, partial(export_block, context, inputs), map_blocks)
    seams = Seams.of(context)
    objects = count_objects(context.root / TABLE)
    if seams.inside + len(seams.last) != objects:
        raise DamagedError(
            f"{context.root / TABLE}: expected the {seams.inside + len(seams.last)} objects of {OBJECTS}, found "
            f"{objects}. Run 'overtile verify'"
        )
    write_atomic(store.root / GEOJSON, partial(_write, context, inputs, seams))
    fsync_dir(store.root)
    report.facts = {"objects": objects}
    store.stamp(STAGE, context.plan_hash, report.facts)
    remove(store.work / STAGE)
    return report


def labels_of(context: StageContext, inputs: ExportInputs) -> StoredArray:
    """The labels; raises StoreError when they do not have the plan that is exported."""
    labels = context.store.read(OBJECTS)
    if labels.plan != inputs.objects_plan:
        raise StoreError(
            f"{labels.location}: expected labels of plan {inputs.objects_plan[:8]}, found {labels.plan[:8]}. Another "
            f"run changed the plan meanwhile; run segment again"
        )
    return labels


# ---- joining --------------------------------------------------------------------------------------------------------


def ids_on_seams(labels_YX: NDArray[np.uint32], core: Box, shape_yx: tuple[int, int]) -> NDArray[np.uint32]:
    """Ids on the sides of the block that have a neighbour. Objects are connected, so only these reach other blocks."""
    height, width = shape_yx
    sides = [
        labels_YX[0] if core.y0 > 0 else None,
        labels_YX[-1] if core.y1 < height else None,
        labels_YX[:, 0] if core.x0 > 0 else None,
        labels_YX[:, -1] if core.x1 < width else None,
    ]
    return np.unique(np.concatenate([side for side in sides if side is not None] or [labels_YX[:0, 0]]))


def grouped(ids: NDArray[np.uint32], polygons: NDArray[Any]) -> dict[int, list[Polygon]]:
    """Pieces of each object, in the order of ``ids``."""
    pieces: dict[int, list[Polygon]] = {}
    for identity, polygon in zip(ids.tolist(), polygons, strict=True):
        pieces.setdefault(identity, []).append(polygon)
    return pieces


@dataclass(frozen=True, slots=True)
class Seams:
    """Objects on seams: for each id, the number of the last block that holds a piece of it.

    ``inside`` counts the other objects. Takes some 100 bytes for each object on a seam.
    """

    indices: list[Index]
    last: dict[int, int]
    inside: int

    @classmethod
    def of(cls, context: StageContext) -> Seams:
        """Read the results of all blocks."""
        indices = [tile.index for tile in context.grid]
        last, inside = dict[int, int](), 0
        for number, index in enumerate(indices):
            result = context.store.load_result(STAGE, context.plan_hash, index)
            last.update(dict.fromkeys(result["ids"].tolist(), number))
            inside += int(result["inside"])
        return cls(indices, last, inside)

    def features(self, context: StageContext, inputs: ExportInputs) -> Iterator[str]:
        """The text of each block's features, in raster order of the blocks; nothing for a block without objects."""
        waiting: dict[int, list[Polygon]] = {}
        for number, index in enumerate(self.indices):
            result = context.store.load_result(STAGE, context.plan_hash, index)
            if int(result["inside"]):
                yield zlib.decompress(result["text"].tobytes()).decode()
            parts = PolygonParts.of_arrays(result)
            ready: dict[int, Polygon | MultiPolygon] = {}
            for identity, pieces in grouped(parts.ids, parts.polygons()).items():
                earlier = waiting.pop(identity, [])
                if self.last[identity] == number:
                    ready[identity] = join(earlier + pieces, across_blocks=bool(earlier))
                else:
                    waiting[identity] = earlier + pieces
            yield from features_of(context, inputs, ready)


# ---- features -------------------------------------------------------------------------------------------------------


def features_of(
    context: StageContext, inputs: ExportInputs, shapes: dict[int, Polygon | MultiPolygon]
) -> Iterator[str]:
    """Yield one line of JSON for each object.

    Args:
        context: The slide.
        inputs: Scale and classes.
        shapes: Shape of each object by id, ids ascending, in pixels of the image.
    """
    if not shapes:
        return
    ids, columns = np.fromiter(shapes, np.int64), ("class", "area_um2", "mean_probability")
    table = read_objects(context.root / TABLE, columns, inputs.classes.names, ids)
    rows = zip(*(table[name].tolist() for name in columns), strict=True)
    encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
    rings = outlines(list(shapes.values()), inputs.level0_from_image)
    for identity, outline, row in zip(shapes, rings, rows, strict=True):
        yield encode(_feature(inputs, identity, outline, row))


def _feature(inputs: ExportInputs, identity: int, outline: Outline, row: tuple[int, float, float]) -> dict[str, Any]:
    """One GeoJSON feature. Its id depends only on the plan of the labels and the object's id."""
    single = len(outline) == 1
    number, area_um2, probability = row
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(NAMESPACE, f"{inputs.objects_plan}/{identity}")),
        "geometry": {
            "type": "Polygon" if single else "MultiPolygon",
            "coordinates": outline[0] if single else outline,
        },
        "properties": {
            "objectType": "detection",
            "classification": {"name": inputs.classes.names[number], "color": inputs.classes.colours[number]},
            "measurements": {
                "Object id": identity,
                "Area \u00b5m^2": round(area_um2, 4),
                "Mean probability": round(probability, 4),
            },
        },
    }


def _write(context: StageContext, inputs: ExportInputs, seams: Seams, file: BinaryIO) -> None:
    """Stream the FeatureCollection, one feature a line, without time or name in the gzip header."""
    with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0, compresslevel=_COMPRESSION) as packed:
        write_collection(seams.features(context, inputs), packed.write)


def write_collection(lines: Iterable[str], write: Callable[[bytes], object]) -> None:
    """Write a FeatureCollection from the text of its features."""
    write(b'{"type":"FeatureCollection","features":[')
    for piece in _separated(lines):
        write(piece.encode())
    write(b"\n]}\n")


def _separated(lines: Iterable[str]) -> Iterator[str]:
    separator = "\n"
    for line in lines:
        yield separator
        yield line
        separator = ",\n"
