"""Objects: connected components of the stored probabilities, found block by block, out of core.

The one decision made here: every shard is written once. First passes keep only small files (piece sums and border
lines), this process joins them into one small table a block, and the last pass labels the block again, which is cheap,
and writes its shard through the table. So a shard that exists is a block that is done, here too.

    probability --hole_block--> holes --join--> fill          only when holes are filled
    probability + fill --piece_block--> pieces --join--> lookup --label_block--> labels/objects/0

Block results ``label/lookup`` hold ``ids`` (uint32, 0 = removed) and ``group`` (class from 1) of each of a block's
pieces: whoever reads the objects finds their classes there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.components import (
    Joined,
    Limits,
    Numbered,
    Part,
    class_map,
    join,
    label_pieces,
    number_objects,
    object_part,
    paint,
)
from pipeline.files import fsync_dir
from pipeline.holes import background_connectivity, fill_classes, fill_holes, hole_part
from pipeline.morphology import Morphology
from pipeline.store import ArraySpec, Index
from pipeline.work import Counts, MapBlocks, StageReport, Work, run_blocks

Array = NDArray[Any]

STAGE = "label"
PROBABILITY, OBJECTS = "probability/0", "labels/objects/0"
HOLES, FILL, PIECES, LOOKUP = "label/holes", "label/fill", "label/pieces", "label/lookup"
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class LabelSection:
    """What is an object. ``mpp`` is the image's, in um per pixel; areas are of merged objects, limits inclusive.

    ``discs_um`` are for each class the radii of the discs that open and close its mask, before holes are filled; none
    when it is empty.
    """

    threshold: float
    mpp: float
    connectivity: Literal[4, 8] = 8
    min_area_um2: float = 0.0
    max_area_um2: float | None = None
    fill_holes_um2: float = 0.0
    discs_um: tuple[tuple[float, float], ...] = ()

    @property
    def morphology(self) -> Morphology:
        """Radii of discs in whole pixels, the nearest."""
        return Morphology(tuple((self._nearest(opens), self._nearest(closes)) for opens, closes in self.discs_um))

    @property
    def threshold_byte(self) -> int:
        """Smallest stored byte that is foreground: ceil(255 * threshold), 128 for 0.5."""
        return math.ceil(255 * self.threshold)

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


def hole_block(work: Work, section: LabelSection, index: Index) -> Counts:
    """Keep a block's background pieces, whose holes may reach into other blocks."""
    part = hole_part(_read_classes(work, section, index), work.core(index), work.shape_yx, section.connectivity)
    work.store.save_result(HOLES, work.plan, index, part.arrays())
    return {"holes_blocks": 1}


def piece_block(work: Work, section: LabelSection, index: Index) -> Counts:
    """Keep a block's object pieces: class, area, first pixel, borders."""
    classes = _filled_classes(work, section, index)
    pieces = label_pieces(classes, section.connectivity)
    part = object_part(pieces, classes, work.core(index), work.shape_yx[1])
    work.store.save_result(PIECES, work.plan, index, part.arrays())
    return {"pieces_blocks": 1}


def label_block(work: Work, section: LabelSection, index: Index) -> Counts:
    """Write a block's shard of final ids."""
    ids = work.store.load_result(LOOKUP, work.plan, index)["ids"]
    pixels = np.zeros(work.core(index).shape, np.uint32)
    if ids.any():
        pieces = label_pieces(_filled_classes(work, section, index), section.connectivity)
        pixels = paint(pieces, ids[pieces.label - 1], pixels.shape)
    work.store.write_block(OBJECTS, work.plan, work.core(index), pixels)
    return {"label_blocks": 1}


