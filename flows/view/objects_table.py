"""The objects of a slide as rows of a page: sorted, filtered, counted, one page at a time.

The one decision made here: five columns are held as arrays, 33 bytes an object, and an order once asked for is kept, 4
bytes an object. So a million objects are sorted once and then paged at once; all other columns are read from the table
only where rows are handed on.
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
"""Of the page's table."""
ROWS = 50
"""Of a page."""
BINS = 40
MOST_PICKED = 5000
"""Objects that can be picked one by one."""
_SPREAD = 99.5
"""Percent of the areas that a histogram spans: a few giants would press all others into its first bar."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which objects are asked for; None: any. Bounds are included."""

    least_area: float | None = None
    most_area: float | None = None
    least_probability: float | None = None
    most_probability: float | None = None
    ids: tuple[int, ...] = ()

    def bounds(self) -> Iterator[tuple[str, float | None, float | None]]:
        """Of each column."""
        yield "area_um2", self.least_area, self.most_area
        yield "mean_probability", self.least_probability, self.most_probability


ALL = Filter()


@dataclass(slots=True)
class ViewedObjects:
    """The columns that a page shows; row i is object i + 1. ``columns`` holds ``NUMBERS``."""

    path: Path
    class_names: tuple[str, ...]
    classes: NDArray[np.uint8]
    columns: Mapping[str, NDArray[np.float64]]
    codes: Callable[[Filter], NDArray[np.uint8]] = field(init=False, repr=False)
    """1 + the class of each object that a filter chooses, 0 of the others: how its pixels are shown."""
    _order: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._order = lru_cache(2 * len(COLUMNS))(self._sorted)
        self.codes = lru_cache(2)(lambda chosen: np.where(self.mask(chosen), self.classes + 1, 0).astype(np.uint8))

    @classmethod
    def read(cls, path: Path, class_names: tuple[str, ...]) -> ViewedObjects:
        """From ``objects.parquet``. Raises DamagedError."""
        found = read_objects(path, ("class", *NUMBERS), class_names)
        pa.default_memory_pool().release_unused()
        return cls(path, class_names, found.pop("class"), found)

    def __len__(self) -> int:
        return len(self.classes)

    def row(self, identity: int) -> dict[str, Any] | None:
        """One object; None where there is none of that id."""
        if not 1 <= identity <= len(self):
            return None
        at = identity - 1
        numbers = {name: round(float(column[at]), 4) for name, column in self.columns.items()}
        return {"id": identity, "class": self.class_names[self.classes[at]], **numbers}

    def page(self, chosen: Filter, order: str, number: int) -> dict[str, Any]:
        """Page ``number``, from 0 on, of the objects chosen, ordered by one of ``COLUMNS``; ``-`` before it turns it.

        Among equals the smaller id comes first, either way. ``total`` is how many are chosen.
        """
        places = self._order(order.removeprefix("-"), order.startswith("-"))
        places = places[self.mask(chosen)[places]]
        shown = places[number * ROWS : (number + 1) * ROWS] + 1
        return {"total": len(places), "rows": [self.row(identity) for identity in shown.tolist()]}

    def _sorted(self, name: str, descending: bool) -> NDArray[np.int32]:  # noqa: FBT001  lru_cache takes it so
        column = np.arange(len(self)) if name == "id" else self.classes if name == "class" else self.columns[name]
        keys = -column.astype(np.float64) if descending else column
        return np.argsort(keys, kind="stable").astype(np.int32)

    def mask(self, chosen: Filter) -> NDArray[np.bool_]:
        """Which objects are chosen."""
        if chosen.ids:
            found = np.zeros(len(self), bool)
            found[[identity - 1 for identity in chosen.ids if identity <= len(self)]] = True
            return found
        found = np.ones(len(self), bool)
        for name, least, most in chosen.bounds():
            if least is not None:
                found &= self.columns[name] >= least
            if most is not None:
                found &= self.columns[name] <= most
        return found

    def histograms(self, chosen: Filter) -> dict[str, dict[str, list[float]]]:
        """``counts`` and ``edges`` of area, up to what all but a few reach, and of probability, of those chosen."""
        mask = self.mask(chosen)
        area, probability = self.columns["area_um2"][mask], self.columns["mean_probability"][mask]
        most = float(np.percentile(area, _SPREAD, method="higher")) if len(area) else 1.0
        return {
            "area_um2": _histogram(np.minimum(area, most), (0.0, most or 1.0)),
            "mean_probability": _histogram(probability, (0.0, 1.0)),
        }

    def csv(self, chosen: Filter) -> Iterator[bytes]:
        """All columns of the objects chosen, in order of id, a piece for each row group."""
        mask = self.mask(chosen)
        for number, table in enumerate(read_groups(self.path)):
            rows = as_text(table.filter(pa.array(mask[table["id"].to_numpy().astype(np.int64) - 1])))
            piece = io.BytesIO()
            pyarrow.csv.write_csv(rows, piece, pyarrow.csv.WriteOptions(include_header=number == 0))
            yield piece.getvalue()


def _histogram(values: NDArray[np.float64], span: tuple[float, float]) -> dict[str, list[float]]:
    counts, edges = np.histogram(values, BINS, span)
    return {"counts": counts.tolist(), "edges": edges.tolist()}
