"""Connected components of a block-wise image, equal to those of the whole image.

A component of one block is a *piece*. Each block provides the sums of its pieces and its four outermost lines of
pixels. Pieces that touch across a block border are joined by union-find, and the resulting objects are numbered in
raster order of their first pixel, as ``skimage.measure.label`` numbers them. The result depends on pixels only, not on
the numbering of pieces within a block or on the order of blocks.

      block 1   | block 2        a vertical seam joins block 1's right line to block 2's left line, in one row of blocks
      ----------+----------      a horizontal seam joins two rows of blocks over the image's whole width, so that
      block 3   | block 4        diagonal neighbours across a four-block corner are met there, once

Memory: at most 70 bytes a piece and 140 bytes a contact (a distinct pair of pieces that touch across a seam), plus the
columns other than area and first pixel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.geometry import Box

Array = NDArray[Any]

VERTICAL, HORIZONTAL = 0, 1
_LINES = ("top", "bottom", "left", "right")


@dataclass(frozen=True, slots=True)
class RunLengths:
    """Horizontal runs of pixels of one label > 0, in raster order.

    Attributes:
        label: Label of each run (n,).
        y: Row of each run (n,).
        x0: First column of each run (n,).
        x1: Column after the last of each run (n,).
    """

    label: Array
    y: Array
    x0: Array
    x1: Array

    @property
    def length(self) -> Array:
        """Number of pixels of each run (n,)."""
        return self.x1 - self.x0


def find_runs(labels_YX: Array) -> RunLengths:
    """Encode a label image (y, x) as runs; O(pixels). Sums over runs are cheap: an object has few of them."""
    width, flat = labels_YX.shape[1], labels_YX.ravel()
    differs = np.empty(flat.size + 1, np.bool_)
    np.not_equal(flat[1:], flat[:-1], out=differs[1:-1])
    differs[::width] = True  # a row ends a run, and the first and last edge are edges
    edges = np.flatnonzero(differs)
    value = flat[edges[:-1]]
    inside = np.flatnonzero(value)
    y, x0 = np.divmod(edges[inside], width)
    return RunLengths(value[inside], y, x0, x0 + edges[inside + 1] - edges[inside])


def rasterize(runs: RunLengths, values: Array, shape_yx: tuple[int, int]) -> Array:
    """Draw runs into an image; several times faster than indexing a table of values by pixel.

    Args:
        runs: Runs in raster order that do not overlap.
        values: Value of each run (n,); its dtype is that of the image.
        shape_yx: Shape of the image.

    Returns:
        Image (y, x) with the value of each run, and 0 between runs.
    """
    start = runs.y * shape_yx[1] + runs.x0
    edges = np.stack((start, start + runs.length), axis=1).ravel()
    stretches = np.zeros(len(edges) + 1, values.dtype)
    stretches[1::2] = values
    return np.repeat(stretches, np.diff(edges, prepend=0, append=shape_yx[0] * shape_yx[1])).reshape(shape_yx)


def label_pieces(classes_YX: Array, connectivity: int) -> RunLengths:
    """Label the components of equal class of one block.

    The components are those of a graph of runs. That is twice as fast as labelling pixels where objects are many pixels
    wide, and five times as fast where there are several classes.

    Args:
        classes_YX: Class of each pixel, 0 = background.
        connectivity: 4 (shared edges) or 8 (shared corners too).

    Returns:
        Runs of foreground, labelled by piece from 1 (int64).
    """
    runs = find_runs(classes_YX)
    graph = _graph(_neighbouring_runs(runs, classes_YX.shape[1], connectivity), len(runs.label))
    return replace(runs, label=connected_components(graph, directed=False)[1].astype(np.int64) + 1)


def _neighbouring_runs(runs: RunLengths, width: int, connectivity: int) -> Array:
    """Pairs (2, n) of indices of touching runs of equal label in adjacent rows; the upper run is first."""
    row = width + 2  # runs of different rows never touch on this line, not even by a corner
    start, stop = runs.y * row + runs.x0, runs.y * row + runs.x1
    by_corner = connectivity == 8
    lowest = np.searchsorted(stop, start - row, side="left" if by_corner else "right")
    count = np.searchsorted(start, stop - row, side="right" if by_corner else "left") - lowest
    below = np.repeat(np.arange(len(count)), count)
    above = np.arange(len(below)) + np.repeat(lowest - np.cumsum(count) + count, count)
    return np.stack((above, below))[:, runs.label[above] == runs.label[below]]


def _graph(pairs: Array, nodes: int) -> coo_array:
    return coo_array((np.ones(pairs.shape[1], np.int8), (pairs[0], pairs[1])), shape=(nodes, nodes))


@dataclass(frozen=True, slots=True)
class Borders:
    """The four outermost lines of a block: piece number, 0 for none, -c for a pixel of class c that is in no piece."""

    top: Array
    bottom: Array
    left: Array
    right: Array

    @classmethod
    def of(cls, numbers_YX: Array) -> Self:
        """The outermost lines of a block's image of piece numbers (int32)."""
        lines = numbers_YX[0], numbers_YX[-1], numbers_YX[:, 0], numbers_YX[:, -1]
        return cls(*(line.astype(np.int32) for line in lines))

    def after(self, pieces: int) -> Borders:
        """The same lines with ``pieces`` added to each piece number (int64)."""
        lines = (getattr(self, name).astype(np.int64) for name in _LINES)
        return Borders(*(np.where(line > 0, line + pieces, line) for line in lines))


