"""Stream of the polygons of all objects of a slide, block after block.

The object table tells where an object ends, so labels are read once. An object is kept in memory from its first block
to the block that holds the lower right corner of its box. Only objects on seams are kept, each for at most one row of
blocks more than its height.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from shapely import MultiPolygon, Polygon

from pipeline.execution.blocks import StageContext
from pipeline.objects.polygons import join, trace
from pipeline.objects.table_reader import read_objects
from pipeline.stages.export import ExportInputs, grouped, ids_on_seams, labels_of
from pipeline.storage.layout import TABLE


def object_shapes(work: StageContext, section: ExportInputs) -> Iterator[dict[int, Polygon | MultiPolygon]]:
    """Yield, after each block, the shapes that are complete by then.

    Args:
        work: The slide.
        section: Labels, scale and classes.

    Yields:
        Shapes by id (ascending), in pixel corners of the image.

    Raises:
        StoreError: The labels are of another plan.
        DamagedError: The labels or the table are damaged.
    """
    labels = labels_of(work, section)
    waiting: dict[int, list[Polygon]] = {}
    ends: dict[int, int] = {}
    for number, tile in enumerate(work.grid):
        core = tile.core
        pixels = labels.read(core)
        parts = trace(pixels, (core.y0, core.x0))
        shared = np.isin(parts.ids, ids_on_seams(pixels, core, work.shape_yx))
        inside = grouped(parts.ids[~shared], parts.polygons()[~shared])
        whole: dict[int, Polygon | MultiPolygon] = {
            identity: join(pieces, across_blocks=False) for identity, pieces in inside.items()
        }
        pieces = grouped(parts.ids[shared], parts.polygons()[shared])
        new = sorted(set(pieces) - set(waiting))
        ends.update(zip(new, _last_blocks(work, section, new), strict=True))
        for identity, found in pieces.items():
            waiting.setdefault(identity, []).extend(found)
        for identity in sorted(identity for identity, last in ends.items() if last <= number):
            del ends[identity]
            whole[identity] = join(waiting.pop(identity), across_blocks=True)
        yield dict(sorted(whole.items()))


def _last_blocks(work: StageContext, section: ExportInputs, ids: Sequence[int]) -> list[int]:
    """Index, in raster order, of the block that holds the lower right corner of each object's box."""
    if not ids:
        return []
    names = ("bbox_y1_px", "bbox_x1_px")
    table = read_objects(work.root / TABLE, names, section.classes.names, np.array(ids))
    row, col = (
        _block_before(table[name] / scale, work.block_px)
        for name, scale in zip(names, section.level0_from_image, strict=True)
    )
    return list((row * work.grid.cols + col).tolist())


def _block_before(edges_px: NDArray[np.float64], block_px: int) -> NDArray[np.int64]:
    """Index of the block that holds the last pixel before an edge, which is an integer up to rounding."""
    return (np.rint(edges_px).astype(np.int64) - 1) // block_px
