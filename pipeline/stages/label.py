"""Objects: connected components of the stored probabilities, found block by block, out of core.

The one decision made here: every shard is written once. First passes keep only small files (runs, piece sums and border
lines), this process joins them into one small table a block, and the last pass paints the runs through the table and
writes its shard. So a shard that exists is a block that is done, here too, and probabilities are read once.

    probability --hole_block--> holes --join--> fill                                  only when holes are filled
    probability + fill --piece_block--> runs, pieces --join--> lookup                 ids of pieces
                              pieces --join--> wholes --split_block--> parts          only when objects are split
    runs + lookup (+ parts) --label_block--> labels/objects/0

Block results ``label/lookup`` hold the final ids and classes of each of a block's pieces: whoever reads the objects
finds their classes there, and with the runs the objects themselves (``object_runs``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.execution.blocks import Counts, MapBlocks, StageContext, StageReport, run_blocks
from pipeline.inputs.regions import Regions
from pipeline.objects.components import BlockGraph, BlockPart, join, label_pieces, object_part, rasterize
from pipeline.objects.holes import background_connectivity, fill_classes, fill_holes, hole_part
from pipeline.objects.morphology import Morphology
from pipeline.objects.relabel import (
    Limits,
    MergedObjects,
    NumberedObjects,
    boxes,
    coordinate_sums,
    count_seam_objects,
    number_objects,
)
from pipeline.objects.run_length import EDGES, LOOKUP, PARTS, RUNS, object_runs, save_edges, save_runs
from pipeline.objects.watershed import LARGEST_PX, Splitting
from pipeline.stages.split_objects import WHOLES, AllParts, lookup_tables, split_block, too_large, whole_tables
from pipeline.storage.atomic_files import fsync_dir
from pipeline.storage.layout import OBJECTS, PROBABILITY
from pipeline.storage.slide_store import ArraySpec, Index
from unet_core.class_map import class_map, threshold_byte

Array = NDArray[Any]

STAGE = "label"
HOLES, FILL, PIECES = "label/holes", "label/fill", "label/pieces"
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class LabelSection:
    """What is an object. ``mpp`` is the image's, in um per pixel; areas are of merged objects, limits inclusive.

    ``discs_um`` are for each class the radii of the discs that open and close its mask, before holes are filled; none
    when it is empty. Objects with a box of at most ``split_max_um`` are split where the distance to their edge falls
    ``split_depth_um`` below two tops; limits, and regions (by centroid), act on what is whole then.
    ``level0_from_image`` (y, x) is how many pixels of the slide's level 0 one pixel of the image spans.
    """

    threshold: float
    mpp: float
    connectivity: Literal[4, 8] = 8
    min_area_um2: float = 0.0
    max_area_um2: float | None = None
    fill_holes_um2: float = 0.0
    discs_um: tuple[tuple[float, float], ...] = ()
    split: Literal["none", "watershed"] = "none"
    split_depth_um: float = 0.75
    split_max_um: float = 200.0
    regions: Regions | None = None
    level0_from_image: tuple[float, float] = (1.0, 1.0)

    @property
    def splitting(self) -> Splitting | None:
        """How objects are split, in pixels; None when they are not."""
        if self.split == "none":
            return None
        largest = min(math.floor(self.split_max_um / self.mpp * (1 + _ROUNDING)), LARGEST_PX)
        return Splitting(self.split_depth_um / self.mpp, largest, self.connectivity)

    @property
    def morphology(self) -> Morphology:
        """Radii of discs in whole pixels, the nearest."""
        return Morphology(tuple((self._nearest(opens), self._nearest(closes)) for opens, closes in self.discs_um))

    @property
    def limits(self) -> Limits:
        """Areas in pixels; a limit that is a whole number of pixels but for rounding is that number."""
        smallest = math.ceil(self._px(self.min_area_um2) * (1 - _ROUNDING))
        return Limits(smallest, None if self.max_area_um2 is None else self._at_most(self.max_area_um2))

    @property
    def fill_holes_px(self) -> int:
        """Largest hole that is filled; 0 fills none."""
        return self._at_most(self.fill_holes_um2)

    def _nearest(self, length_um: float) -> int:
        return math.floor(length_um / self.mpp + 0.5)

    def _px(self, area_um2: float) -> float:
        return area_um2 / self.mpp**2

    def _at_most(self, area_um2: float) -> int:
        return math.floor(self._px(area_um2) * (1 + _ROUNDING))


def hole_block(work: StageContext, section: LabelSection, index: Index) -> Counts:
    """Keep a block's background pieces, whose holes may reach into other blocks."""
    part = hole_part(_read_classes(work, section, index), work.core(index), work.shape_yx, section.connectivity)
    work.store.save_result(HOLES, work.plan, index, part.arrays())
    return {"holes_blocks": 1}


