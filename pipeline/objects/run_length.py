"""Run-length encoded objects, as the label stage stores them for each block.

The first pass of labelling stores the runs of a block's pieces, 6 to 8 bytes a run; its final table maps pieces to
objects. Later passes read the objects of a block from these two, and from the parts of split objects, which is several
times faster than reading the label image. The label image is drawn from the same runs.

    label/runs    rows (runs in each row), x0, length, piece (from 1), in raster order
    label/parts   runs of the parts of split objects that begin in a block, wherever they lie
    label/edges   the label image's outermost lines at the ``top``, ``bottom``, ``left`` and ``right`` of a block
    label/lookup  ids (0 = removed) and group (class from 1) of the block's pieces, then of the parts that ``owners``,
                  blocks (row, col), have: ``counts`` of them each
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import Box, Tile, TileGrid
from pipeline.objects.components import RunLengths
from pipeline.storage.slide_store import Index, SlideStore

Array = NDArray[Any]

RUNS, PARTS, LOOKUP, EDGES = "label/runs", "label/parts", "label/lookup", "label/edges"
EDGE_PX = 2


def save_runs(store: SlideStore, plan: str, index: Index, pieces: RunLengths, height: int) -> None:
    """Store the runs of a block that is ``height`` pixels high, labelled by piece."""
    kept = {
        "rows": np.bincount(pieces.y, minlength=height).astype(np.uint16),
        "x0": pieces.x0.astype(np.uint16),
        "length": pieces.length.astype(np.uint16),
        "piece": pieces.label.astype(np.min_scalar_type(int(pieces.label.max(initial=0)))),
    }
    store.save_result(RUNS, plan, index, kept)


def load_runs(store: SlideStore, plan: str, index: Index) -> RunLengths:
    """Load the runs of a block, labelled by piece (int64)."""
    kept = store.load_result(RUNS, plan, index)
    x0, length, piece = (kept[name].astype(np.int64) for name in ("x0", "length", "piece"))
    return RunLengths(piece, np.repeat(np.arange(len(kept["rows"])), kept["rows"]), x0, x0 + length)


@dataclass(frozen=True, slots=True)
class ObjectRuns:
    """Runs of a block's objects.

    Attributes:
        runs: Runs in raster order, labelled by final id (uint32).
        group: Class of each run from 1 (n,).
    """

    runs: RunLengths
    group: Array


def object_runs(store: SlideStore, plan: str, index: Index, core: Box) -> ObjectRuns:
    """Load the objects of the block ``core``, in pixels of the block."""
    table = store.load_result(LOOKUP, plan, index)
    entries = load_runs(store, plan, index)
    if len(table["owners"]):
        entries = _in_raster_order([entries, *_parts(store, plan, table, core)])
    ids = table["ids"][entries.label - 1]
    kept = np.flatnonzero(ids) if not ids.all() else slice(None)
    runs = RunLengths(ids[kept], entries.y[kept], entries.x0[kept], entries.x1[kept])
    return ObjectRuns(runs, table["group"][entries.label - 1][kept])


def _parts(store: SlideStore, plan: str, table: dict[str, Array], core: Box) -> Iterator[RunLengths]:
    """Runs inside a block of the parts that any block split; the label is the entry in the block's table, from 1."""
    before = len(table["ids"]) - int(table["counts"].sum())
    for (row, col), count in zip(table["owners"].tolist(), table["counts"].tolist(), strict=True):
        kept = store.load_result(PARTS, plan, (row, col), ["part", "y", "x0", "x1"])
        x0, x1 = (np.clip(kept[name] - core.x0, 0, core.shape[1]) for name in ("x0", "x1"))
        inside = np.flatnonzero((kept["y"] >= core.y0) & (kept["y"] < core.y1) & (x1 > x0))
        entry = before + 1 + kept["part"][inside]
        yield RunLengths(entry, kept["y"][inside] - core.y0, x0[inside], x1[inside])
        before += count


def _in_raster_order(several: list[RunLengths]) -> RunLengths:
    """Concatenate runs and sort them by row and column."""
    label, y, x0, x1 = (np.concatenate([getattr(runs, name) for runs in several]) for name in RunLengths.__slots__)
    order = np.lexsort((x0, y))
    return RunLengths(label[order], y[order], x0[order], x1[order])


def save_edges(store: SlideStore, plan: str, index: Index, ids_YX: Array) -> None:
    """Store the outermost lines of a block of the label image, for its neighbours."""
    rows, columns = (ids_YX[:EDGE_PX], ids_YX[-EDGE_PX:]), (ids_YX[:, :EDGE_PX], ids_YX[:, -EDGE_PX:])
    edges = zip(("top", "bottom", "left", "right"), (*rows, *columns), strict=True)
    store.save_result(EDGES, plan, index, {name: np.ascontiguousarray(lines) for name, lines in edges})


def lines_around(
    store: SlideStore, plan: str, tile: Tile, grid: TileGrid
) -> Iterator[tuple[tuple[slice, slice], Array]]:
    """Load the lines of the label image around a block, as far as they exist.

    Yields:
        Slices in an array that is ``EDGE_PX`` larger than the block on every side, and the ids of that part.
    """
    height, width = tile.core.shape
    for dy, dx in product((-1, 0, 1), repeat=2):
        row, col = tile.row + dy, tile.col + dx
        if (dy, dx) != (0, 0) and 0 <= row < grid.rows and 0 <= col < grid.cols:
            name = {-1: "bottom", 1: "top"}.get(dy) or {-1: "right", 1: "left"}[dx]
            lines = store.load_result(EDGES, plan, (row, col), [name])[name]
            lines = lines[:, {-1: slice(-EDGE_PX, None), 0: slice(None), 1: slice(EDGE_PX)}[dx]]
            yield (_beside(dy, height, lines.shape[0]), _beside(dx, width, lines.shape[1])), lines


def _beside(step: int, length: int, lines: int) -> slice:
    """Slice of lines before (-1), within (0) or after (1) a block of this length in its padded array."""
    start = {-1: EDGE_PX - lines, 0: EDGE_PX, 1: EDGE_PX + length}[step]
    return slice(start, start + lines)
