"""The object table: one row an object, from integer sums that every block takes of its own pixels.

The one decision made here: what leaves a block are sums, never rows, so an object cut by any number of seams gets the
row it would have had in one piece. Sums are kept in a small file a block and merged in raster order of the blocks.

Memory of the merge: 89 bytes an object and 8 for each image channel, plus the rows of one row group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, BinaryIO, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.components import Runs, find_runs
from pipeline.errors import DamagedError, StoreError
from pipeline.files import fsync_dir, write_atomic
from pipeline.moments import BlockSums, Ellipse, Shapes, total
from pipeline.store import Index
from pipeline.work import Counts, MapBlocks, StageReport, Work, run_blocks

Array = NDArray[Any]

STAGE = "measure"
TABLE = "objects.parquet"
IMAGE, PROBABILITY, OBJECTS, LOOKUP = "0", "probability/0", "labels/objects/0", "label/lookup"
ROW_GROUP = 2**18


@dataclass(frozen=True, slots=True)
class MeasureSection:
    """What pixels mean. ``mpp`` is the image's, in um per pixel.

    ``level0_from_image`` (y, x) is how many pixels of the slide's level 0 one pixel of the image spans.
    ``class_names`` are the foreground classes in order, ``channels`` the image's.
    """

    mpp: float
    level0_from_image: tuple[float, float]
    class_names: tuple[str, ...]
    channels: tuple[str, ...]


def measure_block(work: Work, section: MeasureSection, index: Index) -> Counts:
    """Keep the sums of each object in a block: shape, probability of its class, intensity of each channel.

    Reads probability and image only where there are objects. Raises DamagedError for an id that labelling did not
    give to this block.
    """
    store, core = work.store, work.core(index)
    labels = store.read(OBJECTS)
    runs = find_runs(labels.read(core))
    known = store.load_result(LOOKUP, labels.plan, index)
    ids, place = _compact(runs.label)
    group = _classes(ids, known["ids"], known["group"], where=f"{labels.location}, block {index}")
    shapes = BlockSums.of_runs(runs, place, (core.y0, core.x0))
    probability, intensity = np.zeros(len(ids), np.int64), np.zeros((len(section.channels), len(ids)), np.int64)
    if len(ids):
        probability = _probability_sums(store.read(PROBABILITY).read(core), runs, place, group)
        image = _checked(store.read(IMAGE).read(core), section)
        intensity = np.stack([total(place, run_sums(channel, runs)) for channel in image])
    sums = {field.name: getattr(shapes, field.name) for field in fields(shapes)}
    extra = {"id": ids, "group": group, "probability": probability, "intensity": intensity}
    store.save_result(STAGE, work.plan, index, sums | extra)
    return {"objects_in_blocks": len(ids)}


def run_sums(pixels_YX: Array, runs: Runs) -> Array:
    """Sum of unsigned 8- or 16-bit pixels over each run (uint32: a run lies in one row of a block)."""
    width = pixels_YX.shape[1]
    start = runs.y * width + runs.x0
    bounds = np.stack((start, start + runs.length), axis=1).ravel()
    inside = bounds[:-1] if bounds[-1] == pixels_YX.size else bounds  # reduceat takes no end of the array
    return np.asarray(np.add.reduceat(pixels_YX.ravel(), inside, dtype=np.uint32)[::2])


def _compact(labels: Array) -> tuple[Array, Array]:
    """Distinct labels in ascending order, and the place of each label among them. 9 bytes for each id in range."""
    if not len(labels):
        return np.zeros(0, np.uint32), np.zeros(0, np.int64)
    lowest = int(labels.min())
    seen = np.zeros(int(labels.max()) - lowest + 1, np.bool_)
    seen[labels - lowest] = True
    return np.flatnonzero(seen).astype(np.uint32) + np.uint32(lowest), (np.cumsum(seen) - 1)[labels - lowest]


def _classes(ids: Array, known_ids: Array, known_group: Array, where: str) -> Array:
    order = np.argsort(known_ids)
    found = np.searchsorted(known_ids, ids, sorter=order)
    if len(ids) and (found.max() == len(order) or (known_ids[order[found]] != ids).any()):
        raise DamagedError(f"{where}: holds ids that labelling did not put there. Run 'overtile verify', then segment")
    return known_group[order[found]] if len(ids) else np.zeros(0, np.uint8)


def _checked(image_CYX: Array, section: MeasureSection) -> Array:
    if len(image_CYX) != len(section.channels) or image_CYX.dtype not in (np.uint8, np.uint16):
        raise StoreError(
            f"expected an 8- or 16-bit image with channels {', '.join(section.channels)}, found {len(image_CYX)} "
            f"channels of {image_CYX.dtype}: the image belongs to another model. Run segment with --force"
        )
    return image_CYX


def _probability_sums(probability_KYX: Array, runs: Runs, place: Array, group: Array) -> Array:
    """Of each object, the sum of stored bytes of its own class."""
    of_run = np.zeros(len(place), np.int64)
    for number, plane in enumerate(probability_KYX, start=1):
        mine = np.flatnonzero(group[place] == number)
        if len(mine):
            of_run[mine] = run_sums(plane, Runs(runs.label[mine], runs.y[mine], runs.x0[mine], runs.x1[mine]))
    return total(place, of_run)


def measure_slide(work: Work, section: MeasureSection, map_blocks: MapBlocks) -> StageReport:
    """Write ``objects.parquet``: one row for each id of ``labels/objects/0``, ascending.

    Byte-identical however the blocks were done. Blocks that were measured under this plan are not measured again.
    """
    store, plan = work.store, work.plan
    store.sweep_results(STAGE, plan)
    report = run_blocks(STAGE, work, store.results(STAGE, plan), partial(measure_block, work, section), map_blocks)
    merged = Merged.empty(int(store.facts("label")["objects"]), len(section.channels))
    for tile in work.grid:
        merged.add(store.load_result(STAGE, plan, tile.index))
    if (merged.shapes.count == 0).any():
        raise DamagedError(f"{store.zarr / OBJECTS} lacks objects that labelling counted. Run 'overtile verify'")
    table = ObjectTable(section, work.shape_yx, merged)
    write_atomic(store.root / TABLE, table.write)
    fsync_dir(store.root)
    report.facts = table.facts
    store.stamp(STAGE, plan, report.facts)
    return report


@dataclass(frozen=True, slots=True)
class Merged:
    """Sums of all objects of a slide; row i is id i + 1."""

    shapes: Shapes
    group: Array
    probability: Array
    intensity: Array

    @classmethod
    def empty(cls, objects: int, channels: int) -> Self:
        """Before any block."""
        sums = np.zeros(objects, np.int64), np.zeros((channels, objects), np.int64)
        return cls(Shapes.empty(objects), np.zeros(objects, np.uint8), *sums)

    def add(self, result: dict[str, Array]) -> None:
        """Merge one block's result in place. Raises DamagedError for an id beyond the last object."""
        place = result["id"].astype(np.int64) - 1
        if place.max(initial=-1) >= len(self.group):
            raise DamagedError(f"expected ids up to {len(self.group)}, found {place.max() + 1}: labels changed. Rerun")
        self.shapes.add(place, BlockSums(*(result[field.name] for field in fields(BlockSums))))
        self.group[place] = result["group"]
        self.probability[place] += result["probability"]
        self.intensity[:, place] += result["intensity"]


