"""Label: connected components of the stored probabilities, found block by block, out of core.

Every shard is written once. The first passes write only small files (runs, sums of pieces, border lines). This process
joins them into one small table for each block. The last pass rasterizes the runs through the table and writes the
shard. So a shard that exists is a block that is done, here too, and probabilities are read once.

    probability --hole_block--> holes --join--> fill                                  only when holes are filled
    probability + fill --piece_block--> runs, pieces --join--> lookup                 ids of pieces
                              pieces --join--> wholes --split_block--> parts          only when objects are split
    runs + lookup (+ parts) --label_block--> labels/objects/0

Block results ``label/lookup`` hold the final id and class of each piece of a block. Together with the runs they define
the objects (``object_runs``).
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

from pipeline.config import ObjectsSection
from pipeline.execution.blocks import Counts, MapBlocks, StageContext, StageReport, run_blocks
from pipeline.image_info import ImageInfo
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
from pipeline.objects.watershed import Splitting
from pipeline.stages.split_objects import WHOLES, AllParts, lookup_tables, split_block, too_large, whole_tables
from pipeline.storage.atomic_files import fsync_dir
from pipeline.storage.layout import OBJECTS, PROBABILITY
from pipeline.storage.slide_store import ArraySpec, Index
from unet_core.class_map import class_map, threshold_byte
from unet_core.object_labels import ROUNDING, largest_box_px
from unet_core.spec import ObjectSettings

Array = NDArray[Any]

STAGE = "label"
HOLES, FILL, PIECES = "label/holes", "label/fill", "label/pieces"


@dataclass(frozen=True, slots=True)
class LabelInputs:
    """What is an object.

    Areas are of merged objects, and their limits are inclusive. Objects with a box of at most ``config.split_max_um``
    are split where the distance to their edge falls ``config.split_depth_um`` below two maxima, or where the map of the
    seeds falls ``seeds.depth`` below two maxima. Area limits and regions (by centroid) apply after splitting.

    Attributes:
        config: The ``objects`` section of the configuration; the fields below replace its values of the same name.
        image: Scale of the image.
        threshold: Of the user or the model.
        min_area_um2: Of the user or the model.
        discs_um: For each class the radii of the discs that open and close its mask before holes are filled; empty when
            no mask is changed.
        regions: Regions in which objects are kept, in pixels of the slide's level 0; None for the whole image.
        method: Method of the user or the model, and its settings.
    """

    config: ObjectsSection
    image: ImageInfo
    threshold: float
    min_area_um2: float
    discs_um: tuple[tuple[float, float], ...]
    regions: Regions | None
    method: ObjectSettings

    @property
    def connectivity(self) -> Literal[4, 8]:
        """Neighbours of a pixel in an object."""
        return self.config.connectivity

    @property
    def splitting(self) -> Splitting | None:
        """How objects are split, in pixels; None when they are not."""
        largest = largest_box_px(self.config.split_max_um, self.image.mpp)
        if self.method.map_name is not None:
            return Splitting(self.method.depth, largest, self.connectivity, self.method.map_name)
        if self.config.split == "none":
            return None
        return Splitting(self.config.split_depth_um / self.image.mpp, largest, self.connectivity)

    @property
    def morphology(self) -> Morphology:
        """Radii of discs, rounded to whole pixels."""
        return Morphology(tuple((self._nearest(opens), self._nearest(closes)) for opens, closes in self.discs_um))

    @property
    def limits(self) -> Limits:
        """Area limits in pixels; a limit that is an integer up to rounding is that integer."""
        smallest = math.ceil(self._px(self.min_area_um2) * (1 - ROUNDING))
        largest_um2 = self.method.max_area_um2
        return Limits(smallest, None if largest_um2 is None else self._at_most(largest_um2))

    @property
    def fill_holes_px(self) -> int:
        """Area of the largest hole that is filled, in pixels; 0 fills none."""
        return self._at_most(self.config.fill_holes_um2)

    def _nearest(self, length_um: float) -> int:
        return math.floor(length_um / self.image.mpp + 0.5)

    def _px(self, area_um2: float) -> float:
        return area_um2 / self.image.mpp**2

    def _at_most(self, area_um2: float) -> int:
        return math.floor(self._px(area_um2) * (1 + ROUNDING))


def hole_block(context: StageContext, inputs: LabelInputs, index: Index) -> Counts:
    """Write a block's background pieces: holes may reach into other blocks."""
    part = hole_part(_read_classes(context, inputs, index), context.core(index), context.shape_yx, inputs.connectivity)
    context.store.save_result(HOLES, context.plan_hash, index, part.arrays())
    return {"holes_blocks": 1}


