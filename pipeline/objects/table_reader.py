"""Read rows of ``objects.parquet`` by object id.

Row i is object i + 1. This is checked for the rows that are read, so a look-up by id opens only the row groups it
needs, and a table of other labels is rejected.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import DamagedError


def count_objects(path: Path) -> int:
    """Number of rows.

    Raises:
        DamagedError: The file cannot be read.
    """
    return int(_open(path).metadata.num_rows)


def read_objects(
    path: Path, names: Sequence[str], class_names: Sequence[str], ids: NDArray[Any] | None = None
) -> dict[str, NDArray[Any]]:
    """Read columns of some objects. At most one row group is in memory besides the result.

    Args:
        path: The table.
        names: Columns.
        class_names: Foreground classes in order.
        ids: Object ids in ascending order (n,); None for all.

    Returns:
        The columns by name, in the order of ``ids``; ``class`` as an index into ``class_names`` (uint8).

    Raises:
        DamagedError: The file cannot be read, lacks an object, or has a class that is not among ``class_names``.
    """
    file = _open(path)
    count = file.metadata.num_rows
    requested = np.arange(count) if ids is None else ids.astype(np.int64) - 1
    if requested.max(initial=-1) >= count:
        raise DamagedError(
            f"{path}: expected object {requested.max() + 1}, found {count} objects. Run 'overtile verify'"
        )
    bounds = np.cumsum([0] + [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)])
    edges = np.searchsorted(requested, bounds)
    pieces: dict[str, list[NDArray[Any]]] = {name: [np.zeros(0, np.uint8)] for name in names}
    for group in range(file.num_row_groups):
        rows = requested[edges[group] : edges[group + 1]] - bounds[group]
        if len(rows):
            table = _read_group(file, path, group, first=int(bounds[group]) + 1, names=names)
            for name in names:
                column = _classes(table, class_names, path) if name == "class" else table[name].to_numpy()
                pieces[name].append(column[rows])
    return {name: np.concatenate(columns) for name, columns in pieces.items()}


def read_groups(path: Path) -> Iterator[pa.Table]:
    """Read all columns, one row group at a time.

    Yields:
        A table for each row group; one empty table where there are no objects.

    Raises:
        DamagedError: The file cannot be read.
    """
    file = _open(path)
    for group in range(file.num_row_groups):
        yield _guarded(path, partial(file.read_row_group, group))
    if not file.num_row_groups:
        yield file.schema_arrow.empty_table()


def read_rows(path: Path, ids: NDArray[np.int64]) -> pa.Table:
    """Read all columns of some objects. The row groups that hold them are in memory at once.

    Args:
        path: The table.
        ids: Object ids in ascending order (n,).

    Raises:
        DamagedError: The file cannot be read, or lacks an object.
    """
    file = _open(path)
    if ids.max(initial=0) > file.metadata.num_rows:
        raise DamagedError(
            f"{path}: expected object {ids.max()}, found {file.metadata.num_rows}. Run 'overtile verify'"
        )
    bounds = np.cumsum([0] + [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)])
    groups = np.unique(np.searchsorted(bounds, ids, side="left") - 1).tolist()
    table = _guarded(path, partial(file.read_row_groups, groups))
    ahead = np.concatenate([np.arange(bounds[group], bounds[group + 1]) for group in groups])
    rows = table.take(pa.array(np.searchsorted(ahead, ids - 1)))
    if not np.array_equal(rows["id"].to_numpy(), ids):
        raise DamagedError(f"{path}: expected row i to be object i + 1, found others. Run 'overtile verify'")
    return rows


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(pa.OSFile(os.fsencode(path)))  # bytes: a folder's name need not be UTF-8
    except (OSError, pa.ArrowException) as error:
        raise DamagedError(f"{path} cannot be read as the object table ({error}). Run 'overtile verify'") from error


def _guarded(path: Path, read: Callable[[], pa.Table]) -> pa.Table:
    try:
        return read()
    except (OSError, pa.ArrowException) as error:
        raise DamagedError(f"{path} cannot be read as the object table ({error}). Run 'overtile verify'") from error


def _read_group(file: pq.ParquetFile, path: Path, group: int, *, first: int, names: Sequence[str]) -> pa.Table:
    table = _guarded(path, partial(file.read_row_group, group, columns=["id", *names]))
    last = first + len(table) - 1
    if not np.array_equal(table["id"].to_numpy(), np.arange(first, last + 1)):
        raise DamagedError(f"{path}: expected ids {first} to {last} in order, found others. Run 'overtile verify'")
    return table


def _classes(table: pa.Table, class_names: Sequence[str], path: Path) -> NDArray[np.uint8]:
    column = table["class"].combine_chunks()
    names = column.dictionary.to_pylist()
    if not set(names) <= set(class_names):
        raise DamagedError(f"{path}: expected the classes {list(class_names)}, found {names}: another model's")
    of_code = np.array([class_names.index(name) for name in names], np.uint8)
    return np.asarray(of_code[column.indices.to_numpy()])


def as_text(table: pa.Table) -> pa.Table:
    """Convert dictionary columns (class, region) to text that spreadsheets do not evaluate, for CSV."""
    for number, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            names = [None if name is None else _inert(name) for name in table[field.name].to_pylist()]
            table = table.set_column(number, field.name, pa.array(names, pa.string()))
    return table


def _inert(text: str) -> str:
    """Text that a spreadsheet does not evaluate as a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
