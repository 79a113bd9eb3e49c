"""Split objects out of core, as a pass of the label stage: each object is split once, by the block with its root.

Two small files for each block stand between the pass that finds pieces and the table of final ids. ``label/wholes``
holds the object of each piece (its ``root``, counted over the slide), whether its box is small enough to be ``split``,
and the other blocks into which the block's objects ``reach``. With it a block gathers the runs of its objects from the
results of the first pass, and writes their parts to ``label/parts``. Pixels are read only where a map says where to
split: the map of one block at a time, of which the pixels of the gathered runs are kept, one byte each.

Memory of the tables: 100 bytes a piece and 100 a part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.execution.blocks import Counts, StageContext
from pipeline.geometry import Box
from pipeline.objects.components import BlockGraph, RunLengths, rasterize
from pipeline.objects.moments import lowest, total
from pipeline.objects.relabel import MergedObjects
from pipeline.objects.run_length import PARTS, load_runs
from pipeline.objects.watershed import Splitting, split_objects
from pipeline.storage.layout import MAPS
from pipeline.storage.slide_store import Index, StoredArray
from unet_core.object_labels import split_heights
from unet_core.spec import MapName

Array = NDArray[Any]

WHOLES = "label/wholes"
_COLUMNS = ("area", "first", "sum_y", "sum_x", "group", "root")


def split_block(context: StageContext, splitting: Splitting, index: Index) -> Counts:
    """Write the parts of the objects whose root is in a block."""
    table = context.store.load_result(WHOLES, context.plan_hash, index)
    gathered = list(_gathered(context, index, table))
    values = None if splitting.source is None else _values(context, splitting.source, gathered)
    parts = split_objects(_joined([runs for _, runs in gathered]), splitting, values)
    runs = parts.runs
    columns = {
        "area": total(runs.label, runs.length),
        "first": lowest(runs.label, runs.y * context.shape_yx[1] + runs.x0),
        "sum_y": total(runs.label, runs.y * runs.length),
        "sum_x": total(runs.label, (runs.x0 + runs.x1 - 1) * runs.length // 2),
        "group": table["group"][parts.owner],
        "root": parts.owner + int(table["start"]),
    }
    where = {"part": runs.label, "y": runs.y, "x0": runs.x0, "x1": runs.x1}
    context.store.save_result(PARTS, context.plan_hash, index, columns | where)
    return {"split_blocks": 1}


def _gathered(context: StageContext, index: Index, table: Mapping[str, Array]) -> Iterator[tuple[Box, RunLengths]]:
    """Each block with runs of a block's objects, labelled by root counted in the block from 0, in image pixels."""
    start, stop = int(table["start"]), int(table["start"]) + len(table["root"])
    for other in [index, *((row, col) for row, col in table["reach"].tolist())]:
        other_table = table if other == index else context.store.load_result(WHOLES, context.plan_hash, other)
        runs, core = load_runs(context.store, context.plan_hash, other), context.core(other)
        root = other_table["root"][runs.label - 1]
        mine = np.flatnonzero((root >= start) & (root < stop) & other_table["split"][runs.label - 1])
        x0, x1 = runs.x0[mine] + core.x0, runs.x1[mine] + core.x0
        yield core, RunLengths(root[mine] - start, runs.y[mine] + core.y0, x0, x1)


def _joined(several: Sequence[RunLengths]) -> RunLengths:
    return RunLengths(*(np.concatenate([getattr(one, name) for one in several]) for name in RunLengths.__slots__))


def _values(context: StageContext, name: MapName, gathered: Iterable[tuple[Box, RunLengths]]) -> Array:
    """Heights by a map at the pixels of the runs, one run after the other; the map of one block is in memory."""
    stored = context.store.read(MAPS[name])
    return split_heights(name, np.concatenate([_along(runs, core, stored) for core, runs in gathered]))


def _along(runs: RunLengths, core: Box, stored: StoredArray) -> Array:
    """Values of an array (y, x) along runs that lie in ``core``; runs in raster order."""
    if not len(runs.label):
        return np.zeros(0, stored.dtype)
    local = RunLengths(runs.label, runs.y - core.y0, runs.x0 - core.x0, runs.x1 - core.x0)
    inside = rasterize(local, np.ones(len(runs.label), np.bool_), core.shape)
    return stored.read(core)[inside]