@dataclass(frozen=True, slots=True)
class BlockPart:
    """What joining needs of one block: borders, class of each piece (uint8) and columns of sums of each piece."""

    borders: Borders
    group: Array
    columns: dict[str, Array]

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, Array]) -> Self:
        """The inverse of ``arrays``."""
        borders = Borders(*(arrays[name] for name in _LINES))
        columns = {name: column for name, column in arrays.items() if name not in (*_LINES, "group")}
        return cls(borders, arrays["group"], columns)

    def arrays(self) -> dict[str, Array]:
        """All contents as named arrays, to be stored."""
        return {**{name: getattr(self.borders, name) for name in _LINES}, "group": self.group, **self.columns}


def object_part(pieces: RunLengths, classes_YX: Array, core: Box, width_px: int) -> BlockPart:
    """Area and first pixel of each piece of one block.

    Args:
        pieces: Runs of the block, labelled by piece from 1.
        classes_YX: Class of each pixel of the block.
        core: The block, in pixels of the image.
        width_px: Width of the whole image.

    Returns:
        Borders, classes, and two int64 columns: ``area`` in pixels, and ``first``, the raster index y * width_px + x of
        the first pixel in the whole image.
    """
    count, piece_index = int(pieces.label.max(initial=0)), pieces.label - 1
    area, first, group = np.zeros(count, np.int64), np.zeros(count, np.int64), np.zeros(count, np.uint8)
    np.add.at(area, piece_index, pieces.length)
    index = (core.y0 + pieces.y) * width_px + core.x0 + pieces.x0
    first[piece_index[::-1]] = index[::-1]  # the last written is the first run
    group[piece_index] = classes_YX[pieces.y, pieces.x0]
    borders = Borders.of(rasterize(pieces, pieces.label.astype(np.int32), core.shape))
    return BlockPart(borders, group, {"area": area, "first": first})


@dataclass(frozen=True, slots=True)
class BlockGraph:
    """All pieces of an image in block order, and their contacts across seams.

    Attributes:
        starts: Pieces of block b are ``starts[b]`` to ``starts[b + 1] - 1`` (blocks + 1,).
        group: Class of each piece.
        columns: Sums of each piece by name.
        contacts: Distinct pairs (2, n) that touch across seams: piece numbers from 0, or -1 - c for a pixel of class c
            that is in no piece.
        seam: Kind of the seam of each contact, ``VERTICAL`` or ``HORIZONTAL`` (n,).
        corners: Diagonally opposite pieces (2, n) at four-block corners, whatever the connectivity.
    """

    starts: Array
    group: Array
    columns: dict[str, Array]
    contacts: Array
    seam: Array
    corners: Array


