"""Pyramid: write the coarser levels of every array, and the groups that make them one OME-Zarr.

A level is written like any other array: one block is one shard, and existing shards are not made again. The plan hash
of a level derives from that of its full-resolution array, not from the stage's. So when only the objects change, the
levels of image and probability are found complete and kept.

      level l     +----+----+                          level l+1   +----+
      (parent)    | 00 | 01 |  four whole shards,                  | 00 |   one whole shard
                  +----+----+  one in memory at a time      ->     +----+
                  | 10 | 11 |
                  +----+----+
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DamagedError, StoreError
from pipeline.execution.blocks import Counts, MapBlocks, StageContext, StageReport, run_blocks
from pipeline.geometry import Box, TileGrid
from pipeline.image_info import ClassInfo, ImageInfo
from pipeline.storage.atomic_files import digest, fsync_dir, remove, write_json
from pipeline.storage.layout import IMAGE, MAPS, OBJECTS, PROBABILITY
from pipeline.storage.slide_store import ArraySpec, Index, SlideStore, StoredArray

STAGE = "pyramid"
VERSION = 1
"""Version of the code that makes a level; raised by one when its pixels would change."""

COARSEST_PX = 512
"""Levels are added until both sides are at most this."""


@dataclass(frozen=True, slots=True)
class PyramidInputs:
    """What the pyramid is made of.

    Attributes:
        image: Scale and channels of the image.
        classes: Names and colours of the classes.
        arrays: The plan hash of each full-resolution array: IMAGE (required), PROBABILITY, MAPS and OBJECTS (where
            they exist).
    """

    image: ImageInfo
    classes: ClassInfo
    arrays: Mapping[str, str]

    def __post_init__(self) -> None:
        known = {IMAGE, PROBABILITY, *MAPS.values(), OBJECTS}
        if not self.image.mpp > 0 or IMAGE not in self.arrays or not set(self.arrays) <= known:
            raise ValueError(f"no pyramid of {sorted(self.arrays)} at {self.image.mpp} um per pixel")


@dataclass(frozen=True, slots=True)
class PyramidLevel:
    """One array of a pyramid, the array from which it is made, and the plan hashes of both."""

    path: str
    plan: str
    parent: str
    parent_plan: str


# ---- pixels ---------------------------------------------------------------------------------------------------------


def level_shapes(shape_yx: tuple[int, int]) -> list[tuple[int, int]]:
    """(y, x) of every level, full resolution first; each is half of the previous one, rounded up."""
    shapes = [shape_yx]
    while max(shapes[-1]) > COARSEST_PX:
        shapes.append((-(-shapes[-1][0] // 2), -(-shapes[-1][1] // 2)))
    return shapes


def halve_mean(pixels: NDArray[Any]) -> NDArray[Any]:
    """Mean of each 2x2 square of ((c,) y, x) unsigned integers, rounded half up; at an odd edge, of existing pixels.

    Integer arithmetic gives the same bytes on every machine. Repeating an odd edge weighs existing pixels equally:
    (2a + 2b + 2) // 4 equals (a + b + 1) // 2.
    """
    if pixels.dtype not in (np.uint8, np.uint16):
        raise TypeError(f"expected uint8 or uint16 pixels to average, found {pixels.dtype}")
    odd = [(0, 0)] * (pixels.ndim - 2) + [(0, side % 2) for side in pixels.shape[-2:]]
    even = np.pad(pixels, odd, mode="edge") if any(after for _, after in odd) else pixels
    total = even[..., 0::2, 0::2].astype(np.uint16 if pixels.dtype == np.uint8 else np.uint32)
    for dy, dx in ((0, 1), (1, 0), (1, 1)):
        np.add(total, even[..., dy::2, dx::2], out=total)
    mean: NDArray[Any] = np.right_shift(np.add(total, 2, out=total), 2).astype(pixels.dtype)
    return mean


def halve_nearest(labels: NDArray[Any]) -> NDArray[Any]:
    """Every second pixel of every second row, so that ids are never mixed."""
    return np.ascontiguousarray(labels[..., ::2, ::2])


def pyramid_block(context: StageContext, level: PyramidLevel, index: Index) -> Counts:
    """Make the block at (row, col) of ``level`` from the up to four parent shards below it, and write its shard.

    ``context`` has the level's shape.

    Raises:
        StoreError: The parent has another plan.
        DamagedError: A parent shard is missing.
    """
    parent = _parent(context.store, level)
    halve = halve_nearest if level.path.startswith("labels/") else halve_mean
    core = context.core(index)
    made = np.empty((*parent.shape[:-2], *core.shape), parent.dtype)
    for row, col in ((0, 0), (0, 1), (1, 0), (1, 1)):
        quarter = _quarter(parent, context.block_px, (2 * index[0] + row, 2 * index[1] + col))
        if quarter is not None:
            target = Box(*(-(-edge // 2) for edge in (quarter.y0, quarter.x0, quarter.y1, quarter.x1)))
            made[(..., *target.shift(-core.y0, -core.x0).slices)] = halve(parent.read(quarter))
    context.store.write_block(level.path, level.plan, core, made)
    return {"blocks": 1}


def _parent(store: SlideStore, level: PyramidLevel) -> StoredArray:
    parent = store.read(level.parent)
    if parent.plan != level.parent_plan:
        raise StoreError(
            f"{parent.location}: expected an array of plan {level.parent_plan[:8]}, found {parent.plan[:8]}. Another "
            f"run changed the plan meanwhile; run segment again"
        )
    return parent


def _quarter(parent: StoredArray, block_px: int, index: Index) -> Box | None:
    """Pixels of the parent's shard at (row, col); None beyond its edge."""
    shard = Box(index[0], index[1], index[0] + 1, index[1] + 1).scale(block_px)
    height, width = parent.shape[-2:]
    return shard.intersect(Box(0, 0, height, width))