def label_slide(work: Work, section: LabelSection, map_blocks: MapBlocks) -> StageReport:
    """Label the slide: ``labels/objects/0`` equals ``skimage.measure.label`` of the whole class map.

    Masks are opened and closed and holes filled before, objects outside the area limits dropped and the rest
    renumbered after. Work that exists under this plan is not done again. Raises SlideError for more than 2**32 - 1
    objects.
    """
    store, plan = work.store, work.plan
    for stage in (HOLES, FILL, PIECES, LOOKUP):
        store.sweep_results(stage, plan)
    store.create(ArraySpec(OBJECTS, work.shape_yx, "uint32", work.block_px, plan))
    before = _find_fill(work, section, map_blocks) if section.fill_holes_px else {}
    pieces = run_blocks(STAGE, work, store.results(PIECES, plan), partial(piece_block, work, section), map_blocks)
    numbered = _find_lookup(work, section)
    report = run_blocks(STAGE, work, store.done(OBJECTS, plan), partial(label_block, work, section), map_blocks)
    report.counts |= before | pieces.counts
    report.facts = _facts(work, section, numbered)
    store.commit(OBJECTS, plan)
    fsync_dir(store.work / LOOKUP)
    store.stamp(STAGE, plan, report.facts)
    return report


def _read_classes(work: Work, section: LabelSection, index: Index) -> Array:
    """The class map of a block, opened and closed as the whole slide would be: with what lies around the block."""
    core, morphology = work.core(index), section.morphology
    read = core.expand(morphology.halo_px).intersect(work.grid.area)
    assert read is not None, "a block lies in the image"
    classes = class_map(work.store.read(PROBABILITY).read(read), section.threshold_byte)
    return morphology.of_classes(classes)[core.shift(-read.y0, -read.x0).slices]


def _filled_classes(work: Work, section: LabelSection, index: Index) -> Array:
    classes = _read_classes(work, section, index)
    if not section.fill_holes_px:
        return classes
    return fill_holes(classes, work.store.load_result(FILL, work.plan, index)["fill"], section.connectivity)


def _find_fill(work: Work, section: LabelSection, map_blocks: MapBlocks) -> Counts:
    """One small table a block: what fills each of its background pieces."""
    done = work.store.results(HOLES, work.plan)
    report = run_blocks(STAGE, work, done, partial(hole_block, work, section), map_blocks)
    if len(work.store.results(FILL, work.plan)) < len(work.grid):
        joined = join(_rows(work, HOLES), background_connectivity(section.connectivity))
        _save_tables(work, FILL, joined, {"fill": fill_classes(joined, section.fill_holes_px)})
    return report.counts


def _find_lookup(work: Work, section: LabelSection) -> Numbered:
    """One small table a block: the final id and the class of each of its pieces."""
    joined = join(_rows(work, PIECES), section.connectivity)
    numbered = number_objects(joined, section.limits)
    _save_tables(work, LOOKUP, joined, {"ids": numbered.ids, "group": joined.group})
    return numbered


def _rows(work: Work, stage: str) -> Iterator[list[Part]]:
    for row in range(work.grid.rows):
        found = (work.store.load_result(stage, work.plan, (row, col)) for col in range(work.grid.cols))
        yield [Part.of_arrays(arrays) for arrays in found]


def _save_tables(work: Work, stage: str, joined: Joined, tables: dict[str, Array]) -> None:
    done = work.store.results(stage, work.plan)
    for tile, start, stop in zip(work.grid, joined.starts, joined.starts[1:], strict=False):
        if tile.index not in done:
            slices = {name: table[start:stop] for name, table in tables.items()}
            work.store.save_result(stage, work.plan, tile.index, slices)


def _facts(work: Work, section: LabelSection, numbered: Numbered) -> dict[str, Any]:
    classes = work.store.read(PROBABILITY).shape[0]
    return {
        "objects": int(numbered.objects.sum()),
        "objects_per_class": _per_class(numbered.objects, classes),
        "area_px_per_class": _per_class(numbered.area_px, classes),
        "objects_removed_by_area": numbered.removed,
        "objects_across_seams": numbered.across,
        "connectivity": section.connectivity,
        "threshold_byte": section.threshold_byte if classes == 1 else None,
        "open_close_px": [list(radii) for radii in section.morphology.discs_px],
        "fill_holes_px": section.fill_holes_px,
    }


def _per_class(column: Array, classes: int) -> list[int]:
    """Numbers of classes 1.. from a column that starts with background and ends with the last class found."""
    return [int(column[number]) if number < len(column) else 0 for number in range(1, classes + 1)]
