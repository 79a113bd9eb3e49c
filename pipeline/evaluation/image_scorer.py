"""Score one method on one annotated image, block by block.

An image is scored as ``segment`` would deliver it: probabilities rounded to bytes, the threshold or the largest class,
8-connected components of the whole image, split at the seeds of a map where the model says so, small and large ones
removed. The result does not depend on blocks. Of an image with
several blocks no pixels are kept in memory: predicted classes are in a scratch file of one byte a pixel, objects and
outlines are tables.

    answer --first pass--> classes (scratch), calibration, pieces --join--> objects
           --second pass--> confusion, overlaps of objects with true ones          --third pass--> outlines

Of an image with dots only the centres of objects are scored: what a dot's object covers is unknown. Of other images the
centres are scored too, against the centres of the outlined objects.

Only membranes need the whole image, for thinning. Pixels whose class is unknown (``IGNORED``) do not count: objects are
found in the whole image, and their unknown pixels are removed from both predicted and true objects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.seeded_objects import SeededObjects, scratch
from pipeline.geometry import Box, TileGrid
from pipeline.objects.components import BlockPart, join, label_pieces, object_part, rasterize
from pipeline.objects.relabel import Limits, MergedObjects, boxes, number_objects
from pipeline.objects.watershed import Splitting
from unet_core.class_map import IGNORED, class_map
from unet_core.data.sampler import AnnotatedImage
from unet_core.metrics.calibration import calibration_sums
from unet_core.metrics.centres import WITHIN_PX, CentreMatch, PixelSums, match_centres
from unet_core.metrics.overlap import Overlaps, confusion, object_sums, pixel_sums
from unet_core.metrics.rand_info import region_sums
from unet_core.metrics.score_table import CALIBRATION, CENTRES, OBJECTS, PIXELS, ROOMS, ImageSums
from unet_core.metrics.surface_distance import Distances, outline
from unet_core.object_labels import split_heights

Array = NDArray[Any]
ProbabilityReader = Callable[[Box], Array]
"""Reads probabilities (k, h, w) as bytes of any block of an image; maps may follow them."""

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
        most_px: Largest area of an object in pixels; None: no limit.
        splitting: How components are split; None: they are not.
        seeds: Plane of the map of the seeds.
    """

    class_names: tuple[str, ...]
    threshold: float
    least_px: int
    graded: bool = True
    most_px: int | None = None
    splitting: Splitting | None = None
    seeds: int = 0

    @property
    def limits(self) -> Limits:
        """Limits of area."""
        return Limits(self.least_px, self.most_px)

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


@dataclass(frozen=True, slots=True)
class _Compared:
    """Pixels by class, and by class the overlaps of objects and the pixel sums of predicted and of true ones."""

    pixels: Array
    overlaps: dict[int, Overlaps]
    found: dict[int, PixelSums]
    true: dict[int, PixelSums]


