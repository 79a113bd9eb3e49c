"""V_rand and V_info equal sums over all pairs of pixels and entropies of plain lists."""

from __future__ import annotations

from collections import Counter
from math import log
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_core.metrics.rand_info import region_scores, region_sums, regions, thinned_regions

Mask = np.ndarray[Any, np.dtype[np.bool_]]
MASKS = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).random((2, 5, 6)) < 0.45)


def flooded(mask: Mask) -> dict[tuple[int, int], int]:
    """Flood fill of the region of each non-membrane pixel, 4-connected."""
    room: dict[tuple[int, int], int] = {}
    for start in np.ndindex(mask.shape):
        open_pixels = [start] if not mask[start] and start not in room else []
        number = len(set(room.values()))
        while open_pixels:
            y, x = open_pixels.pop()
            inside = 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1]
            if inside and not mask[y, x] and (y, x) not in room:
                room[y, x] = number
                open_pixels += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
    return room


def direct(found: dict[tuple[int, int], Any], true: dict[tuple[int, int], Any]) -> tuple[float, float]:
    """V_rand from pairs of pixels in true regions, V_info from entropies; unmatched pixels are regions of their own."""
    s = [found.get(pixel, pixel) for pixel in true]
    t = list(true.values())
    if not t:
        return np.nan, np.nan
    both = sum(a == c and b == d for a, b in zip(s, t, strict=True) for c, d in zip(s, t, strict=True))
    same_s, same_t = (sum(a == b for a in labels for b in labels) for labels in (s, t))

    def entropy(labels: list[Any]) -> float:
        return -sum(n / len(labels) * log(n / len(labels)) for n in Counter(labels).values())

    h_s, h_t, h_st = entropy(s), entropy(t), entropy(list(zip(s, t, strict=True)))
    v_info = 2 * (h_s + h_t - h_st) / (h_s + h_t) if h_s + h_t > 0 else 1.0
    return both / (same_s / 2 + same_t / 2), v_info


@settings(deadline=None)
@given(masks=MASKS)
def test_scores_equal_their_definitions(masks: Mask) -> None:
    found, true = masks
    numbered = thinned_regions(found)
    thinned = {pixel: int(numbered[pixel]) for pixel in np.ndindex(found.shape) if numbered[pixel]}
    scores = region_scores(region_sums(found, true))
    ours = float(scores["v_rand"]), float(scores["v_info"])
    assert ours == pytest.approx(direct(thinned, flooded(true)), abs=1e-9, nan_ok=True)


@settings(deadline=None)
@given(masks=MASKS)
def test_regions_equal_a_flood_fill(masks: Mask) -> None:
    flood = flooded(masks[0])
    ours = regions(masks[0])
    assert {pixel for pixel in np.ndindex(ours.shape) if ours[pixel]} == set(flood)
    assert len(set(zip((int(ours[p]) for p in flood), flood.values(), strict=True))) == len(set(flood.values()))


@settings(deadline=None)
@given(masks=MASKS)
def test_thinning_joins_no_regions(masks: Mask) -> None:
    before, after = regions(masks[0]), thinned_regions(masks[0])
    assert np.array_equal(after[before > 0], before[before > 0])
    for a, b in ((after[1:], after[:-1]), (after[:, 1:], after[:, :-1])):
        assert not ((a != b) & (a > 0) & (b > 0)).any()


def grid_of_rooms(width: int) -> Mask:
    membrane = np.zeros((31, 31), bool)
    membrane[15 - width : 16 + width] = membrane[:, 15 - width : 16 + width] = True
    return membrane


def test_membrane_width_does_not_matter_and_gaps_do() -> None:
    true = grid_of_rooms(0)
    for width in (0, 1, 2):
        scores = region_scores(region_sums(grid_of_rooms(width), true))
        assert (float(scores["v_rand"]), float(scores["v_info"])) == pytest.approx((1, 1))
    gap = grid_of_rooms(0)
    gap[15, 3] = False
    merged = region_scores(region_sums(gap, true))
    assert merged["v_rand"] == pytest.approx(2 * 4 / (6 + 4))  # (225/900)^2 four times; of found, two and a double
    assert 0.5 < merged["v_info"] < 0.9


FULL, EMPTY = np.ones((5, 6), bool), np.zeros((5, 6), bool)


def test_the_rule_for_empty_masks() -> None:
    assert region_scores(region_sums(EMPTY, EMPTY)) == {"v_rand": 1, "v_info": 1}  # one room, found as one
    for found in (EMPTY, FULL):
        scores = region_scores(region_sums(found, FULL))
        assert np.isnan([scores["v_rand"], scores["v_info"]]).all()
    missed = region_scores(region_sums(FULL, EMPTY))
    assert missed["v_rand"] == pytest.approx(30 / ((30 + 900) / 2))
    assert missed["v_info"] == 0


def test_sums_of_images_equal_those_of_images_side_by_side() -> None:
    generator = np.random.default_rng(3)
    pairs = [(generator.random((2, 9, 9)) < 0.4) for _ in range(3)]
    s: dict[tuple[int, int], Any] = {}
    t: dict[tuple[int, int], Any] = {}
    for number, (found, true) in enumerate(pairs):
        numbered = thinned_regions(found)
        s |= {(y + 100 * number, x): f"{number} {numbered[y, x]}" for y, x in np.ndindex(found.shape) if numbered[y, x]}
        t |= {(y + 100 * number, x): f"{number} {room}" for (y, x), room in flooded(true).items()}
    together = region_scores(np.sum([region_sums(*pair) for pair in pairs], axis=0))
    assert (float(together["v_rand"]), float(together["v_info"])) == pytest.approx(direct(s, t))