@dataclass(frozen=True, slots=True)
class ObjectTable:
    """The rows to be written.

    Lengths and areas in um are of the image at ``mpp``, from the slide's upper left corner. Coordinates in px are of
    level 0: centroids count from the centre of the first pixel, boxes are its edges, half-open.
    """

    section: MeasureSection
    shape_yx: tuple[int, int]
    merged: Merged

    @property
    def facts(self) -> dict[str, Any]:
        """Objects and area of each class."""
        names, shapes = self.section.class_names, self.merged.shapes
        count, area_px = np.zeros((2, len(names) + 1), np.int64)
        np.add.at(count, self.merged.group, 1)
        np.add.at(area_px, self.merged.group, shapes.count)
        return {
            "objects": {name: int(number) for name, number in zip(names, count[1:], strict=True)},
            "area_um2": {name: int(px) * self.section.mpp**2 for name, px in zip(names, area_px[1:], strict=True)},
        }

    def write(self, file: BinaryIO) -> None:
        """As Parquet, zstd, one row group at a time. An empty table has the same columns."""
        schema = table_schema(self.section)
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for rows in self._row_groups():
                columns = self._place(rows) | self._shape(rows) | self._intensity(rows)
                writer.write_table(pa.table([columns[name] for name in schema.names], schema=schema))

    def _row_groups(self) -> Iterator[slice]:
        objects = len(self.merged.group)
        return (slice(start, min(start + ROW_GROUP, objects)) for start in range(0, objects, ROW_GROUP))

    def _place(self, rows: slice) -> dict[str, Array | pa.Array]:
        (scale_y, scale_x), mpp = self.section.level0_from_image, self.section.mpp
        (y, x), (y0, x0, y1, x1) = self.merged.shapes.centroid(rows), self.merged.shapes.box[:, rows]
        height, width = self.shape_yx
        names = pa.array(self.section.class_names, pa.string())
        return {
            "id": np.arange(rows.start + 1, rows.stop + 1, dtype=np.uint32),
            "class": pa.DictionaryArray.from_arrays((self.merged.group[rows] - 1).astype(np.int16), names),
            "centroid_y_px": (y + 0.5) * scale_y - 0.5,
            "centroid_x_px": (x + 0.5) * scale_x - 0.5,
            "centroid_y_um": (y + 0.5) * mpp,
            "centroid_x_um": (x + 0.5) * mpp,
            "bbox_y0_px": y0 * scale_y,
            "bbox_x0_px": x0 * scale_x,
            "bbox_y1_px": y1 * scale_y,
            "bbox_x1_px": x1 * scale_x,
            "touches_border": (y0 == 0) | (x0 == 0) | (y1 == height) | (x1 == width),
        }

    def _shape(self, rows: slice) -> dict[str, Array]:
        area_px, ellipse = self.merged.shapes.count[rows], Ellipse.of(self.merged.shapes, rows)
        return {
            "area_px": area_px,
            "area_um2": area_px * self.section.mpp**2,
            "major_axis_um": ellipse.major * self.section.mpp,
            "minor_axis_um": ellipse.minor * self.section.mpp,
            "orientation_rad": ellipse.orientation,
            "eccentricity": ellipse.eccentricity,
        }

    def _intensity(self, rows: slice) -> dict[str, Array]:
        area_px = self.merged.shapes.count[rows]
        means = zip(self.section.channels, self.merged.intensity[:, rows] / area_px, strict=True)
        return {"mean_probability": self.merged.probability[rows] / (255 * area_px)} | {
            f"mean_intensity_{channel}": mean for channel, mean in means
        }


