"""The objects of a slide as table rows: sorting, filtering, counting and paging.

Five columns are held as arrays (33 bytes per object), and each requested order is cached (4 bytes per object). A
million objects are therefore sorted once, after which pages are immediate. All other columns are read from the Parquet
file only for the rows that are returned.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from pipeline.objects.table_reader import as_text, read_groups, read_objects

NUMBERS = ("area_um2", "mean_probability", "centroid_y_um", "centroid_x_um")
COLUMNS = ("id", "class", *NUMBERS)
"""Columns of the table on the page."""
ROWS = 50
"""Rows per page."""
BINS = 40
MAX_SELECTED = 5000
"""Maximum number of objects selected individually by id."""
_AREA_PERCENTILE = 99.5
"""Percentile of the areas at which the histogram ends; a few very large objects would otherwise squeeze all others into
one bin."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Inclusive bounds on area (um2) and probability, or ids; None leaves a bound open."""

    least_area: float | None = None
    most_area: float | None = None
    least_probability: float | None = None
    most_probability: float | None = None
    ids: tuple[int, ...] = ()

    def bounds(self) -> Iterator[tuple[str, float | None, float | None]]:
        """Yield column name, lower bound and upper bound."""
        yield "area_um2", self.least_area, self.most_area
        yield "mean_probability", self.least_probability, self.most_probability


ALL_OBJECTS = Filter()


@dataclass(slots=True)
class ViewedObjects:
    """The table columns shown on a page; row i is the object with id i + 1. ``columns`` holds ``NUMBERS``."""

    path: Path
    class_names: tuple[str, ...]
    classes: NDArray[np.uint8]
    columns: Mapping[str, NDArray[np.float64]]
    codes: Callable[[Filter], NDArray[np.uint8]] = field(init=False, repr=False)
    """For a filter: 1 + class index of each selected object, 0 for all others."""
    _order: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._order = lru_cache(2 * len(COLUMNS))(self._sorted)
        self.codes = lru_cache(2)(self._colour_indices)

    def _colour_indices(self, objects_filter: Filter) -> NDArray[np.uint8]:
        return np.where(self.mask(objects_filter), self.classes + 1, 0).astype(np.uint8)

    @classmethod
    def read(cls, path: Path, class_names: tuple[str, ...]) -> ViewedObjects:
        """Read the columns from ``objects.parquet``.

        Raises:
            DamagedError: If the file cannot be read.
        """
        columns = read_objects(path, ("class", *NUMBERS), class_names)
        pa.default_memory_pool().release_unused()
        return cls(path, class_names, columns.pop("class"), columns)

    def __len__(self) -> int:
        return len(self.classes)

    def row(self, identity: int) -> dict[str, Any] | None:
        """Return one object, or None if there is no object with that id."""
        if not 1 <= identity <= len(self):
            return None
        index = identity - 1
        numbers = {name: round(float(column[index]), 4) for name, column in self.columns.items()}
        return {"id": identity, "class": self.class_names[self.classes[index]], **numbers}

    def page(self, objects_filter: Filter, order: str, number: int) -> dict[str, Any]:
        """Return one page of the filtered and sorted objects.

        Args:
            objects_filter: Selects the objects.
            order: One of ``COLUMNS``; a leading ``-`` sorts in descending order. Ties are ordered by increasing id.
            number: Page number, starting at 0.

        Returns:
            ``total``, the number of selected objects, and ``rows``, those of the page.
        """
        rows = self._order(order.removeprefix("-"), order.startswith("-"))
        rows = rows[self.mask(objects_filter)[rows]]
        ids = rows[number * ROWS : (number + 1) * ROWS] + 1
        return {"total": len(rows), "rows": [self.row(identity) for identity in ids.tolist()]}

    def _sorted(self, name: str, descending: bool) -> NDArray[np.int32]:  # noqa: FBT001  lru_cache passes positional arguments
        column = np.arange(len(self)) if name == "id" else self.classes if name == "class" else self.columns[name]
        keys = -column.astype(np.float64) if descending else column
        return np.argsort(keys, kind="stable").astype(np.int32)

    def mask(self, objects_filter: Filter) -> NDArray[np.bool_]:
        """Return a boolean array that is True for the selected objects."""
        if objects_filter.ids:
            selected = np.zeros(len(self), bool)
            selected[[identity - 1 for identity in objects_filter.ids if identity <= len(self)]] = True
            return selected
        selected = np.ones(len(self), bool)
        for name, least, most in objects_filter.bounds():
            if least is not None:
                selected &= self.columns[name] >= least
            if most is not None:
                selected &= self.columns[name] <= most
        return selected

    def histograms(self, objects_filter: Filter) -> dict[str, dict[str, list[float]]]:
        """Return ``counts`` and ``edges`` of area and probability of the selected objects.

        The area axis ends at the percentile ``_AREA_PERCENTILE``; larger areas are counted in the last bin.
        """
        mask = self.mask(objects_filter)
        area, probability = self.columns["area_um2"][mask], self.columns["mean_probability"][mask]
        most = float(np.percentile(area, _AREA_PERCENTILE, method="higher")) if len(area) else 1.0
        return {
            "area_um2": _histogram(np.minimum(area, most), (0.0, most or 1.0)),
            "mean_probability": _histogram(probability, (0.0, 1.0)),
        }

    def csv(self, objects_filter: Filter) -> Iterator[bytes]:
        """Yield all columns of the selected objects in order of id, one piece of CSV per row group."""
        mask = self.mask(objects_filter)
        for number, table in enumerate(read_groups(self.path)):
            selected = as_text(table.filter(pa.array(mask[table["id"].to_numpy().astype(np.int64) - 1])))
            piece = io.BytesIO()
            pyarrow.csv.write_csv(selected, piece, pyarrow.csv.WriteOptions(include_header=number == 0))
            yield piece.getvalue()


def _histogram(values: NDArray[np.float64], span: tuple[float, float]) -> dict[str, list[float]]:
    counts, edges = np.histogram(values, BINS, span)
    return {"counts": counts.tolist(), "edges": edges.tolist()}
