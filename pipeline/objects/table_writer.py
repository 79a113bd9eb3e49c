"""Write the object table from the merged sums of all objects, and summarise a slide.

The table is written one row group at a time and is never in memory as a whole. The summary of a slide comes from the
same sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, BinaryIO, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import DamagedError
from pipeline.image_info import ImageInfo
from pipeline.inputs.regions import Regions
from pipeline.objects.moments import BlockSums, Ellipse, Shapes
from pipeline.objects.perimeter import LENGTHS

Array = NDArray[Any]

ROW_GROUP = 2**18
QUARTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True, slots=True)
class MeasureInputs:
    """What pixels mean.

    Attributes:
        image: Scale and channels of the image.
        class_names: Foreground classes in order.
        regions: Regions in which objects were kept; None for the whole image.
    """

    image: ImageInfo
    class_names: tuple[str, ...]
    regions: Regions | None


@dataclass(frozen=True, slots=True)
class Merged:
    """Sums of all objects of a slide; column i is id i + 1. ``sums`` (see ``sums_of``) are int64."""

    shapes: Shapes
    group: Array
    sums: Array

    @classmethod
    def empty(cls, objects: int, channels: int) -> Self:
        """Objects without pixels."""
        sums = np.zeros((_INTENSITY + channels, objects), np.int64)
        return cls(Shapes.empty(objects), np.zeros(objects, np.uint8), sums)

    def add(self, result: dict[str, Array]) -> None:
        """Merge the result of one block in place.

        Raises:
            DamagedError: An id is larger than the number of objects.
        """
        object_index = result["id"].astype(np.int64) - 1
        if object_index.max(initial=-1) >= len(self.group):
            raise DamagedError(
                f"expected ids up to {len(self.group)}, found {object_index.max() + 1}: labels changed. Rerun"
            )
        self.shapes.add(object_index, BlockSums(*result["shapes"]))
        self.group[object_index] = result["group"]
        self.sums[:, object_index] += result["sums"]

    @property
    def probability(self) -> Array:
        """Sum of the stored bytes of the object's own class (n,)."""
        return np.asarray(self.sums[0])

    @property
    def hull(self) -> Array:
        """Pixels of the convex hull (n,)."""
        return np.asarray(self.sums[1])

    @property
    def outline(self) -> Array:
        """Outline pixels of each length (lengths, n)."""
        return self.sums[_OUTLINE:_INTENSITY]

    @property
    def intensity(self) -> Array:
        """Sum of the pixels of each channel (channels, n)."""
        return self.sums[_INTENSITY:]


_OUTLINE, _INTENSITY = 2, 2 + len(LENGTHS)


def sums_of(probability: Array, hull: Array, outline: Array, intensity: Array) -> Array:
    """Stack the columns that ``Merged`` adds up besides shapes (sums, objects)."""
    return np.concatenate((probability[None], hull[None], outline, intensity))


