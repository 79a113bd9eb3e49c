"""Reading around bad tiles, against filling them one by one; excluded cells, against every pixel."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import CELL_PX
from pipeline.geometry import Box
from pipeline.slide_reader import TileError, TileIndex
from pipeline.slides.bad_tiles import BadTile, as_array, cells_without_bad_tiles, from_array, image_box, read_around
from pipeline.slides.resample import Resampling, resample

SIDE = 7


@dataclass
class DamagedReader:
    """A reader of one level in tiles of 7 px, some of them damaged."""

    image: np.ndarray[Any, Any]
    bad: frozenset[tuple[int, int]]
    level: int = 0
    requests: list[Box] = field(default_factory=list)

    @property
    def channels(self) -> int:
        return len(self.image)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.image.dtype

    def place(self, row: int, col: int) -> TileIndex:
        box = Box(row * SIDE, col * SIDE, (row + 1) * SIDE, (col + 1) * SIDE).intersect(
            Box.of_shape(self.image.shape[1:])
        )
        assert box is not None
        return TileIndex(self.level, row, col, box)

    def read(self, level: int, box: Box) -> np.ndarray[Any, Any]:
        self.requests.append(box)
        for row, col in sorted(self.bad):
            if self.place(row, col).box.intersect(box) is not None:
                raise TileError("torn", self.place(row, col))
        return self.image[(slice(None), *box.slices)].copy()


def boxes(height: int, width: int) -> st.SearchStrategy[Box]:
    sides = [st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True).map(sorted) for n in (height, width)]
    return st.tuples(*sides).map(lambda found: Box(found[0][0], found[1][0], found[0][1], found[1][1]))


@settings(max_examples=150, deadline=None)
@given(st.sets(st.tuples(st.integers(0, 4), st.integers(0, 5))), boxes(33, 40), st.sampled_from([1, 3]))
def test_intact_pixels_are_read_and_bad_tiles_filled(bad: set[tuple[int, int]], box: Box, channels: int) -> None:
    image = np.random.default_rng(1).integers(1, 250, (channels, 33, 40), np.uint8)
    reader = DamagedReader(image, frozenset(bad))
    expected, touched = image.copy(), set()
    for row, col in bad:
        place = reader.place(row, col)
        expected[(slice(None), *place.box.slices)] = 255 if channels == 3 else 0
        if place.box.intersect(box) is not None:
            touched.add((row, col))
    pixels, found = read_around(reader, 0, box)  # type: ignore[arg-type]
    assert np.array_equal(pixels, expected[(slice(None), *box.slices)])
    assert sorted({(place.row, place.col) for place in found}) == sorted(touched)


def test_bad_tile_of_another_level_is_an_error() -> None:
    """Reading around it would never end: its place does not cover the requested pixels."""
    with pytest.raises(TileError, match="torn"):
        read_around(DamagedReader(np.ones((1, 33, 40), np.uint8), frozenset({(0, 0)}), level=2), 0, Box(0, 0, 9, 9))  # type: ignore[arg-type]


@settings(max_examples=100, deadline=None)
@given(boxes(33, 40), st.sampled_from([("none", 1), ("area", Fraction(7, 3)), ("bilinear", Fraction(5, 7))]))
def test_image_box_contains_every_pixel_that_a_tile_changes(source: Box, how: tuple[Any, Any]) -> None:
    method, scale = how
    out = (round(33 / scale), round(40 / scale))
    resampling = Resampling(method, (Fraction(scale), Fraction(scale)), (33, 40), out)
    image = np.full((1, 33, 40), 10, np.uint8)
    other = image.copy()
    other[(slice(None), *source.slices)] = 250
    whole = Box.of_shape((33, 40))
    one, two = (resample(pixels, resampling, whole, Box.of_shape(out)) for pixels in (image, other))
    changed = np.argwhere(one[0] != two[0])
    box = image_box(resampling, source)
    assert all(box.y0 <= y < box.y1 and box.x0 <= x < box.x1 for y, x in changed)
    assert box.area_px <= (len(set(changed[:, 0])) + 4) * (len(set(changed[:, 1])) + 4)


@pytest.mark.parametrize("halo", [0, 6, 92])
@pytest.mark.parametrize("box", [(0, 0, 1, 1), (500, 511, 512, 600), (600, 600, 700, 1100), (1535, 0, 1540, 9)])
def test_cell_is_excluded_when_its_read_touches_a_bad_tile(halo: int, box: tuple[int, int, int, int]) -> None:
    shape = (1600, 1200)
    sound = cells_without_bad_tiles([BadTile(0, 0, 0, box)], shape, halo)
    bad = np.zeros(shape, bool)
    bad[Box(*box).intersect(Box.of_shape(shape)).slices] = True  # type: ignore[union-attr]
    assert sound.shape == (4, 3)
    for row, col in np.ndindex(sound.shape):
        y, x = row * CELL_PX, col * CELL_PX
        seen = bad[max(0, y - halo) : y + CELL_PX + halo, max(0, x - halo) : x + CELL_PX + halo]
        assert sound[row, col] == (not seen.any())


def test_bad_tiles_round_trip_through_array_and_facts() -> None:
    bad = [BadTile(0, 1, 2, (3, 4, 5, 6)), BadTile(1, 0, 0, (0, 0, 9, 9))]
    assert from_array(as_array(bad)) == bad
    assert from_array(as_array([])) == []
    assert BadTile.listed({"masked": [tile.fact() for tile in bad]}) == tuple(bad)
    assert BadTile.listed({}) == ()
    assert str(bad[0]) == "level 0, tile (1, 2)"
