"""The seam check: the ratio equals that of a plain loop, is 1 without seams, and larger with seams."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.geometry import Box
from pipeline.inference.seam_check import CONTROLS, FEWEST_PLACES, PLACES, Cut, places, seam_check, sharpest
from tests.support.make_store import SEED

CELL = 512
Image = NDArray[Any]


def check(pixels_KYX: Image, cut: Cut, computed: Image | None = None) -> dict[str, Any] | None:
    cells = [-(-side // CELL) for side in pixels_KYX.shape[1:]]
    computed = np.ones(cells, bool) if computed is None else computed
    return seam_check(lambda box: pixels_KYX[(slice(None), *box.slices)], computed, cut)


def field(shape_yx: tuple[int, int], seed: int = SEED) -> Image:
    """A probability with blobs and a little noise (1, y, x), without seams."""
    rng = np.random.default_rng(seed)
    logits = ndimage.gaussian_filter(rng.standard_normal(shape_yx, np.float32), 4) * 28
    logits += 0.05 * rng.standard_normal(shape_yx, np.float32)
    return np.rint(255 / (1 + np.exp(-logits))).astype(np.uint8)[None]


# ---- the count -------------------------------------------------------------------------------------------------------


def bends_most(line: list[int], x: int) -> bool:
    """One piece of four rows, summed pixel by pixel."""

    def bend(at: int) -> int:
        return abs(3 * (line[at] - line[at - 1]) - (line[at + 1] - line[at - 2]))

    return all(bend(x) > bend(x + aside) for aside in (-4, -3, -2, 2, 3, 4))


def by_hand(pixels_KYX: Image, at: int, axis: int, box: Box) -> int:
    """Pieces that bend most at ``at``, along a box's whole side."""
    pixels = pixels_KYX.astype(int)[(slice(None), *box.slices)]
    lines, start = (pixels.swapaxes(1, 2), box.y0) if axis == 0 else (pixels, box.x0)
    count = 0
    for plane in lines:
        for first in range(0, len(plane) // 4 * 4, 4):
            count += bends_most(plane[first : first + 4].sum(axis=0).tolist(), at - start)
    return count


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 2), st.integers(1, 11), st.integers(1, 22), st.integers(1, 255))
def test_the_sharpest_bend_is_found_as_a_loop_finds_it(seed: int, k: int, height: int, width: int, top: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, top + 1, (k, height, width), np.uint8)
    if width < 12:
        width = 12
        pixels = np.resize(pixels, (k, height, width))
    found = sharpest(pixels)
    assert found.shape == (k, height // 4, width)
    for plane, n, x in np.ndindex(found.shape):
        inside = 6 <= x <= width - 6
        line = pixels[plane, 4 * n : 4 * n + 4].astype(int).sum(axis=0).tolist()
        assert found[plane, n, x] == (inside and bends_most(line, x))


@pytest.mark.parametrize(("tile", "block", "step"), [(512, 1024, 96), (384, 512, 80), (512, 2048, 128)])
def test_ratio_equals_plain_loop(tile: int, block: int, step: int) -> None:
    shape = 1100, 1060
    pixels = field(shape)
    starts = {n * block + t for n in range(3) for t in range(0, block, tile)}
    on, beside = [], []
    for axis, (length, across) in enumerate((shape, shape[::-1])):
        for line in sorted(start for start in starts if 0 < start < length):
            low, high = (line - 1) // CELL * CELL, min(length, line // CELL * CELL + CELL)
            at = [line + n * step for n in range(-CONTROLS, CONTROLS + 1) if line + n * step not in starts]
            at = [one for one in at if low + 6 <= one <= high - 6]
            for begin in range(0, across, CELL):
                end = min(across, begin + CELL)
                box = Box(low, begin, high, end) if axis == 0 else Box(begin, low, end, high)
                counts = [by_hand(pixels, one, axis, box) for one in (line, *at)]
                on.append(counts[0])
                beside.append(sum(counts[1:]) / len(counts[1:]))
    found = check(pixels, Cut(shape, block, tile, step))
    assert found is not None
    assert found["places"] == len(on)
    assert found["ratio"] == round(sum(on) / sum(beside), 4)


# ---- what it says ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole() -> Image:
    return field((2300, 2400))


def test_ratio_is_one_without_seams(whole: Image) -> None:
    found = check(whole, Cut((2300, 2400), 1024, 64, 16))
    assert found is not None
    print(found)
    assert found["ratio"] == pytest.approx(1, abs=0.02)
    assert found["error"] < 0.015
    assert found["places"] <= PLACES


def test_mismatched_tiles_raise_ratio(whole: Image) -> None:
    cut = Cut((2300, 2400), 1024, 256, 16)
    rng = np.random.default_rng(SEED)
    brighter = np.kron(rng.integers(0, 3, (9, 10)), np.ones((256, 256), int))[None, :2300, :2400]
    shown = check(np.clip(whole + brighter, 0, 255).astype(np.uint8), cut)
    moved = np.concatenate([np.roll(whole[:, y : y + 256], y // 256 % 2, axis=2) for y in range(0, 2300, 256)], axis=1)
    print(shown, found := check(moved, cut))
    assert shown is not None
    assert found is not None
    assert shown["ratio"] > 1.2
    assert found["ratio"] > 1.2


def test_edge_of_uncomputed_cell_is_no_seam(whole: Image) -> None:
    computed = np.indices((5, 5)).sum(axis=0) % 3 > 0
    asked = np.kron(computed, np.ones((CELL, CELL), bool))[:2300, :2400]
    found = check(whole * asked, Cut((2300, 2400), 1024, 128, 16), computed)
    assert found is not None
    assert found["ratio"] == pytest.approx(1, abs=3 * found["error"])
    assert found["error"] < 0.04


def test_too_few_places_give_no_result() -> None:
    flat = np.full((1, 1100, 1100), 7, np.uint8)
    assert check(flat, Cut((1100, 1100), 512, 256, 16)) is None
    assert check(field((600, 600)), Cut((600, 600), 512, 512, 16)) is None
    assert check(field((500, 500)), Cut((500, 500), 512, 512, 16)) is None
    assert check(field((1100, 1100)), Cut((1100, 1100), 512, 512, 16), np.zeros((3, 3), bool)) is None


def test_number_of_sampled_places_is_bounded() -> None:
    """A slide of 100,000 px: the pixels that are read are bounded, in total and at a time."""
    boxes: list[Box] = []

    def read(box: Box) -> Image:
        boxes.append(box)
        return np.zeros((1, *box.shape), np.uint8)

    cut = Cut((100_000, 100_000), 2048, 1024, 16)
    assert seam_check(read, np.ones((196, 196), bool), cut) is None
    assert FEWEST_PLACES < len(boxes) == PLACES
    assert max(box.area_px for box in boxes) <= CELL * (2 * CONTROLS * 16 + 12)


def test_tile_lines_restart_in_each_block_and_controls_avoid_them() -> None:
    cut = Cut((1300, 1000), 512, 384, 16)
    assert cut.lines(0) == [384, 512, 896, 1024]
    assert cut.lines(1) == [384, 512, 896]
    for place in places(np.ones((3, 2), bool), cut):
        assert not set(place.controls) & set(cut.lines(place.axis))
        assert all((one - place.line) % 16 == 0 for one in place.controls)