# ---- the stage ------------------------------------------------------------------------------------------------------


def pyramid_slide(context: StageContext, inputs: PyramidInputs, map_blocks: MapBlocks) -> StageReport:
    """Make every coarser level of every array, write the OME-Zarr metadata, remove unnamed levels, and stamp."""
    store = context.store
    report = StageReport(STAGE)
    for path, plan in inputs.arrays.items():
        for level, shape_yx in _levels(path, plan, context):
            _add(report, _fill(replace(context, shape_yx=shape_yx, plan_hash=level.plan), level, map_blocks))
    count = len(level_shapes(context.shape_yx))
    _remove_unnamed(store, inputs, count)
    for group, attributes in _groups(store, inputs, count):
        write_json(group / "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": attributes})
        fsync_dir(group)
    report.facts = {"levels": count, "arrays": sorted(inputs.arrays)}
    store.stamp(STAGE, context.plan_hash, report.facts)
    return report


def _levels(path: str, plan: str, context: StageContext) -> Iterator[tuple[PyramidLevel, tuple[int, int]]]:
    """The levels above ``path``, finest first, with shapes; raises StoreError when ``path`` has another size."""
    location = context.store.zarr / path
    if location.exists():  # else it was dropped when its levels were complete
        found = context.store.read(path).shape[-2:]
        if found != context.shape_yx:
            raise StoreError(f"{location}: expected {context.shape_yx} px like the image, found {found}")
    parent, parent_plan = path, plan
    for number, shape_yx in enumerate(level_shapes(context.shape_yx)[1:], start=1):
        level_plan = _level_plan(plan, number, context.block_px)
        level = PyramidLevel(_level_path(path, number), level_plan, parent, parent_plan)
        yield level, shape_yx
        parent, parent_plan = level.path, level.plan


def _level_plan(plan: str, number: int, block_px: int) -> str:
    return digest({"of": plan, "level": number, "block": block_px, "version": VERSION})


def lacks_levels(store: SlideStore, path: str, plan: str) -> bool:
    """Whether the level above ``path`` is missing or incomplete, so that ``path`` is needed to make it."""
    above = _level_path(path, 1)
    try:
        level = store.read(above)
        if level.plan != _level_plan(plan, 1, level.block_px):
            return True
        whole = {tile.index for tile in TileGrid(Box(0, 0, *level.shape[-2:]), level.block_px)}
        return store.done(above, level.plan) != whole
    except DamagedError:
        return True


def _level_path(path: str, number: int) -> str:
    return f"{path[:-1]}{number}"


def _fill(context: StageContext, level: PyramidLevel, map_blocks: MapBlocks) -> StageReport:
    """Create one level, compute its missing blocks and commit it."""
    if not context.store.holds(level.path, level.plan):  # otherwise its parent may have been dropped
        parent = _parent(context.store, level)
        shape = (*parent.shape[:-2], *context.shape_yx)
        spec = ArraySpec(level.path, shape, str(parent.dtype), context.block_px, level.plan)
        is_image = "/" not in level.path  # its levels are compressed like the image itself
        context.store.create(replace(spec, codec="lz4") if is_image else spec)
    done = context.store.done(level.path, level.plan)
    report = run_blocks(STAGE, context, done, partial(pyramid_block, context, level), map_blocks)
    context.store.commit(level.path, level.plan)
    return report


def _add(total: StageReport, part: StageReport) -> None:
    total.blocks += part.blocks
    total.computed += part.computed
    for name, number in part.counts.items():
        total.counts[name] = total.counts.get(name, 0) + number


def _remove_unnamed(store: SlideStore, inputs: PyramidInputs, count: int) -> None:
    """Remove levels of an earlier, larger image, and groups of arrays that are no longer made."""
    for path in inputs.arrays:
        for entry in sorted((store.zarr / path).parent.iterdir()):
            if entry.name.isdigit() and int(entry.name) >= count:
                remove(entry)
    gone = {path.removesuffix("/0") for path in MAPS.values() if path not in inputs.arrays}
    gone |= {"probability", "labels", "maps"} - {path.split("/")[0] for path in inputs.arrays}
    for name in sorted(gone):
        group = store.zarr / name
        if group.exists():
            remove(group)


def _groups(store: SlideStore, inputs: PyramidInputs, count: int) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Folder and attributes of each group, the outermost last, because it makes the others visible."""
    from pipeline.storage import ome_metadata as ome  # takes 0.2 s, and readers of levels do not need it

    if PROBABILITY in inputs.arrays:
        classes, mpp = inputs.classes, inputs.image.mpp
        displayed = ome.omero(classes.names, classes.colours, [(0.0, 255.0)] * len(classes.names), 255)
        yield store.zarr / "probability", {"ome": ome.image_attributes("probability", mpp, count, displayed)}
    maps = [name for name, path in MAPS.items() if path in inputs.arrays]
    for name in maps:
        yield store.zarr / "maps" / name, {"ome": ome.map_attributes(name, inputs.image.mpp, count)}
    if maps:
        yield store.zarr / "maps", {}
    if OBJECTS in inputs.arrays:
        yield store.zarr / "labels" / "objects", {"ome": ome.objects_attributes(inputs.image.mpp, count)}
        yield store.zarr / "labels", {"ome": ome.labels_attributes()}
    displayed = ome.image_omero(store.read(_level_path(IMAGE, count - 1)), inputs.image.channels)
    yield store.zarr, {"ome": ome.image_attributes("image", inputs.image.mpp, count, displayed)}