@dataclass(frozen=True, slots=True)
class ObjectTable:
    """Rows of ``objects.parquet``.

    Lengths and areas in um are of the image at ``mpp``, from the slide's upper left corner. Coordinates in px are of
    level 0: centroids count from the centre of the first pixel; boxes are pixel edges, half-open.
    """

    section: MeasureInputs
    shape_yx: tuple[int, int]
    merged: Merged

    @property
    def facts(self) -> dict[str, Any]:
        """Objects and area of each class."""
        names, shapes, mpp = self.section.class_names, self.merged.shapes, self.section.image.mpp
        count, area_px = np.zeros((2, len(names) + 1), np.int64)
        np.add.at(count, self.merged.group, 1)
        np.add.at(area_px, self.merged.group, shapes.count)
        return {
            "objects": {name: int(number) for name, number in zip(names, count[1:], strict=True)},
            "area_um2": {name: int(px) * mpp**2 for name, px in zip(names, area_px[1:], strict=True)},
            "rows": list(self._summary()),
        }

    def _summary(self) -> Iterator[dict[str, Any]]:
        """One entry for each region (None where there are none) and class, empty ones included."""
        regions, names = self.section.regions, self.section.class_names
        region_names = [None] if regions is None else list(regions.names)
        key = (self.merged.group - 1).astype(np.int64)
        if regions is not None:
            key += len(names) * self._region(slice(0, len(key)))
        order = np.argsort(key, kind="stable")
        edges = np.searchsorted(key, np.arange(len(region_names) * len(names) + 1), sorter=order)
        for number, (start, stop) in enumerate(pairwise(edges)):
            region, name = divmod(number, len(names))
            yield {"region": region_names[region], "class": names[name], **self._numbers(order[start:stop])}

    def _numbers(self, rows: Array) -> dict[str, Any]:
        area_px, of_pixel = self.merged.shapes.count[rows], self.section.image.mpp**2
        area, probability = area_px * of_pixel, self.merged.probability[rows] / (255 * area_px)
        some = len(rows) > 0
        return {
            "count": len(rows),
            "area_um2": int(area_px.sum()) * of_pixel,
            "mean_area_um2": float(area.mean()) if some else None,
            "area_um2_quartiles": np.quantile(area, QUARTILES).tolist() if some else None,
            "mean_probability": float(probability.mean()) if some else None,
            "probability_quartiles": np.quantile(probability, QUARTILES).tolist() if some else None,
        }

    def _region(self, rows: slice) -> Array:
        """The region of each object, by its centroid; -1 for none."""
        assert self.section.regions is not None, "asked for where there are regions"
        (y, x), (scale_y, scale_x) = self.merged.shapes.centroid(rows), self.section.image.level0_from_image
        return self.section.regions.region_of((y + 0.5) * scale_y, (x + 0.5) * scale_x)

    def write(self, file: BinaryIO) -> None:
        """Write as Parquet with zstd, one row group at a time. An empty table has the same columns."""
        schema = table_schema(self.section)
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for rows in self._row_groups():
                columns = self._location(rows) | self._shape(rows) | self._intensity(rows) | self._outline(rows)
                if self.section.regions is not None:
                    names = pa.array(self.section.regions.names, pa.string())
                    region = self._region(rows)
                    columns["region"] = pa.DictionaryArray.from_arrays(pa.array(region, mask=region < 0), names)
                writer.write_table(pa.table([columns[name] for name in schema.names], schema=schema))

    def _row_groups(self) -> Iterator[slice]:
        objects = len(self.merged.group)
        return (slice(start, min(start + ROW_GROUP, objects)) for start in range(0, objects, ROW_GROUP))

    def _location(self, rows: slice) -> dict[str, Array | pa.Array]:
        (scale_y, scale_x), mpp = self.section.image.level0_from_image, self.section.image.mpp
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
            "area_um2": area_px * self.section.image.mpp**2,
            "major_axis_um": ellipse.major * self.section.image.mpp,
            "minor_axis_um": ellipse.minor * self.section.image.mpp,
            "orientation_rad": ellipse.orientation,
            "eccentricity": ellipse.eccentricity,
        }

    def _outline(self, rows: slice) -> dict[str, Array | pa.Array]:
        area_px, perimeter_px = self.merged.shapes.count[rows], np.array(LENGTHS) @ self.merged.outline[:, rows]
        none = perimeter_px == 0
        circularity = 4 * np.pi * area_px / np.where(none, 1.0, perimeter_px) ** 2
        return {
            "perimeter_um": perimeter_px * self.section.image.mpp,
            "solidity": area_px / self.merged.hull[rows],
            "circularity": pa.array(circularity, mask=none),
        }

    def _intensity(self, rows: slice) -> dict[str, Array]:
        area_px = self.merged.shapes.count[rows]
        means = zip(self.section.image.channels, self.merged.intensity[:, rows] / area_px, strict=True)
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
    ("perimeter_um", pa.float64(), "micrometres, length of the outline as scikit-image estimates it"),
    ("solidity", pa.float64(), "pixels over pixels of the convex hull"),
    ("circularity", pa.float64(), "4 pi area / perimeter squared, about 1 for a disc; null without a perimeter"),
    ("mean_probability", pa.float64(), "0-1, of its class"),
    ("touches_border", pa.bool_(), "reaches the edge of the slide"),
)


_NULLABLE = ("circularity", "region")


def table_schema(section: MeasureInputs) -> pa.Schema:
    """Columns of ``objects.parquet``, each with its unit or meaning as ``description``; channels come last."""
    channels = section.image.channels
    grey = [(f"mean_intensity_{channel}", pa.float64(), "grey levels of the image") for channel in channels]
    drawn = [("region", pa.dictionary(pa.int32(), pa.string()), "first region that holds its centroid")]
    columns = [
        pa.field(name, kind, nullable=name in _NULLABLE, metadata={"description": text})
        for name, kind, text in (*_COLUMNS, *(drawn if section.regions else []), *grey)
    ]
    return pa.schema(columns, metadata={"mpp": repr(section.image.mpp)})