_COLUMNS: tuple[tuple[str, pa.DataType, str], ...] = (
    ("id", pa.uint32(), "value in labels/objects"),
    ("class", pa.dictionary(pa.int16(), pa.string()), "class of all its pixels"),
    ("area_px", pa.int64(), "pixels of the analysed image"),
    ("area_um2", pa.float64(), "square micrometres"),
    ("centroid_y_px", pa.float64(), "level-0 pixels, 0 = centre of the first"),
    ("centroid_x_px", pa.float64(), "level-0 pixels, 0 = centre of the first"),
    ("centroid_y_um", pa.float64(), "micrometres from the slide's upper edge"),
    ("centroid_x_um", pa.float64(), "micrometres from the slide's left edge"),
    ("bbox_y0_px", pa.float64(), "level-0 pixels, upper edge"),
    ("bbox_x0_px", pa.float64(), "level-0 pixels, left edge"),
    ("bbox_y1_px", pa.float64(), "level-0 pixels, lower edge"),
    ("bbox_x1_px", pa.float64(), "level-0 pixels, right edge"),
    ("major_axis_um", pa.float64(), "micrometres, ellipse of equal second moments"),
    ("minor_axis_um", pa.float64(), "micrometres, ellipse of equal second moments"),
    ("orientation_rad", pa.float64(), "radians from the y axis to the major axis, towards x"),
    ("eccentricity", pa.float64(), "0 = circle, 1 = line"),
    ("mean_probability", pa.float64(), "0-1, of its class"),
    ("touches_border", pa.bool_(), "reaches the edge of the slide"),
)


def table_schema(section: MeasureSection) -> pa.Schema:
    """Columns of ``objects.parquet``, each with its unit or meaning as ``description``; channels come last."""
    grey = [(f"mean_intensity_{channel}", pa.float64(), "grey levels of the image") for channel in section.channels]
    columns = [
        pa.field(name, kind, nullable=False, metadata={"description": text}) for name, kind, text in (*_COLUMNS, *grey)
    ]
    return pa.schema(columns, metadata={"mpp": repr(section.mpp)})
