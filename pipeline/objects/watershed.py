"""Touching objects parted: distance to the edge, its tops, and the watershed between them. Arithmetic, without files.

Each object is looked at in its own bounding box, with nothing around it. The one decision made here: tops are the
*extended maxima* (h-maxima) of the distance in whole 1/256 pixels, so a dent must go ``depth`` below both tops to part
an object, equal heights are equal exactly, and nothing depends on where the object lies or on what is looked at beside.

Objects of similar width are laid one below the other on a *sheet*, a line of background between them, so that one call
of scipy or scikit-image does for many; none can reach another there. Only those with several tops of any height are
looked at twice, since reconstruction takes ten times as long as all else. The watershed itself sees one object a call:
which of two basins gets a pixel as near to both hangs on all pixels it is given.
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

Array = NDArray[Any]

LARGEST_PX = 1024
"""No object with a longer box is split, however large a user allows: a sheet then takes some 100 MB."""

_UNITS = 256
_SHEET_PX = 2**16  # larger ones leave the processor's cache


@dataclass(frozen=True, slots=True)
class Splitting:
    """How objects are split: depth of a dent between two tops and longest side of a box, in pixels."""

    depth_px: float
    largest_px: int
    connectivity: int

    @property
    def depth(self) -> int:
        """In 1/256 pixels, at least one."""
        return max(1, round(self.depth_px * _UNITS))

    @property
    def hops(self) -> int:
        """As scikit-image counts connectivity."""
        return 1 if self.connectivity == 4 else 2


@dataclass(frozen=True, slots=True)
class SplitParts:
    """Parts of the objects that were split: ``runs`` labelled by part from 0, and the ``owner``, object, of each."""

    runs: RunLengths
    owner: Array


def split_objects(runs: RunLengths, splitting: Splitting) -> SplitParts:
    """Part objects, given as runs labelled by object from 0, in any order. Those of one top are not in the answer."""
    boxes = _Boxes.of(runs)
    several = np.concatenate([_NO_ROWS, *(_several_tops(sheet, splitting) for sheet in _sheets(runs, boxes))])
    candidates = _where(runs, np.isin(runs.label, several))
    found = [_NO_RUNS]
    owners: list[int] = []
    for sheet in _sheets(candidates, boxes):
        for owner, basins in _parted(sheet, boxes, splitting):
            labels, part_index = np.unique(basins.label, return_inverse=True)
            dy, dx = boxes.y0[owner] - 1, boxes.x0[owner] - 1
            found.append(RunLengths(part_index + len(owners), basins.y + dy, basins.x0 + dx, basins.x1 + dx))
            owners += [owner] * len(labels)
    columns = (np.concatenate([getattr(one, name) for one in found]) for name in RunLengths.__slots__)
    return SplitParts(RunLengths(*columns), np.array(owners, np.int64))


_NO_ROWS: Array = np.zeros(0, np.int64)
_NO_RUNS = RunLengths(_NO_ROWS, _NO_ROWS, _NO_ROWS, _NO_ROWS)


def _where(runs: RunLengths, chosen: Array) -> RunLengths:
    return RunLengths(runs.label[chosen], runs.y[chosen], runs.x0[chosen], runs.x1[chosen])


@dataclass(frozen=True, slots=True)
class _Boxes:
    y0: Array
    x0: Array
    height: Array
    width: Array

    @classmethod
    def of(cls, runs: RunLengths) -> _Boxes:
        """Of objects without runs: nonsense, never asked for."""
        y0, x0 = lowest(runs.label, runs.y), lowest(runs.label, runs.x0)
        y1, x1 = -lowest(runs.label, -runs.y - 1), -lowest(runs.label, -runs.x1)
        return cls(y0, x0, y1 - y0, x1 - x0)


@dataclass(frozen=True, slots=True)
class _Sheet:
    """Objects one below the other: ``pixels`` hold an object's number + 1, ``top`` is the row an object starts at."""

    pixels: Array
    top: Array

    def distance(self) -> Array:
        """To the nearest pixel that is not the object's, in 1/256 pixels (int32)."""
        return np.asarray(np.rint(ndimage.distance_transform_edt(self.pixels) * _UNITS), np.int32)


def _sheets(runs: RunLengths, boxes: _Boxes) -> Iterator[_Sheet]:
    """Sheets of about ``_SHEET_PX``, or of one object that is larger."""
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
        yield _laid_out(_where(runs, order[first:stop]), boxes, top, shape)


def _laid_out(runs: RunLengths, boxes: _Boxes, top: Array, shape: tuple[int, int]) -> _Sheet:
    y, shift = runs.y - boxes.y0[runs.label] + top[runs.label], 1 - boxes.x0[runs.label]
    raster = np.lexsort((runs.x0 + shift, y))
    moved = _where(RunLengths(runs.label + 1, y, runs.x0 + shift, runs.x1 + shift), raster)
    return _Sheet(rasterize(moved, moved.label.astype(np.int32), shape), top)


def _several_tops(sheet: _Sheet, splitting: Splitting) -> Array:
    """The objects with more than one local maximum of the distance."""
    tops = label(local_maxima(sheet.distance(), connectivity=splitting.hops), connectivity=splitting.hops)
    owner = _owners(tops, sheet.pixels)
    objects, count = np.unique(owner, return_counts=True)
    return objects[count > 1]


def _owners(numbers: Array, pixels: Array) -> Array:
    """The object (from 0) under each of the areas numbered 1.. of a sheet."""
    runs = find_runs(numbers)
    owner = np.zeros(int(runs.label.max(initial=0)), np.int64)
    owner[runs.label - 1] = pixels[runs.y, runs.x0] - 1
    return owner


def _parted(sheet: _Sheet, boxes: _Boxes, splitting: Splitting) -> Iterator[tuple[int, RunLengths]]:
    """Each object with several tops and the runs of its basins, in pixels of its box with one more pixel around."""
    mask, distance, depth = sheet.pixels > 0, sheet.distance(), splitting.depth
    footprint = ndimage.generate_binary_structure(2, splitting.hops)
    # Outside an object all is lower than its lowest pixel, so that even an object flatter than the depth has its top.
    rounded = reconstruction(distance - depth, np.where(mask, distance, -depth), footprint=footprint)
    tops = label(local_maxima(rounded, connectivity=splitting.hops) & mask, connectivity=splitting.hops)
    objects, count = np.unique(_owners(tops, sheet.pixels), return_counts=True)
    for one in objects[count > 1].tolist():
        y0 = int(sheet.top[one]) - 1
        box = np.s_[y0 : y0 + int(boxes.height[one]) + 2, : int(boxes.width[one]) + 2]
        yield one, find_runs(watershed(-distance[box], tops[box], connectivity=splitting.hops, mask=mask[box]))