@dataclass(slots=True)
class ImageScorer:
    """Scoring of one image.

    Attributes:
        answer: Reads predicted probabilities.
        case: The annotated image.
        config: Conversion of bytes to objects.
        block_px: Side of a block.
        within_px: Largest distance of matched centres.
        found_YX: Predicted class of each pixel once ``run`` has returned, small objects removed.
        calibration: Calibration sums of each class.
        matches: Matched centres of each class once ``run`` has returned; none of membranes.
    """

    answer: ProbabilityReader
    case: AnnotatedImage
    config: ScoringConfig
    block_px: int = BLOCK_PX
    within_px: float = WITHIN_PX
    found_YX: Array = field(init=False)
    calibration: list[Array] = field(init=False)
    matches: dict[int, CentreMatch] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.found_YX = scratch(self.shape, np.uint8, in_memory=len(self.grid) == 1)
        self.calibration = [np.zeros(30) for _ in self.config.numbers]

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
        compared = self._compared(self.found())
        self.matches = {number: self._match(number, compared) for number in self._objects()}
        sums = tuple(self._class_sums(number, compared) for number in self.config.numbers)
        return ImageScores(compared.pixels if self.outlined else np.zeros_like(compared.pixels), sums)

    def found(self) -> Iterator[tuple[Box, Array]]:
        """Find the objects of the image; yield each block and the id of each of its pixels (y, x), 0 for none."""
        seeded = None
        if self.config.splitting is not None:
            map_YX = scratch(self.shape, np.uint8, in_memory=len(self.grid) == 1)
            seeded = SeededObjects(self.config.splitting, self.grid, map_YX)
        joined = join(self._pieces(seeded), CONNECTIVITY)
        whole = MergedObjects.of(joined)
        kept = self.config.limits.hold(whole.columns["area"]) if seeded is None else np.ones(len(whole.group), np.bool_)
        ids = number_objects(whole, kept).ids
        blocks = [ids[start:stop] for start, stop in _pairs(joined.starts)]
        if seeded is not None:
            for tile, own in zip(self.grid, blocks, strict=True):
                seeded.ids_YX[tile.core.slices] = self._drawn(tile.core, own)
            seeded.split(whole, ids)
            within = seeded.kept(self.config.limits)
        for tile, own in zip(self.grid, blocks, strict=True):
            if seeded is None:
                yield tile.core, self._drawn(tile.core, own)
            else:
                drawn_YX = np.array(seeded.ids_YX[tile.core.slices])
                yield tile.core, np.where(within[drawn_YX], drawn_YX, 0)

    @property
    def outlined(self) -> bool:
        """Whether every object of the image has an outline."""
        return self.case.points_N3 is None

    def _pieces(self, seeded: SeededObjects | None) -> Iterator[Sequence[BlockPart]]:
        """Predict each block, store its classes, and yield the pieces of each row of blocks."""
        grid = self.grid
        for row in range(grid.rows):
            yield [self._piece(grid.tile(row, col).core, seeded) for col in range(grid.cols)]

    def _piece(self, core: Box, seeded: SeededObjects | None) -> BlockPart:
        outputs_KYX, true_YX = self.answer(core), self._true(core)
        probability_KYX = outputs_KYX[: len(self.config.class_names)]
        if self.config.graded:
            for number, plane_YX in enumerate(probability_KYX, start=1):
                known = true_YX != IGNORED
                self.calibration[number - 1] += calibration_sums(plane_YX[known], true_YX[known] == number)
        classes_YX = class_map(probability_KYX, self.config.threshold)
        self.found_YX[core.slices] = classes_YX
        pieces = label_pieces(classes_YX, CONNECTIVITY)
        part = object_part(pieces, classes_YX, core, self.shape[1])
        if seeded is None:
            return part
        seeded.map_YX[core.slices] = split_heights(seeded.splitting.source, outputs_KYX[self.config.seeds])
        return replace(part, columns=part.columns | boxes(pieces, core))

    def _drawn(self, core: Box, ids: Array) -> Array:
        """Id at each pixel of a block (y, x) by the ids of its pieces."""
        pieces = label_pieces(np.asarray(self.found_YX[core.slices]), CONNECTIVITY)
        return rasterize(pieces, ids[pieces.label - 1], core.shape)

    def _compared(self, blocks: Iterable[tuple[Box, Array]]) -> _Compared:
        """Remove pixels outside the objects, and sum pixels by class, by object and by pair of objects of one class."""
        count = len(self.config.class_names) + 1
        pixels = np.zeros((count, count), np.int64)
        parts: dict[int, list[Overlaps]] = {number: [] for number in self._objects()}
        found: dict[int, list[PixelSums]] = {number: [] for number in parts}
        true: dict[int, list[PixelSums]] = {number: [] for number in parts}
        for core, found_ids_YX in blocks:
            classes_YX = np.array(self.found_YX[core.slices])
            true_YX, labels_YX = self._true(core), np.asarray(self.case.labels_YX[core.slices])
            known = true_YX != IGNORED
            found_YX = np.where((found_ids_YX > 0) & known, classes_YX, 0)
            self.found_YX[core.slices] = found_YX
            pixels += confusion(found_YX[known], true_YX[known], count)
            for number, seen in parts.items():
                mine = np.where(found_YX == number, found_ids_YX, 0), np.where(true_YX == number, labels_YX, 0)
                seen.append(Overlaps.of(*mine))
                whole_YX = np.where(classes_YX == number, found_ids_YX, 0)  # unknown pixels do not shift a centre
                found[number].append(PixelSums.of(whole_YX, (core.y0, core.x0)))
                true[number].append(PixelSums.of(mine[1], (core.y0, core.x0)))
        added = ({number: PixelSums.added(seen) for number, seen in one.items()} for one in (found, true))
        return _Compared(pixels, {number: Overlaps.added(seen) for number, seen in parts.items()}, *added)

    def _match(self, number: int, compared: _Compared) -> CentreMatch:
        """Match the centres of one class; predicted ones on unknown pixels do not count."""
        found_N2, true_M2 = self._known(compared.found[number].centres), compared.true[number].centres
        if self.case.points_N3 is not None:
            dots = self.case.points_N3[self.case.points_N3[:, 2] == number, :2]
            true_M2 = np.concatenate((true_M2, dots.astype(np.float64)))
        return match_centres(found_N2, true_M2, self.within_px)

    def _known(self, centres_N2: Array) -> Array:
        """Those of the centres whose pixel has a known class."""
        if self.case.classes_YX is None:
            return centres_N2
        y, x = np.rint(centres_N2).astype(np.intp).T
        known = np.ones(len(y), np.bool_)
        for core in (tile.core for tile in self.grid):
            here = np.flatnonzero((y >= core.y0) & (y < core.y1) & (x >= core.x0) & (x < core.x1))
            if len(here):
                known[here] = self._true(core)[y[here] - core.y0, x[here] - core.x0] != IGNORED
        return centres_N2[known]

    def _objects(self) -> list[int]:
        return [number for number in self.config.numbers if not self.config.is_membrane(number)]

    def _class_sums(self, number: int, compared: _Compared) -> ImageSums:
        centres = {CENTRES: self.matches[number].sums} if number in self.matches else {}
        if not self.outlined:
            return ImageSums(centres, None)
        sums = {PIXELS: pixel_sums(compared.pixels, number)}
        if self.config.graded:
            sums[CALIBRATION] = self.calibration[number - 1]
        if number in compared.overlaps:
            sums[OBJECTS] = object_sums(compared.overlaps[number])
        else:
            true_YX = self._true(Box.of_shape(self.shape))
            unknown = true_YX == IGNORED  # counts as membrane in both
            sums[ROOMS] = region_sums((self.found_YX == number) | unknown, (true_YX == number) | unknown)
        found, true = (self._outline(read, number) for read in (self._found, self._true))
        return ImageSums(sums | centres, Distances.between(found, true))

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
