"""Choice of the level, and resampling: exact against slow fractions, independent of the blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.errors import SlideError
from pipeline.geometry import Box, TileGrid
from pipeline.slide_reader import Level
from pipeline.slides.resample import Override, Resampling, Resolution, resample, resolution, source_box

SEED = 20
UINT8: np.dtype[Any] = np.dtype(np.uint8)
RATIOS = (0.55, 1.07, 1.996, 2.2)


@dataclass(frozen=True)
class FakeSlide:
    """The part of a slide that ``resolution`` uses; no pixels."""

    levels: tuple[Level, ...]
    mpp_yx: tuple[float, float] | None
    path: Path = Path("slide.svs")
    format: str = "fake"
    channels: int = 3
    dtype: np.dtype[Any] = UINT8

    def read(self, level: int, box: Box) -> NDArray[Any]:
        raise AssertionError("pixels are not needed to choose a level")

    def fingerprint(self) -> str:
        return ""

    def describe(self) -> dict[str, Any]:
        return {}


def slide(mpp: float | tuple[float, float] | None, *downsamples: float, side: int = 10_000) -> FakeSlide:
    levels = tuple(Level((int(side / d), int(side * 1.3 / d)), (float(d), float(d))) for d in (downsamples or (1,)))
    return FakeSlide(levels, (mpp, mpp) if isinstance(mpp, float) else mpp)


def resampling_of(ratio: float, source_yx: tuple[int, int]) -> Resampling:
    """The resampling of a one-level slide ``ratio`` times finer than its model."""
    fake = FakeSlide((Level(source_yx, (1.0, 1.0)),), (0.5, 0.5))
    return resolution(fake, None, 0.5 * ratio).resampling


def whole_image(image_CYX: NDArray[Any], resampling: Resampling) -> NDArray[Any]:
    """The image in one piece."""
    return piece(image_CYX, resampling, Box.of_shape(resampling.out_yx))


def piece(image_CYX: NDArray[Any], resampling: Resampling, out: Box) -> NDArray[Any]:
    source = source_box(resampling, out)
    return resample(image_CYX[:, *source.slices], resampling, source, out)


def noise(shape: tuple[int, ...], dtype: type = np.uint8) -> NDArray[Any]:
    return np.random.default_rng(SEED).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def slow_weights(resampling: Resampling, axis: int, i: int) -> dict[int, Fraction]:
    """Share of each source pixel in output ``i``, from the definition."""
    scale, length = resampling.scale_yx[axis], resampling.source_yx[axis]
    if resampling.method == "area":
        start, stop = i * scale, min((i + 1) * scale, Fraction(length))
        overlaps = {j: min(stop, Fraction(j + 1)) - max(start, Fraction(j)) for j in range(length)}
        return {j: overlap / (stop - start) for j, overlap in overlaps.items() if overlap > 0}
    centre = min(max((i + Fraction(1, 2)) * scale - Fraction(1, 2), Fraction(0)), Fraction(length - 1))
    left = math.floor(centre)
    return (
        {left: 1 - (centre - left), min(left + 1, length - 1): centre - left} if centre > left else {left: Fraction(1)}
    )


def slow(image_YX: NDArray[Any], resampling: Resampling) -> NDArray[Any]:
    """Every output pixel as an exact fraction, rounded half up."""
    rows = [slow_weights(resampling, 0, i) for i in range(resampling.out_yx[0])]
    cols = [slow_weights(resampling, 1, i) for i in range(resampling.out_yx[1])]
    result = np.empty(resampling.out_yx, image_YX.dtype)
    for y, row in enumerate(rows):
        for x, col in enumerate(cols):
            value = sum(a * b * int(image_YX[j, k]) for j, a in row.items() for k, b in col.items())
            result[y, x] = math.floor(value + Fraction(1, 2))
    return result


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("ratio", [*RATIOS, 0.4546, 1.25, 3.7, 11.3])
def test_resampling_equals_exact_fractions(ratio: float, dtype: type) -> None:
    image = noise((2, 29, 41), dtype)
    image[1, 5:20, 7:30] = np.iinfo(dtype).max
    resampling = resampling_of(ratio, (29, 41))
    assert resampling.method == ("area" if ratio > 1 else "bilinear")
    found = whole_image(image, resampling)
    assert found.dtype == dtype
    for channel in range(2):
        np.testing.assert_array_equal(found[channel], slow(image[channel], resampling))


def partition(resampling: Resampling, block_px: int) -> Iterator[Box]:
    return (tile.core for tile in TileGrid(Box.of_shape(resampling.out_yx), block_px))


@pytest.mark.parametrize("block_px", [512, 1024, 2048])
@pytest.mark.parametrize("ratio", RATIOS)
def test_blocks_equal_whole_image_to_the_bit(ratio: float, block_px: int) -> None:
    source_yx = (int(2300 * ratio), int(1400 * ratio))
    image, resampling = noise((1, *source_yx)), resampling_of(ratio, source_yx)
    one_piece = whole_image(image, resampling)
    for box in partition(resampling, block_px):
        np.testing.assert_array_equal(piece(image, resampling, box), one_piece[:, *box.slices], err_msg=str(box))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(460, 9000).map(lambda n: n / 1000),
    st.integers(0, 2**32),
    st.data(),
)
def test_any_box_equals_whole_image(height: int, width: int, ratio: float, seed: int, data: st.DataObject) -> None:
    image = np.random.default_rng(seed).integers(0, 2**16, (1, height, width)).astype(np.uint16)
    resampling = resampling_of(ratio, (height, width))
    out_y, out_x = resampling.out_yx
    assert resampling.out_yx == (max(1, math.floor(height / resampling.scale_yx[0] + Fraction(1, 2))),
                          max(1, math.floor(width / resampling.scale_yx[1] + Fraction(1, 2))))  # fmt: skip
    y0, x0 = data.draw(st.integers(0, out_y - 1)), data.draw(st.integers(0, out_x - 1))
    box = Box(y0, x0, data.draw(st.integers(y0 + 1, out_y)), data.draw(st.integers(x0 + 1, out_x)))
    np.testing.assert_array_equal(piece(image, resampling, box), whole_image(image, resampling)[:, *box.slices])
    assert Box.of_shape((height, width)).intersect(source_box(resampling, box)) == source_box(resampling, box)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("value", [0, 1, 127, 65535])
def test_constant_image_stays_constant(ratio: float, value: int) -> None:
    image = np.full((1, 33, 21), value, np.uint16)
    assert (whole_image(image, resampling_of(ratio, (33, 21))) == value).all()


def test_halves_round_up() -> None:
    image = np.array([[[0, 1], [1, 0]]], np.uint8)
    assert whole_image(image, resampling_of(2.0, (2, 2))).tolist() == [[[1]]]


def test_native_pixels_are_unchanged() -> None:
    image, resampling = noise((3, 20, 30)), resampling_of(1.0, (20, 30))
    assert resampling.method == "none"
    np.testing.assert_array_equal(piece(image, resampling, Box(3, 4, 9, 30)), image[:, 3:9, 4:30])


def test_wrong_boxes_are_refused() -> None:
    resampling = resampling_of(2.0, (20, 30))
    with pytest.raises(ValueError, match="not inside"):
        source_box(resampling, Box(0, 0, 11, 5))
    with pytest.raises(ValueError, match="needs pixels"):
        resample(noise((1, 20, 30)), resampling, Box(0, 0, 20, 30), Box(0, 0, 5, 5))


@pytest.mark.parametrize(
    ("mpp", "model", "level", "method", "scale"),
    [
        (0.25, 0.25, 0, "none", 1),
        (0.2525, 0.25, 0, "none", 1),
        (0.25, 0.5, 0, "area", 2),
        (0.25, 1.0, 1, "none", 1),
        (0.25, 0.97, 1, "none", 1),
        (0.25, 0.94, 0, "area", Fraction(94, 25)),
        (0.25, 3.0, 1, "area", 3),
        (0.25, 4.0, 2, "none", 1),
        (0.25, 8.0, 2, "area", 2),
        (0.26, 0.25, 0, "none", 1),
        (0.5, 0.25, 0, "bilinear", Fraction(1, 2)),
        (0.499, 0.25, 0, "bilinear", Fraction(250, 499)),
    ],
)
def test_level_and_method_are_chosen_by_resolution(
    mpp: float, model: float, level: int, method: str, scale: Fraction
) -> None:
    found = resolution(slide(mpp, 1, 4, 16), None, model)
    assert (found.level, found.resampling.method) == (level, method)
    assert found.resampling.scale_yx == (scale, scale)
    down = (1, 4, 16)[level]
    assert found.level0_from_image_yx == (float(scale) * down, float(scale) * down)
    assert found.mpp == pytest.approx(mpp * down if method == "none" else model)
    assert bool(found.warnings) == (method == "bilinear")
    assert found.slide_mpp == mpp


def test_image_covers_its_slide() -> None:
    for mpp in np.linspace(0.12, 3.9, 97):
        found = resolution(slide(float(mpp), 1, 2, 4, 8), None, 2.0)
        for axis in range(2):
            covered = found.out_yx[axis] * found.level0_from_image_yx[axis]
            level0 = found.resampling.source_yx[axis] * (1, 2, 4, 8)[found.level]
            assert abs(covered - level0) <= found.level0_from_image_yx[axis] / 2 + 0.01


def resolve(fake: FakeSlide, override: Override = None, model: float = 0.25) -> Resolution:
    return resolution(fake, override, model)


def test_override_replaces_stated_resolution_with_a_warning() -> None:
    assert resolve(slide(0.25), 0.26).warnings == ()
    found = resolve(slide(0.25), 0.125)
    assert found.resampling.scale_yx == (2, 2)
    assert "the slide states 0.25 um/px" in found.warnings[0]
    assert resolve(slide(None), 0.25).resampling.method == "none"
    assert resolve(slide((0.2, 0.4)), 0.25).resampling.method == "none"


def test_native_never_resamples() -> None:
    for mpp, expected, warns in ((0.9, 0.9, False), (None, 0.25, True), (352.8, 0.25, True)):
        found = resolve(slide(mpp, 1, 4), "native")
        assert (found.level, found.resampling.method, found.out_yx) == (0, "none", (10_000, 13_000))
        assert (found.mpp, bool(found.warnings)) == (expected, warns)
    assert resolve(slide(None), "native").slide_mpp is None


@pytest.mark.parametrize(
    ("fake", "override", "phrases"),
    [
        (slide(None), None, ["states no resolution", "--mpp"]),
        (slide(352.8), None, ["352.8", "0.05 to 10", "--mpp"]),
        (slide(0.001), None, ["0.001", "0.05 to 10", "--mpp"]),
        (slide(float("nan")), None, ["nan", "--mpp"]),
        (slide(0.25), 50.0, ["--mpp gives 50"]),
        (slide((0.25, 0.26)), None, ["0.26 x 0.25 um", "square", "--mpp"]),
        (slide(0.5525), None, ["2.21 times", "0.5525", "0.25", "--mpp"]),
    ],
)
def test_refusals_name_numbers_and_flag(fake: FakeSlide, override: Override, phrases: list[str]) -> None:
    with pytest.raises(SlideError) as caught:
        resolve(fake, override)
    assert [phrase for phrase in (*phrases, "slide.svs") if phrase not in str(caught.value)] == []


def test_enlargement_up_to_limit_has_a_warning() -> None:
    found = resolve(slide(0.55))
    assert found.resampling.method == "bilinear"
    assert "enlarged 2.20 times" in found.warnings[0]


def test_scales_keep_sums_exact_for_any_resolutions() -> None:
    """Numerators up to 2**17 keep every sum of 16-bit values below 2**53."""
    rng = np.random.default_rng(SEED)
    for mpp, model in rng.uniform(0.05, 10, (500, 2)):
        if mpp / model > 2.2:
            continue
        scale = resolve(slide(float(mpp)), None, float(model)).resampling.scale_yx[0]
        assert max(scale.numerator, 2 * scale.denominator) <= 1 << 17