def too_large(whole: MergedObjects, largest_px: int) -> Array:
    """Objects, marked at their roots, whose box is longer than ``largest_px``."""
    columns = whole.columns
    longest = np.maximum(columns["y1"] - columns["y0"], columns["x1"] - columns["x0"])
    return np.asarray(whole.stands & (longest > largest_px))


def whole_tables(
    context: StageContext, joined: BlockGraph, whole: MergedObjects, largest_px: int
) -> Iterator[dict[str, Array]]:
    """The table ``label/wholes`` of each block, in order."""
    root = whole.root
    split = ~too_large(whole, largest_px)[root]
    home = _block_of(joined, np.arange(len(root)))
    owner = home[root]
    far = split & (owner != home)
    index = _indices(context)
    reach = _listed(len(index), owner[far], home[far])
    for number, (start, stop) in enumerate(pairwise(joined.starts)):
        slices = {"root": root[start:stop], "split": split[start:stop], "group": joined.group[start:stop]}
        yield {"start": np.array(start), "reach": index[reach[number]], **slices}


@dataclass(frozen=True, slots=True)
class AllParts:
    """Columns of the parts of all blocks, in block order; ``starts`` is the index of each block's first part."""

    columns: dict[str, Array]
    starts: Array

    @classmethod
    def load(cls, context: StageContext) -> AllParts:
        """Read the small files of all blocks."""
        kept = []
        for tile in context.grid:
            found = context.store.load_result(PARTS, context.plan_hash, tile.index)
            kept.append({name: found[name] for name in _COLUMNS})
        columns = {name: np.concatenate([one[name] for one in kept]) for name in _COLUMNS}
        return cls(columns, np.cumsum([0, *(len(one["group"]) for one in kept)]))

    @classmethod
    def none(cls, blocks: int) -> AllParts:
        """No parts, for slides whose objects are not split."""
        return cls({name: np.zeros(0, np.int64) for name in _COLUMNS}, np.zeros(blocks + 1, np.int64))

    def instead(self, whole: MergedObjects) -> MergedObjects:
        """The objects, with parts in place of those that were split."""
        columns = {name: column for name, column in self.columns.items() if name not in ("group", "root")}
        return whole.with_parts(self.columns["root"], self.columns["group"].astype(np.uint8), columns)


def lookup_tables(
    context: StageContext, joined: BlockGraph, whole: MergedObjects, ids: Array, parts: AllParts
) -> Iterator[dict[str, Array]]:
    """The table ``label/lookup`` of each block, in order; ``whole`` and ``ids`` hold pieces first, then parts."""
    pieces = len(joined.group)
    gone = np.zeros(len(whole.group), np.bool_)
    gone[parts.columns["root"]] = True
    split = np.flatnonzero(gone[whole.root[:pieces]])
    index = _indices(context)
    owners = _listed(len(index), _block_of(joined, split), _block_of(joined, whole.root[split]))
    for number, (start, stop) in enumerate(pairwise(joined.starts)):
        theirs = [pieces + np.arange(parts.starts[owner], parts.starts[owner + 1]) for owner in owners[number]]
        chosen = np.concatenate([np.arange(start, stop), *theirs])
        counts = np.diff(parts.starts)[owners[number]]
        table = {"ids": ids[chosen], "group": whole.group[chosen]}
        yield {**table, "owners": index[owners[number]], "counts": counts}


def _indices(context: StageContext) -> Array:
    """(row, col) of every block, in order."""
    return np.array([tile.index for tile in context.grid])


def _block_of(joined: BlockGraph, piece: Array) -> Array:
    """Number of the block that holds each piece."""
    return np.searchsorted(joined.starts, piece, side="right") - 1


def _listed(blocks: int, block: Array, other: Array) -> list[Array]:
    """For each block, the blocks that are paired with it."""
    pairs = np.unique(np.stack((block, other)), axis=1)
    edges = np.searchsorted(pairs[0], np.arange(blocks + 1))
    return [pairs[1, start:stop] for start, stop in pairwise(edges)]
