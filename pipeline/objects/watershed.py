"""Split touching objects by a watershed of their heights: the distance to their edge, or a map of the network.

Each object is processed in its own bounding box without its surroundings, which lie lower than any of its pixels.
Markers are the *extended maxima* (h-maxima) of the height in integer units (1/256 pixel of distance, or one grey level
of a map): a dent must lie more than ``depth`` below both maxima to split an object. Equal heights are exactly equal, so
the result does not depend on the object's position or on other objects.

Objects of similar width are arranged below each other on a *sheet*, separated by a line of background, so that one call
of scipy or scikit-image handles many. Only objects with several maxima of any height are reconstructed, as
reconstruction takes ten times as long as all other steps. The watershed itself runs on one object a call, because the
basin of a pixel that is equally near to two depends on all pixels of the input.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label
from skimage.morphology import local_maxima, reconstruction
from skimage.segmentation import watershed

from pipeline.objects.components import RunLengths, find_runs, rasterize
from pipeline.objects.moments import lowest
from unet_core.spec import MapName

Array = NDArray[Any]

PIXEL, WHOLE = 256, 255
"""Units of height: of one pixel of distance, and of the whole range of a map."""

_SHEET_PX = 2**16  # larger sheets do not fit into the processor's cache


@dataclass(frozen=True, slots=True)
class Splitting:
    """Parameters of splitting.

    Attributes:
        dent: Depth of the dent between two maxima that splits an object: pixels of distance, or 0..1 of a map.
        largest_px: Longest side of the box of an object that is split, in pixels.
        connectivity: 4 or 8.
        source: The map whose values are heights; None for the distance to the object's edge.
    """

    dent: float
    largest_px: int
    connectivity: int
    source: MapName | None = None

    @property
    def depth(self) -> int:
        """Depth in units of height, at least 1."""
        return max(1, round(self.dent * (PIXEL if self.source is None else WHOLE)))

    @property
    def hops(self) -> int:
        """Connectivity as scikit-image counts it, 1 or 2."""
        return 1 if self.connectivity == 4 else 2


@dataclass(frozen=True, slots=True)
class SplitParts:
    """Parts of the split objects: ``runs`` labelled by part from 0, and ``owner``, the object of each part."""

    runs: RunLengths
    owner: Array


def split_objects(runs: RunLengths, splitting: Splitting, values: Array | None = None) -> SplitParts:
    """Split objects at the dents between their extended maxima.

    Args:
        runs: Runs labelled by object from 0, in any order.
        splitting: Parameters.
        values: Map value of each pixel of the runs, one run after the other (uint8); None for the distance.

    Returns:
        The parts of all objects that were split. Objects with one maximum are not included.
    """
    boxes = _Boxes.of(runs)
    every = _Relief.of(runs, values)
    several = np.concatenate([_NO_ROWS, *(_with_several_maxima(sheet, splitting) for sheet in _sheets(every, boxes))])
    candidates = every.select(np.isin(runs.label, several))
    found = [_NO_RUNS]
    owners: list[int] = []
    for sheet in _sheets(candidates, boxes):
        for owner, basins in _split(sheet, boxes, splitting):
            labels, part_index = np.unique(basins.label, return_inverse=True)
            dy, dx = boxes.y0[owner] - 1, boxes.x0[owner] - 1
            found.append(RunLengths(part_index + len(owners), basins.y + dy, basins.x0 + dx, basins.x1 + dx))
            owners += [owner] * len(labels)
    columns = (np.concatenate([getattr(one, name) for one in found]) for name in RunLengths.__slots__)
    return SplitParts(RunLengths(*columns), np.array(owners, np.int64))


_NO_ROWS: Array = np.zeros(0, np.int64)
_NO_RUNS = RunLengths(_NO_ROWS, _NO_ROWS, _NO_ROWS, _NO_ROWS)


@dataclass(frozen=True, slots=True)
class _Relief:
    """Runs, and where their pixels begin in ``values`` (None: heights are distances)."""

    runs: RunLengths
    begin: Array
    values: Array | None

    @classmethod
    def of(cls, runs: RunLengths, values: Array | None) -> _Relief:
        return cls(runs, np.cumsum(runs.length) - runs.length, values)

    def select(self, chosen: Array) -> _Relief:
        columns = (getattr(self.runs, name)[chosen] for name in RunLengths.__slots__)
        return _Relief(RunLengths(*columns), self.begin[chosen], self.values)

    def draw(self, begin: Array, shape_yx: tuple[int, int]) -> Array | None:
        """Values + 1 in an image in which the runs begin at these flat indices, 0 elsewhere (int32)."""
        if self.values is None:
            return None
        drawn, length = np.zeros(shape_yx[0] * shape_yx[1], np.int32), self.runs.length
        place = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
        drawn[np.repeat(begin, length) + place] = self.values[np.repeat(self.begin, length) + place] + np.int32(1)
        return drawn.reshape(shape_yx)


@dataclass(frozen=True, slots=True)
class _Boxes:
    y0: Array
    x0: Array
    height: Array
    width: Array

    @classmethod
    def of(cls, runs: RunLengths) -> _Boxes:
        """Boxes by object; entries of objects without runs are undefined and never read."""
        y0, x0 = lowest(runs.label, runs.y), lowest(runs.label, runs.x0)
        y1, x1 = -lowest(runs.label, -runs.y - 1), -lowest(runs.label, -runs.x1)
        return cls(y0, x0, y1 - y0, x1 - x0)


@dataclass(frozen=True, slots=True)
class _Sheet:
    """Objects below each other: ``pixels`` hold the object's number + 1, ``top`` is the first row of each object.

    ``drawn`` holds the heights of a map.
    """

    pixels: Array
    top: Array
    drawn: Array | None

    def height(self) -> Array:
        """Heights (int32): at least 1 in objects, 0 elsewhere."""
        if self.drawn is not None:
            return self.drawn
        return np.asarray(np.rint(ndimage.distance_transform_edt(self.pixels) * PIXEL), np.int32)


def _sheets(relief: _Relief, boxes: _Boxes) -> Iterator[_Sheet]:
    """Sheets of about ``_SHEET_PX`` pixels, or of one object that is larger."""
    runs = relief.runs
    objects = np.unique(runs.label)
    objects = objects[np.argsort(boxes.width[objects], kind="stable")]
    height, width = boxes.height[objects] + 1, boxes.width[objects] + 2
    sheet, top = np.zeros((2, len(boxes.y0)), np.int64)
    sheet[objects] = np.cumsum(height * width) // _SHEET_PX
    order = np.argsort(sheet[runs.label], kind="stable")
    for number in np.unique(sheet[objects]):
        here = sheet[objects] == number
        top[objects[here]] = 1 + np.cumsum(height[here]) - height[here]
        shape = 1 + int(height[here].sum()), int(width[here].max())
        first, stop = np.searchsorted(sheet[runs.label], (number, number + 1), sorter=order)
        yield _arrange(relief.select(order[first:stop]), boxes, top, shape)


def _arrange(relief: _Relief, boxes: _Boxes, top: Array, shape: tuple[int, int]) -> _Sheet:
    runs = relief.runs
    y, shift = runs.y - boxes.y0[runs.label] + top[runs.label], 1 - boxes.x0[runs.label]
    moved = RunLengths(runs.label + 1, y, runs.x0 + shift, runs.x1 + shift)
    raster = np.lexsort((moved.x0, y))
    ordered = _Relief(moved, relief.begin, relief.values).select(raster)
    pixels = rasterize(ordered.runs, ordered.runs.label.astype(np.int32), shape)
    return _Sheet(pixels, top, ordered.draw(ordered.runs.y * shape[1] + ordered.runs.x0, shape))


def _with_several_maxima(sheet: _Sheet, splitting: Splitting) -> Array:
    """Objects with more than one local maximum of the height."""
    maxima = label(local_maxima(sheet.height(), connectivity=splitting.hops), connectivity=splitting.hops)
    owner = _owners(maxima, sheet.pixels)
    objects, count = np.unique(owner, return_counts=True)
    return objects[count > 1]


def _owners(numbers: Array, pixels: Array) -> Array:
    """Object (from 0) under each of the areas numbered from 1 of a sheet."""
    runs = find_runs(numbers)
    owner = np.zeros(int(runs.label.max(initial=0)), np.int64)
    owner[runs.label - 1] = pixels[runs.y, runs.x0] - 1
    return owner


def _split(sheet: _Sheet, boxes: _Boxes, splitting: Splitting) -> Iterator[tuple[int, RunLengths]]:
    """Each object with several extended maxima and the runs of its basins, in its box padded by one pixel."""
    mask, height, depth = sheet.pixels > 0, sheet.height(), splitting.depth
    footprint = ndimage.generate_binary_structure(2, splitting.hops)
    # Pixels outside an object lie below its lowest pixel, so an object flatter than the depth has a maximum too.
    rounded = reconstruction(height - depth, np.where(mask, height, -depth), footprint=footprint)
    maxima = label(local_maxima(rounded, connectivity=splitting.hops) & mask, connectivity=splitting.hops)
    objects, count = np.unique(_owners(maxima, sheet.pixels), return_counts=True)
    for number in objects[count > 1].tolist():
        y0 = int(sheet.top[number]) - 1
        box = np.s_[y0 : y0 + int(boxes.height[number]) + 2, : int(boxes.width[number]) + 2]
        yield number, find_runs(watershed(-height[box], maxima[box], connectivity=splitting.hops, mask=mask[box]))
