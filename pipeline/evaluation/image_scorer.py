"""Score one method on one annotated image, block by block.

An image is scored as ``segment`` would deliver it: probabilities rounded to bytes, the threshold or the largest class,
8-connected components of the whole image, small ones removed. The result does not depend on blocks. Of an image with
several blocks no pixels are kept in memory: predicted classes are in a scratch file of one byte a pixel, objects and
outlines are tables.

    answer --first pass--> classes (scratch), calibration, pieces --join--> objects
           --second pass--> confusion, overlaps of objects with true ones          --third pass--> outlines

Only membranes need the whole image, for thinning. Pixels whose class is unknown (``IGNORED``) do not count: objects are
found in the whole image, and their unknown pixels are removed from both predicted and true objects.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import Box, TileGrid
from pipeline.objects.components import BlockPart, join, label_pieces, object_part, rasterize
from pipeline.objects.relabel import Limits, MergedObjects, number_objects
from unet_core.class_map import IGNORED, class_map
from unet_core.data.sampler import AnnotatedImage
from unet_core.metrics.calibration import calibration_sums
from unet_core.metrics.overlap import Overlaps, confusion, object_sums, pixel_sums
from unet_core.metrics.rand_info import region_sums
from unet_core.metrics.score_table import CALIBRATION, OBJECTS, PIXELS, ROOMS, ImageSums
from unet_core.metrics.surface_distance import Distances, outline

Array = NDArray[Any]
ProbabilityReader = Callable[[Box], Array]
"""Reads probabilities (k, h, w) as bytes of any block of an image."""

BLOCK_PX = 2048
CONNECTIVITY = 8


@dataclass(frozen=True, slots=True)
class ScoringConfig:
    """Conversion of bytes to objects.

    Attributes:
        class_names: Foreground classes.
        threshold: Threshold of a single class.
        least_px: Smallest area of an object in pixels.
        graded: Whether bytes are probabilities, so that calibration is defined.
    """

    class_names: tuple[str, ...]
    threshold: float
    least_px: int
    graded: bool = True

    @property
    def numbers(self) -> range:
        """Numbers of the foreground classes."""
        return range(1, len(self.class_names) + 1)

    def is_membrane(self, number: int) -> bool:
        """Whether a class is called membrane; it is scored by the areas it encloses instead of its components."""
        return self.class_names[number - 1].lower() in ("membrane", "membranes")


@dataclass(frozen=True, slots=True)
class ImageScores:
    """Sums of one image: pixels of each true class (row) by predicted class (column), and sums for each class."""

    confusion: Array
    classes: tuple[ImageSums, ...]


@dataclass(slots=True)
class ImageScorer:
    """Scoring of one image.

    Attributes:
        answer: Reads predicted probabilities.
        case: The annotated image.
        rules: Conversion of bytes to objects.
        block_px: Side of a block.
        found_YX: Predicted class of each pixel once ``run`` has returned, small objects removed.
        calibration: Calibration sums of each class.
    """

    answer: ProbabilityReader
    case: AnnotatedImage
    rules: ScoringConfig
    block_px: int = BLOCK_PX
    found_YX: Array = field(init=False)
    calibration: list[Array] = field(init=False)

    def __post_init__(self) -> None:
        self.found_YX = _scratch(self.shape, in_memory=len(self.grid) == 1)
        self.calibration = [np.zeros(30) for _ in self.rules.numbers]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.case.labels_YX.shape
        return height, width

    @property
    def grid(self) -> TileGrid:
        """The blocks."""
        return TileGrid(Box.of_shape(self.shape), self.block_px)

    def run(self) -> ImageScores:
        """Score the image."""
        joined = join(self._pieces(), CONNECTIVITY)
        whole = MergedObjects.of(joined)
        ids = number_objects(whole, Limits(self.rules.least_px).hold(whole.columns["area"])).ids
        pixels, overlaps = self._compared([ids[start:stop] for start, stop in _pairs(joined.starts)])
        return ImageScores(pixels, tuple(self._class_sums(number, pixels, overlaps) for number in self.rules.numbers))

    def _pieces(self) -> Iterator[Sequence[BlockPart]]:
        """Predict each block, store its classes, and yield the pieces of each row of blocks."""
        grid = self.grid
        for row in range(grid.rows):
            yield [self._piece(grid.tile(row, col).core) for col in range(grid.cols)]

    def _piece(self, core: Box) -> BlockPart:
        probability_KYX, true_YX = self.answer(core), self._true(core)
        if self.rules.graded:
            for number, plane_YX in enumerate(probability_KYX, start=1):
                known = true_YX != IGNORED
                self.calibration[number - 1] += calibration_sums(plane_YX[known], true_YX[known] == number)
        classes_YX = class_map(probability_KYX, self.rules.threshold)
        self.found_YX[core.slices] = classes_YX
        return object_part(label_pieces(classes_YX, CONNECTIVITY), classes_YX, core, self.shape[1])

    def _compared(self, ids_of_block: Sequence[Array]) -> tuple[Array, dict[int, Overlaps]]:
        """Remove small objects, then count pixels by class and overlaps of objects of one class."""
        count = len(self.rules.class_names) + 1
        pixels = np.zeros((count, count), np.int64)
        parts: dict[int, list[Overlaps]] = {number: [] for number in self._objects()}
        for tile, ids in zip(self.grid, ids_of_block, strict=True):
            core = tile.core
            pieces = label_pieces(np.asarray(self.found_YX[core.slices]), CONNECTIVITY)
            found_ids_YX = rasterize(pieces, ids[pieces.label - 1], core.shape)
            true_YX, labels_YX = self._true(core), np.asarray(self.case.labels_YX[core.slices])
            known = true_YX != IGNORED
            found_YX = np.where((found_ids_YX > 0) & known, self.found_YX[core.slices], 0)
            self.found_YX[core.slices] = found_YX
            pixels += confusion(found_YX[known], true_YX[known], count)
            for number, seen in parts.items():
                mine = np.where(found_YX == number, found_ids_YX, 0), np.where(true_YX == number, labels_YX, 0)
                seen.append(Overlaps.of(*mine))
        return pixels, {number: Overlaps.added(seen) for number, seen in parts.items()}

    def _objects(self) -> list[int]:
        return [number for number in self.rules.numbers if not self.rules.is_membrane(number)]

    def _class_sums(self, number: int, pixels: Array, overlaps: dict[int, Overlaps]) -> ImageSums:
        sums = {PIXELS: pixel_sums(pixels, number)}
        if self.rules.graded:
            sums[CALIBRATION] = self.calibration[number - 1]
        if number in overlaps:
            sums[OBJECTS] = object_sums(overlaps[number])
        else:
            true_YX = self._true(Box.of_shape(self.shape))
            unknown = true_YX == IGNORED  # counts as membrane in both
            sums[ROOMS] = region_sums((self.found_YX == number) | unknown, (true_YX == number) | unknown)
        found, true = (self._outline(read, number) for read in (self._found, self._true))
        return ImageSums(sums, Distances.between(found, true))

    def _found(self, box: Box) -> Array:
        return np.asarray(self.found_YX[box.slices])

    def _true(self, box: Box) -> Array:
        return self.case.class_map[box.slices]

    def _outline(self, read: Callable[[Box], Array], number: int) -> Array:
        """Outline pixels (n, 2) of one class over the whole image."""
        parts = []
        for tile in self.grid:
            wide = tile.core.expand(1)
            inside = wide.intersect(Box.of_shape(self.shape))
            assert inside is not None
            padded_YX = np.zeros(wide.shape, np.bool_)
            padded_YX[inside.shift(-wide.y0, -wide.x0).slices] = read(inside) == number
            parts.append(outline(padded_YX) + np.array([tile.core.y0, tile.core.x0]))
        return np.concatenate(parts)


def _pairs(starts: Array) -> Iterator[tuple[int, int]]:
    return zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)


def _scratch(shape: tuple[int, int], *, in_memory: bool) -> Array:
    """Zeros (y, x) uint8: in memory, or in an unnamed file that is freed with the array."""
    if in_memory:
        return np.zeros(shape, np.uint8)
    file: BinaryIO
    with tempfile.TemporaryFile(prefix="overtile-judge-") as file:  # the map keeps it open
        return np.memmap(file, np.uint8, "w+", shape=shape)