def piece_block(work: StageContext, section: LabelSection, index: Index) -> Counts:
    """Keep a block's object pieces: their runs, class, area, first pixel, borders."""
    classes, core = _filled_classes(work, section, index), work.core(index)
    pieces = label_pieces(classes, section.connectivity)
    part = object_part(pieces, classes, core, work.shape_yx[1])
    extra = (boxes(pieces, core) if section.splitting else {}) | (
        coordinate_sums(pieces, core) if section.regions else {}
    )
    save_runs(work.store, work.plan, index, pieces, core.shape[0])
    arrays = replace(part, columns=part.columns | extra).arrays()
    work.store.save_result(PIECES, work.plan, index, arrays)
    return {"pieces_blocks": 1}


def label_block(work: StageContext, index: Index) -> Counts:
    """Write a block's shard of final ids, and before it the outermost lines that measuring asks for."""
    work.store.write_block(OBJECTS, work.plan, work.core(index), _painted(work, index))
    return {"label_blocks": 1}


def edges_block(work: StageContext, index: Index) -> Counts:
    """Keep the outermost lines of a block whose shard is there, but not its small files."""
    _painted(work, index)
    return {"edges_blocks": 1}


def _painted(work: StageContext, index: Index) -> Array:
    core = work.core(index)
    runs = object_runs(work.store, work.plan, index, core).runs
    ids = rasterize(runs, runs.label, core.shape)
    save_edges(work.store, work.plan, index, ids)
    return ids


def label_slide(work: StageContext, section: LabelSection, map_blocks: MapBlocks) -> StageReport:
    """Label the slide: ``labels/objects/0`` equals ``skimage.measure.label`` of the whole class map.

    Masks are opened and closed and holes filled before, objects outside the area limits dropped and the rest
    renumbered after. Work that exists under this plan is not done again. Raises SlideError for more than 2**32 - 1
    objects.
    """
    store, plan = work.store, work.plan
    for stage in (HOLES, FILL, PIECES, RUNS, WHOLES, PARTS, LOOKUP, EDGES):
        store.sweep_results(stage, plan)
    store.create(ArraySpec(OBJECTS, work.shape_yx, "uint32", work.block_px, plan))
    counts = _find_fill(work, section, map_blocks) if section.fill_holes_px else {}
    kept = store.results(PIECES, plan) & store.results(RUNS, plan)
    counts |= run_blocks(STAGE, work, kept, partial(piece_block, work, section), map_blocks).counts
    joined = join(_rows(work, PIECES), section.connectivity)
    whole = MergedObjects.of(joined)
    parts = AllParts.none(len(work.grid))
    if section.splitting is not None:
        counts |= _split(work, joined, whole, section.splitting, map_blocks)
        parts = AllParts.load(work)
    chosen = _choose(parts.instead(whole), section)
    _save_tables(work, LOOKUP, lookup_tables(work, joined, chosen.whole, chosen.numbered.ids, parts))
    report = run_blocks(STAGE, work, store.done(OBJECTS, plan), partial(label_block, work), map_blocks)
    counts |= run_blocks(STAGE, work, store.results(EDGES, plan), partial(edges_block, work), map_blocks).counts
    report.counts |= counts
    report.facts = _facts(work, section, joined, whole, chosen)
    store.commit(OBJECTS, plan)
    fsync_dir(store.work / LOOKUP)
    store.stamp(STAGE, plan, report.facts)
    return report


def _read_classes(work: StageContext, section: LabelSection, index: Index) -> Array:
    """The class map of a block, opened and closed as the whole slide would be: with what lies around the block."""
    core, morphology = work.core(index), section.morphology
    read = core.expand(morphology.halo_px).intersect(work.grid.area)
    assert read is not None, "a block lies in the image"
    classes = class_map(work.store.read(PROBABILITY).read(read), section.threshold)
    return morphology.of_classes(classes)[core.shift(-read.y0, -read.x0).slices]