def join(rows: Iterable[Sequence[BlockPart]], connectivity: int) -> BlockGraph:
    """Build the graph of pieces from the parts of all blocks, one row of blocks at a time.

    Args:
        rows: Rows of blocks from the top, each from the left. Two rows of borders are in memory at once.
        connectivity: 4 or 8.

    Returns:
        The pieces of all blocks and their contacts.
    """
    counts, contacts, corners = [0], ([_NO_PAIRS], [_NO_PAIRS]), [_NO_PAIRS]
    groups: list[Array] = []
    columns: dict[str, list[Array]] = {}
    above: list[Borders] = []
    for row in rows:
        here: list[Borders] = []
        for part in row:
            here.append(part.borders.after(counts[-1]))
            counts.append(counts[-1] + len(part.group))
            groups.append(part.group)
            for name, column in part.columns.items():
                columns.setdefault(name, []).append(column)
        contacts[VERTICAL].extend(touching(a.right, b.left, connectivity) for a, b in pairwise(here))
        if above:
            lines = np.concatenate([b.bottom for b in above]), np.concatenate([b.top for b in here])
            contacts[HORIZONTAL].append(touching(*lines, connectivity))
            corners.append(_corner_pairs(*lines, [len(b.top) for b in here]))
        above = here
    found = [np.concatenate(pairs, axis=1) for pairs in contacts]
    return BlockGraph(
        starts=np.array(counts, np.int64),
        group=np.concatenate(groups),
        columns={name: np.concatenate(pieces) for name, pieces in columns.items()},
        contacts=np.concatenate(found, axis=1) - 1,
        seam=np.repeat([VERTICAL, HORIZONTAL], [pairs.shape[1] for pairs in found]),
        corners=np.concatenate(corners, axis=1) - 1,
    )


_NO_PAIRS: Array = np.zeros((2, 0), np.int64)


def touching(line_a: Array, line_b: Array, connectivity: int) -> Array:
    """Distinct pairs (2, n) of neighbours across two facing lines; neither is 0 and at least one is a piece."""
    faces = [(line_a, line_b)]
    if connectivity == 8:
        faces += [(line_a[1:], line_b[:-1]), (line_a[:-1], line_b[1:])]
    pairs = np.concatenate([np.stack(face) for face in faces], axis=1)
    return np.unique(pairs[:, (pairs != 0).all(axis=0) & (pairs > 0).any(axis=0)], axis=1)


def _corner_pairs(bottom: Array, top: Array, widths: Sequence[int]) -> Array:
    after = np.cumsum(widths)[:-1]
    diagonals = [np.stack((bottom[after - 1], top[after])), np.stack((bottom[after], top[after - 1]))]
    pairs = np.concatenate(diagonals, axis=1)
    return pairs[:, (pairs > 0).all(axis=0)]


@dataclass(frozen=True, slots=True)
class Components:
    """Union-find result: pieces that touch others of their class, and the root of each.

    The root of an object is its piece of the lowest number. Pieces without contacts are their own root and are not
    listed.

    Attributes:
        piece: Piece numbers (n,).
        root: Root of each of these pieces (n,).
    """

    piece: Array
    root: Array

    @property
    def other(self) -> Components:
        """The same without the roots themselves."""
        joined = self.piece != self.root
        return Components(self.piece[joined], self.root[joined])

    def merge(self, combine: np.ufunc, column: Array) -> Array:
        """Reduce a column over the pieces of each object.

        Args:
            combine: Reduction, such as ``np.add`` or ``np.minimum``.
            column: One value a piece.

        Returns:
            A copy of ``column`` in which each root holds the reduction over its object; other entries are unchanged.
        """
        merged, other = column.copy(), self.other
        combine.at(merged, other.root, column[other.piece])
        return merged


def union_find(joined: BlockGraph) -> Components:
    """Join pieces of equal class that are in contact, with ``scipy.sparse.csgraph.connected_components``."""
    pairs = joined.contacts[:, same_class_edges(joined)]
    nodes, ends = np.unique(pairs, return_inverse=True)
    count, component = connected_components(_graph(ends.reshape(2, -1), len(nodes)), directed=False)
    lowest = np.full(count, np.iinfo(np.int64).max)
    np.minimum.at(lowest, component, nodes)
    return Components(nodes, lowest[component])


def same_class_edges(joined: BlockGraph) -> Array:
    """Mask (n,) of the contacts that are between two pieces of one class."""
    pieces = (joined.contacts >= 0).all(axis=0)
    first, second = joined.group[np.where(pieces, joined.contacts, 0)]
    return np.asarray(pieces & (first == second))
