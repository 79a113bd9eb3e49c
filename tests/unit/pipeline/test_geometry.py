"""Boxes against sets of pixels; grids whose cores partition any area and whose reads have one shape."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.geometry import Box, Tile, TileGrid

Pixels = set[tuple[int, int]]

coordinates = st.integers(-12, 12)
lengths = st.integers(0, 9)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    """Small boxes around the origin, also empty ones."""
    y, x = draw(coordinates), draw(coordinates)
    return Box(y, x, y + draw(lengths), x + draw(lengths))


@st.composite
def grids(draw: st.DrawFn) -> TileGrid:
    """Grids over areas that start anywhere; cores larger than the area too."""
    y, x = draw(coordinates), draw(coordinates)
    area = Box(y, x, y + draw(st.integers(1, 30)), x + draw(st.integers(1, 30)))
    return TileGrid(area, draw(st.integers(1, 40)), draw(st.integers(0, 20)), draw(st.integers(0, 5)))


def pixels(box: Box) -> Pixels:
    return {(y, x) for y in range(box.y0, box.y1) for x in range(box.x0, box.x1)}


# ---- boxes --------------------------------------------------------------------------------------------------------


@given(boxes())
def test_area_and_shape_count_pixels(box: Box) -> None:
    assert box.area_px == len(pixels(box)) == box.shape[0] * box.shape[1]


@given(boxes(), boxes())
def test_intersection_is_the_common_pixels(one: Box, other: Box) -> None:
    common = one.intersect(other)
    assert (set() if common is None else pixels(common)) == pixels(one) & pixels(other)
    assert common is None or common.area_px > 0, "an intersection without pixels is None"
    assert common == other.intersect(one)


@given(boxes(), coordinates, coordinates)
def test_shift_moves_every_pixel(box: Box, dy: int, dx: int) -> None:
    assert pixels(box.shift(dy, dx)) == {(y + dy, x + dx) for y, x in pixels(box)}


@given(boxes(), st.integers(0, 3), st.integers(0, 3))
def test_expansion_reaches_every_pixel_near_enough(box: Box, before: int, after: int) -> None:
    grown = box.expand(before, after)
    assert grown.shape == (box.shape[0] + before + after, box.shape[1] + before + after)
    assert (grown.y0, grown.x0) == (box.y0 - before, box.x0 - before)
    offsets = range(-before, after + 1)
    if box.area_px:
        assert pixels(grown) == {(y + dy, x + dx) for y, x in pixels(box) for dy in offsets for dx in offsets}


@given(boxes(), st.integers(0, 3))
def test_expansion_is_the_same_on_all_sides_by_default(box: Box, by: int) -> None:
    assert box.expand(by) == box.expand(by, by)


@given(boxes(), st.integers(1, 4))
def test_scaled_cells_hold_the_pixels_whose_cell_is_in_the_box(cells: Box, factor: int) -> None:
    expected = {
        (y * factor + dy, x * factor + dx) for y, x in pixels(cells) for dy in range(factor) for dx in range(factor)
    }
    assert pixels(cells.scale(factor)) == expected


@given(boxes().filter(lambda box: box.area_px > 0), st.integers(1, 5))
def test_cover_is_exactly_the_cells_with_a_pixel_of_the_box(box: Box, cell: int) -> None:
    assert pixels(box.cover(cell)) == {(y // cell, x // cell) for y, x in pixels(box)}


@given(boxes())
def test_slices_index_the_pixels_of_the_box(box: Box) -> None:
    inside = box.shift(12, 12)
    mask = np.zeros((40, 40), bool)
    mask[inside.slices] = True
    assert {(int(y), int(x)) for y, x in np.argwhere(mask)} == pixels(inside)


def test_box_of_a_whole_image_and_its_name() -> None:
    assert Box.of_shape((3, 5)) == Box(0, 0, 3, 5)
    assert str(Box(1, 2, 3, 4)) == "[1:3, 2:4]"


@pytest.mark.parametrize("inside_out", [(1, 0, 0, 5), (0, 1, 5, 0)])
def test_box_that_ends_before_it_starts_is_refused(inside_out: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="ends before it starts"):
        Box(*inside_out)


# ---- grids --------------------------------------------------------------------------------------------------------


@given(grids())
def test_cores_partition_the_area(grid: TileGrid) -> None:
    cores = [pixels(tile.core) for tile in grid]
    assert sum(map(len, cores)) == grid.area.area_px, "a pixel has two owners"
    assert set().union(*cores) == pixels(grid.area), "a pixel has none"


@given(grids())
def test_every_read_has_one_shape_and_holds_its_core_and_halo(grid: TileGrid) -> None:
    for tile in grid:
        assert tile.read.shape == (grid.read_px, grid.read_px)
        assert (tile.read.y0, tile.read.x0) == (tile.core.y0 - grid.halo_px, tile.core.x0 - grid.halo_px)
        assert tile.core.expand(grid.halo_px).intersect(tile.read) == tile.core.expand(grid.halo_px)


@given(grids())
def test_cores_start_on_multiples_of_the_core_from_the_area_s_corner(grid: TileGrid) -> None:
    for tile in grid:
        assert (tile.core.y0 - grid.area.y0, tile.core.x0 - grid.area.x0) == (
            tile.row * grid.core_px,
            tile.col * grid.core_px,
        )


@given(grids())
def test_tiles_come_in_raster_order_and_are_found_by_index(grid: TileGrid) -> None:
    tiles = list(grid)
    assert [tile.index for tile in tiles] == [(row, col) for row in range(grid.rows) for col in range(grid.cols)]
    assert len(grid) == len(tiles)
    assert tiles == [grid.tile(*tile.index) for tile in tiles]


@given(grids())
def test_core_in_read_finds_the_core(grid: TileGrid) -> None:
    y, x = np.mgrid[-40:90, -40:90]
    for tile in [grid.tile(0, 0), grid.tile(grid.rows - 1, grid.cols - 1)]:
        read, core = (box.shift(40, 40).slices for box in (tile.read, tile.core))
        assert np.array_equal(y[read][tile.core_in_read.slices], y[core])
        assert np.array_equal(x[read][tile.core_in_read.slices], x[core])


@given(grids())
def test_indices_outside_the_grid_are_refused(grid: TileGrid) -> None:
    for index in [(-1, 0), (0, -1), (grid.rows, 0), (0, grid.cols)]:
        with pytest.raises(IndexError, match=r"no tile"):
            grid.tile(*index)


@pytest.mark.parametrize(
    "bad",
    [
        {"core_px": 0},
        {"halo_px": -1},
        {"surplus_px": -1},
        {"area": Box(0, 0, 0, 5)},
    ],
)
def test_impossible_grids_are_refused(bad: dict[str, object]) -> None:
    fine: dict[str, object] = {"area": Box(0, 0, 5, 5), "core_px": 2, "halo_px": 0, "surplus_px": 0}
    with pytest.raises(ValueError, match="no grid"):
        TileGrid(**{**fine, **bad})  # type: ignore[arg-type]  # mixed on purpose


def test_one_pixel_larger_is_one_tile_more() -> None:
    assert [len(TileGrid(Box(0, 0, 1, width), 512)) for width in (511, 512, 513)] == [1, 1, 2]
    assert TileGrid(Box(0, 0, 1, 513), 512).tile(0, 1) == Tile(0, 1, Box(0, 512, 1, 513), Box(0, 512, 512, 1024))