def _filled_classes(work: StageContext, section: LabelSection, index: Index) -> Array:
    classes = _read_classes(work, section, index)
    if not section.fill_holes_px:
        return classes
    return fill_holes(classes, work.store.load_result(FILL, work.plan, index)["fill"], section.connectivity)


def _find_fill(work: StageContext, section: LabelSection, map_blocks: MapBlocks) -> Counts:
    """One small table a block: what fills each of its background pieces."""
    done = work.store.results(HOLES, work.plan)
    report = run_blocks(STAGE, work, done, partial(hole_block, work, section), map_blocks)
    if len(work.store.results(FILL, work.plan)) < len(work.grid):
        joined = join(_rows(work, HOLES), background_connectivity(section.connectivity))
        fill = fill_classes(joined, section.fill_holes_px)
        _save_tables(work, FILL, ({"fill": fill[start:stop]} for start, stop in pairwise(joined.starts)))
    return report.counts


def _split(
    work: StageContext, joined: BlockGraph, whole: MergedObjects, splitting: Splitting, map_blocks: MapBlocks
) -> Counts:
    """The parts of split objects, in one small file a block."""
    _save_tables(work, WHOLES, whole_tables(work, joined, whole, splitting.largest_px))
    done = work.store.results(PARTS, work.plan)
    return run_blocks(STAGE, work, done, partial(split_block, work, splitting), map_blocks).counts


@dataclass(frozen=True, slots=True)
class _Chosen:
    """Objects after splitting, which of them have a fitting area and a centroid inside the regions, and their ids."""

    whole: MergedObjects
    fitting: Array
    inside: Array
    numbered: NumberedObjects


def _choose(whole: MergedObjects, section: LabelSection) -> _Chosen:
    fitting = section.limits.hold(whole.columns["area"])
    inside = np.ones(len(fitting), np.bool_)
    if section.regions is not None:
        area, scale = whole.columns["area"], section.level0_from_image
        y, x = ((whole.columns[name] / area + 0.5) * of for name, of in zip(("sum_y", "sum_x"), scale, strict=True))
        inside = section.regions.region_of(y, x) >= 0
    return _Chosen(whole, fitting, inside, number_objects(whole, fitting & inside))


def _rows(work: StageContext, stage: str) -> Iterator[list[BlockPart]]:
    for row in range(work.grid.rows):
        found = (work.store.load_result(stage, work.plan, (row, col)) for col in range(work.grid.cols))
        yield [BlockPart.of_arrays(arrays) for arrays in found]


def _save_tables(work: StageContext, stage: str, tables: Iterable[dict[str, Array]]) -> None:
    """Keep a small table for each block, in order, where there is none yet."""
    done = work.store.results(stage, work.plan)
    for tile, table in zip(work.grid, tables, strict=True):
        if tile.index not in done:
            work.store.save_result(stage, work.plan, tile.index, table)


def _facts(
    work: StageContext, section: LabelSection, joined: BlockGraph, whole: MergedObjects, chosen: _Chosen
) -> dict[str, Any]:
    classes, numbered, stands = work.store.read(PROBABILITY).shape[0], chosen.numbered, chosen.whole.stands
    facts = {
        "objects": int(numbered.objects.sum()),
        "objects_per_class": _per_class(numbered.objects, classes),
        "area_px_per_class": _per_class(numbered.area_px, classes),
        "objects_removed_by_area": int((stands & ~chosen.fitting).sum()),
        "objects_across_seams": count_seam_objects(joined, numbered.ids),
        "connectivity": section.connectivity,
        "threshold_byte": threshold_byte(section.threshold) if classes == 1 else None,
        "open_close_px": [list(radii) for radii in section.morphology.discs_px],
        "fill_holes_px": section.fill_holes_px,
    }
    if section.regions is not None:
        facts["objects_outside_regions"] = int((stands & chosen.fitting & ~chosen.inside).sum())
    if section.splitting is not None:
        facts["split"] = {
            "objects": int(whole.stands.sum() - stands[: len(whole.stands)].sum()),
            "parts": int(stands[len(whole.stands) :].sum()),
            "too_large_px": section.splitting.largest_px,
            "too_large": int(too_large(whole, section.splitting.largest_px).sum()),
        }
    return facts


def _per_class(column: Array, classes: int) -> list[int]:
    """Numbers of classes 1.. from a column that starts with background and ends with the last class found."""
    return [int(column[number]) if number < len(column) else 0 for number in range(1, classes + 1)]