def piece_block(context: StageContext, inputs: LabelInputs, index: Index) -> Counts:
    """Write a block's object pieces: runs, class, area, first pixel, borders."""
    classes, core = _filled_classes(context, inputs, index), context.core(index)
    pieces = label_pieces(classes, inputs.connectivity)
    part = object_part(pieces, classes, core, context.shape_yx[1])
    extra = (boxes(pieces, core) if inputs.splitting else {}) | (
        coordinate_sums(pieces, core) if inputs.regions else {}
    )
    save_runs(context.store, context.plan_hash, index, pieces, core.shape[0])
    arrays = replace(part, columns=part.columns | extra).arrays()
    context.store.save_result(PIECES, context.plan_hash, index, arrays)
    return {"pieces_blocks": 1}


def label_block(context: StageContext, index: Index) -> Counts:
    """Write a block's shard of final ids, and before it the outermost lines that measure reads."""
    context.store.write_block(OBJECTS, context.plan_hash, context.core(index), _painted(context, index))
    return {"label_blocks": 1}


def edges_block(context: StageContext, index: Index) -> Counts:
    """Write the outermost lines of a block whose shard exists but whose small files do not."""
    _painted(context, index)
    return {"edges_blocks": 1}


def _painted(context: StageContext, index: Index) -> Array:
    core = context.core(index)
    runs = object_runs(context.store, context.plan_hash, index, core).runs
    ids = rasterize(runs, runs.label, core.shape)
    save_edges(context.store, context.plan_hash, index, ids)
    return ids


def label_slide(context: StageContext, inputs: LabelInputs, map_blocks: MapBlocks) -> StageReport:
    """Label the slide: ``labels/objects/0`` equals ``skimage.measure.label`` of the whole class map.

    Before labelling, masks are opened and closed and holes are filled. After it, objects outside the area limits are
    dropped and the others renumbered. Results of this plan that exist are not computed again.

    Raises:
        SlideError: There are more than 2**32 - 1 objects.
    """
    store, plan = context.store, context.plan_hash
    for stage in (HOLES, FILL, PIECES, RUNS, WHOLES, PARTS, LOOKUP, EDGES):
        store.sweep_results(stage, plan)
    store.create(ArraySpec(OBJECTS, context.shape_yx, "uint32", context.block_px, plan))
    counts = _find_fill(context, inputs, map_blocks) if inputs.fill_holes_px else {}
    kept = store.results(PIECES, plan) & store.results(RUNS, plan)
    counts |= run_blocks(STAGE, context, kept, partial(piece_block, context, inputs), map_blocks).counts
    joined = join(_rows(context, PIECES), inputs.connectivity)
    whole = MergedObjects.of(joined)
    parts = AllParts.none(len(context.grid))
    if inputs.splitting is not None:
        counts |= _split(context, joined, whole, inputs.splitting, map_blocks)
        parts = AllParts.load(context)
    chosen = _choose(parts.instead(whole), inputs)
    _save_tables(context, LOOKUP, lookup_tables(context, joined, chosen.whole, chosen.numbered.ids, parts))
    report = run_blocks(STAGE, context, store.done(OBJECTS, plan), partial(label_block, context), map_blocks)
    counts |= run_blocks(STAGE, context, store.results(EDGES, plan), partial(edges_block, context), map_blocks).counts
    report.counts |= counts
    report.facts = _facts(context, inputs, joined, whole, chosen)
    store.commit(OBJECTS, plan)
    fsync_dir(store.work / LOOKUP)
    store.stamp(STAGE, plan, report.facts)
    return report


def _read_classes(context: StageContext, inputs: LabelInputs, index: Index) -> Array:
    """The class map of a block, opened and closed together with its surroundings, as in the whole slide."""
    core, morphology = context.core(index), inputs.morphology
    read = core.expand(morphology.halo_px).intersect(context.grid.area)
    assert read is not None, "a block lies in the image"
    classes = class_map(context.store.read(PROBABILITY).read(read), inputs.threshold)
    return morphology.of_classes(classes)[core.shift(-read.y0, -read.x0).slices]


def _filled_classes(context: StageContext, inputs: LabelInputs, index: Index) -> Array:
    classes = _read_classes(context, inputs, index)
    if not inputs.fill_holes_px:
        return classes
    return fill_holes(classes, context.store.load_result(FILL, context.plan_hash, index)["fill"], inputs.connectivity)


def _find_fill(context: StageContext, inputs: LabelInputs, map_blocks: MapBlocks) -> Counts:
    """Write one small table for each block: the class that fills each of its background pieces."""
    done = context.store.results(HOLES, context.plan_hash)
    report = run_blocks(STAGE, context, done, partial(hole_block, context, inputs), map_blocks)
    if len(context.store.results(FILL, context.plan_hash)) < len(context.grid):
        joined = join(_rows(context, HOLES), background_connectivity(inputs.connectivity))
        fill = fill_classes(joined, inputs.fill_holes_px)
        _save_tables(context, FILL, ({"fill": fill[start:stop]} for start, stop in pairwise(joined.starts)))
    return report.counts


def _split(
    context: StageContext, joined: BlockGraph, whole: MergedObjects, splitting: Splitting, map_blocks: MapBlocks
) -> Counts:
    """Write the parts of split objects, in one small file for each block."""
    _save_tables(context, WHOLES, whole_tables(context, joined, whole, splitting.largest_px))
    done = context.store.results(PARTS, context.plan_hash)
    return run_blocks(STAGE, context, done, partial(split_block, context, splitting), map_blocks).counts


@dataclass(frozen=True, slots=True)
class _Chosen:
    """Objects after splitting, which of them lie within the area limits and the regions, and their ids."""

    whole: MergedObjects
    fitting: Array
    inside: Array
    numbered: NumberedObjects


def _choose(whole: MergedObjects, inputs: LabelInputs) -> _Chosen:
    fitting = inputs.limits.hold(whole.columns["area"])
    inside = np.ones(len(fitting), np.bool_)
    if inputs.regions is not None:
        area, scale = whole.columns["area"], inputs.image.level0_from_image
        y, x = ((whole.columns[name] / area + 0.5) * of for name, of in zip(("sum_y", "sum_x"), scale, strict=True))
        inside = inputs.regions.region_of(y, x) >= 0
    return _Chosen(whole, fitting, inside, number_objects(whole, fitting & inside))


def _rows(context: StageContext, stage: str) -> Iterator[list[BlockPart]]:
    for row in range(context.grid.rows):
        found = (context.store.load_result(stage, context.plan_hash, (row, col)) for col in range(context.grid.cols))
        yield [BlockPart.of_arrays(arrays) for arrays in found]


def _save_tables(context: StageContext, stage: str, tables: Iterable[dict[str, Array]]) -> None:
    """Write a small table for each block, in order, where there is none yet."""
    done = context.store.results(stage, context.plan_hash)
    for tile, table in zip(context.grid, tables, strict=True):
        if tile.index not in done:
            context.store.save_result(stage, context.plan_hash, tile.index, table)


def _facts(
    context: StageContext, inputs: LabelInputs, joined: BlockGraph, whole: MergedObjects, chosen: _Chosen
) -> dict[str, Any]:
    classes, numbered, stands = context.store.read(PROBABILITY).shape[0], chosen.numbered, chosen.whole.stands
    facts: dict[str, Any] = {
        "objects": int(numbered.objects.sum()),
        "objects_per_class": _per_class(numbered.objects, classes),
        "area_px_per_class": _per_class(numbered.area_px, classes),
        "objects_removed_by_area": int((stands & ~chosen.fitting).sum()),
        "objects_across_seams": count_seam_objects(joined, numbered.ids),
        "connectivity": inputs.connectivity,
        "threshold_byte": threshold_byte(inputs.threshold) if classes == 1 else None,
        "open_close_px": [list(radii) for radii in inputs.morphology.discs_px],
        "fill_holes_px": inputs.fill_holes_px,
    }
    if inputs.regions is not None:
        facts["objects_outside_regions"] = int((stands & chosen.fitting & ~chosen.inside).sum())
    if inputs.splitting is not None:
        facts["split"] = {
            "objects": int(whole.stands.sum() - stands[: len(whole.stands)].sum()),
            "parts": int(stands[len(whole.stands) :].sum()),
            "too_large_px": inputs.splitting.largest_px,
            "too_large": int(too_large(whole, inputs.splitting.largest_px).sum()),
        }
        if inputs.splitting.source is not None:
            facts["split"] |= {"map": inputs.splitting.source, "depth_byte": inputs.splitting.depth}
    return facts


def _per_class(column: Array, classes: int) -> list[int]:
    """Values of classes 1.. from a column that starts with background and ends with the last class that occurs."""
    return [int(column[number]) if number < len(column) else 0 for number in range(1, classes + 1)]
