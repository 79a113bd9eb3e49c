"""Resample a slide to the resolution of a model, block by block, in exact arithmetic.

    source pixel edges   0    1    2    3    4    5    6  ..      scale s = p/q source pixels per output pixel
    output pixel i       |<-- i*s .. (i+1)*s -->|                 area: average over that interval
                                 x centre                         bilinear: at (i + 1/2)*s - 1/2, edges repeated

All weights are integers. The scale is a fraction p/q, so an output pixel covers a whole number of 1/q source pixels.
Sums of weight times value stay below 2**53 and are exact in float64 in any order, and the rounding (half up) is exact
too. A block therefore equals the same pixels of the resampled slide to the bit, independent of its position, of the
summation order of a library and of the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from pipeline.errors import SlideError
from pipeline.geometry import Box
from pipeline.slide_reader import Pixels, SlideReader

MPP_RANGE_UM = 0.05, 10.0
TOLERANCE = Fraction(5, 100)
MAX_ENLARGEMENT = Fraction(22, 10)
MAX_ANISOTROPY = 0.01

_MPP_STEPS = 10**6
_MAX_DENOMINATOR = 10_000
_MAX_NUMERATOR = 1 << 17
_BAND_VALUES = 1 << 18

Method = Literal["none", "area", "bilinear"]
Override = float | Literal["native"] | None


@dataclass(frozen=True, slots=True)
class Resampling:
    """How one level becomes the image.

    Attributes:
        method: ``none``, ``area`` (reduction) or ``bilinear`` (enlargement).
        scale_yx: (y, x) source pixels per output pixel.
        source_yx: Shape of the level.
        out_yx: Shape of the image.
    """

    method: Method
    scale_yx: tuple[Fraction, Fraction]
    source_yx: tuple[int, int]
    out_yx: tuple[int, int]

    @property
    def hashed_text(self) -> str:
        """Text that enters the plan hash. It must not change, whatever the class and its fields are called."""
        return (
            f"Resampling(method={self.method!r}, scale_yx={self.scale_yx!r}, source_yx={self.source_yx!r}, "
            f"out_yx={self.out_yx!r})"
        )


@dataclass(frozen=True, slots=True)
class Resolution:
    """The level to read, how to resample it, and the pixel size of the result.

    Attributes:
        level: Level of the slide.
        resampling: How its pixels become those of the image.
        mpp: Micrometres per pixel of the image.
        slide_mpp: Micrometres per pixel of level 0; None when unknown.
        level0_from_image_yx: Factors from (y, x) coordinates of the image to level-0 pixels.
        warnings: Messages for the manifest.
    """

    level: int
    resampling: Resampling
    mpp: float
    slide_mpp: float | None
    level0_from_image_yx: tuple[float, float]
    warnings: tuple[str, ...]

    @property
    def out_yx(self) -> tuple[int, int]:
        """(y, x) shape of the image."""
        return self.resampling.out_yx


def resolution(reader: SlideReader, override: Override, model_mpp: float | None) -> Resolution:
    """Choose the level and the resampling that give an image at the resolution of a model.

    The coarsest level that is at most 5 % coarser than the model is read. It is used unchanged within 5 %, averaged
    over areas when it is finer, and interpolated bilinearly up to 2.2 times when it is coarser.

    Args:
        reader: The slide.
        override: Micrometres per pixel of level 0, replacing the slide's; ``native`` for level 0 without resampling;
            None for the resolution that the slide states.
        model_mpp: Micrometres per pixel of the model; None if it states none, so that nothing is resampled.

    Returns:
        The level, its resampling and the resulting pixel size.

    Raises:
        SlideError: If the resolution is unknown, outside 0.05 to 10 um, not square within 1 %, or more than 2.2 times
            coarser than the model's.
    """
    if override == "native":
        return _native(reader, model_mpp or 1.0)
    if model_mpp is None:
        return _native(reader, 1.0) if override is None else _unresampled(reader, *_slide_mpp(reader, override))
    slide_mpp, warnings = _slide_mpp(reader, override)
    scales = [_scale_yx(level.downsample_yx, slide_mpp, model_mpp) for level in reader.levels]
    level = max((k for k, scale in enumerate(scales) if min(scale) >= 1 / (1 + TOLERANCE)), default=0)
    method, scale_yx = _method(scales[level])
    if method == "bilinear":
        warnings += (_enlargement_warning(reader, scale_yx, slide_mpp, model_mpp),)
    source_yx = reader.levels[level].shape_yx
    out_yx = _round_half_up(source_yx[0] / scale_yx[0]), _round_half_up(source_yx[1] / scale_yx[1])
    down_y, down_x = reader.levels[level].downsample_yx
    factor_yx = float(scale_yx[0]) * down_y, float(scale_yx[1]) * down_x
    mpp = slide_mpp * (factor_yx[0] + factor_yx[1]) / 2 if method == "none" else model_mpp
    return Resolution(level, Resampling(method, scale_yx, source_yx, out_yx), mpp, slide_mpp, factor_yx, warnings)


def _unresampled(reader: SlideReader, mpp: float, warnings: tuple[str, ...]) -> Resolution:
    """Level 0 unchanged, of a resolution that is given."""
    shape_yx = reader.levels[0].shape_yx
    resampling = Resampling("none", (Fraction(1), Fraction(1)), shape_yx, shape_yx)
    return Resolution(0, resampling, mpp, mpp, (1.0, 1.0), warnings)


def _native(reader: SlideReader, model_mpp: float) -> Resolution:
    """Level 0 unchanged. Areas use its resolution when it is plausible, else the model's."""
    stated = _mean(reader.mpp_yx)
    if stated is not None and MPP_RANGE_UM[0] <= stated <= MPP_RANGE_UM[1]:
        return _unresampled(reader, stated, ())
    warning = (
        f"{reader.path}: the slide states no usable resolution; areas and lengths assume the model's {model_mpp} um/px"
    )
    return replace(_unresampled(reader, model_mpp, (warning,)), slide_mpp=None)


def _mean(mpp_yx: tuple[float, float] | None) -> float | None:
    return None if mpp_yx is None else (mpp_yx[0] + mpp_yx[1]) / 2


def _slide_mpp(reader: SlideReader, override: float | None) -> tuple[float, tuple[str, ...]]:
    """Micrometres per level-0 pixel to use, with a warning where override and slide differ by more than 5 %."""
    low, high = MPP_RANGE_UM
    stated, advice = (
        _mean(reader.mpp_yx),
        "Give it with --mpp X (micrometres per pixel), in a column mpp of --cases, or --mpp native.",
    )
    mpp = stated if override is None else override
    if mpp is None:
        raise SlideError(f"{reader.path}: the slide states no resolution; micrometres per pixel expected. {advice}")
    if not low <= mpp <= high:
        source = "the slide states" if override is None else "--mpp gives"
        raise SlideError(f"{reader.path}: {source} {mpp:g} um/px; expected {low} to {high}. {advice}")
    if override is None:
        _refuse_anisotropic(reader, advice)
        return mpp, ()
    if stated is None or abs(override / stated - 1) <= TOLERANCE:
        return override, ()
    return override, (
        f"{reader.path}: {override:g} um/px is used as requested; the slide states {stated:g} um/px, more than 5 % off",
    )


def _refuse_anisotropic(reader: SlideReader, advice: str) -> None:
    assert reader.mpp_yx is not None
    y, x = reader.mpp_yx
    if abs(y / x - 1) > MAX_ANISOTROPY:
        raise SlideError(f"{reader.path}: pixels of {x:g} x {y:g} um; expected square ones within 1 %. {advice}")


def _scale_yx(down_yx: tuple[float, float], slide_mpp: float, model_mpp: float) -> tuple[Fraction, Fraction]:
    return _scale(down_yx[0], slide_mpp, model_mpp), _scale(down_yx[1], slide_mpp, model_mpp)


def _scale(downsample: float, slide_mpp: float, model_mpp: float) -> Fraction:
    """Level pixels per output pixel as p/q, small enough for exact sums; resolutions are rounded to 1e-6 um.

    The nearest fraction with q <= 10,000 differs by less than 1e-8 of a pixel per pixel: 0.002 px over a slide.
    """
    model, slide = (Fraction(round(mpp * _MPP_STEPS), _MPP_STEPS) for mpp in (model_mpp, slide_mpp))
    exact = model / (slide * Fraction(downsample))
    largest = min(_MAX_DENOMINATOR, math.floor(_MAX_NUMERATOR / exact))
    return exact.limit_denominator(max(1, largest))


def _method(scale_yx: tuple[Fraction, Fraction]) -> tuple[Method, tuple[Fraction, Fraction]]:
    """Method and scale; within 5 % the level is used unchanged with scale 1."""
    if all(1 / (1 + TOLERANCE) <= scale <= 1 + TOLERANCE for scale in scale_yx):
        return "none", (Fraction(1), Fraction(1))
    return ("area" if min(scale_yx) >= 1 else "bilinear"), scale_yx


def _enlargement_warning(
    reader: SlideReader, scale_yx: tuple[Fraction, Fraction], slide_mpp: float, model_mpp: float
) -> str:
    """Warning for a slide coarser than the model. Raises SlideError above MAX_ENLARGEMENT."""
    times = 1 / Fraction(min(scale_yx))
    if times > MAX_ENLARGEMENT:
        raise SlideError(
            f"{reader.path}: the slide has {slide_mpp:g} um/px, the model needs {model_mpp:g}: it would be enlarged "
            f"{float(times):.2f} times; expected at most {float(MAX_ENLARGEMENT)}. Use a finer scan or a coarser "
            "model; if the slide's resolution is wrong, give the right one with --mpp X."
        )
    sizes = f"from {slide_mpp:g} to {model_mpp:g} um/px"
    return f"{reader.path}: enlarged {float(times):.2f} times, {sizes}; fine detail is missing"


def _round_half_up(length: Fraction) -> int:
    """The nearest whole number of pixels, at least 1; halves round up."""
    return max(1, math.floor(length + Fraction(1, 2)))


def source_box(resampling: Resampling, out_box: Box) -> Box:
    """Box of the level that an output box is computed from.

    Args:
        resampling: Resampling from the level to the image.
        out_box: Box inside the image.

    Returns:
        Box in pixels of the level, clipped to it.

    Raises:
        ValueError: If ``out_box`` is not inside the image.
    """
    if Box.of_shape(resampling.out_yx).intersect(out_box) != out_box:
        raise ValueError(f"box {out_box} is not inside the image of {resampling.out_yx}")
    y0, y1 = _source_span(resampling, 0, out_box.y0, out_box.y1)
    x0, x1 = _source_span(resampling, 1, out_box.x0, out_box.x1)
    return Box(y0, x0, y1, x1)


def _source_span(resampling: Resampling, axis: int, start: int, stop: int) -> tuple[int, int]:
    scale, length = resampling.scale_yx[axis], resampling.source_yx[axis]
    if resampling.method == "bilinear":
        first, last = (math.floor(_centre(scale, i)) for i in (start, stop - 1))
        return min(max(first, 0), length - 1), min(max(last + 2, 1), length)
    return math.floor(start * scale), min(length, math.ceil(stop * scale))


def _centre(scale: Fraction, i: int) -> Fraction:
    """Centre of output pixel ``i`` in source pixels; the centre of a source pixel is its index."""
    return (i + Fraction(1, 2)) * scale - Fraction(1, 2)


def resample(pixels_CYX: Pixels, resampling: Resampling, source: Box, out: Box) -> Pixels:
    """Compute the pixels of an output box.

    The result equals the same pixels of the whole image, resampled in one piece, to the bit.

    Args:
        pixels_CYX: (c, y, x) source pixels, uint8 or uint16.
        resampling: Resampling from the level to the image.
        source: Box of ``pixels_CYX``; must be ``source_box(resampling, out)``.
        out: Box of the image.

    Returns:
        (c, y, x) pixels of the same type, rounded half up.

    Raises:
        ValueError: If ``source`` or the shape of the pixels does not fit ``out``.
    """
    if source != source_box(resampling, out) or pixels_CYX.shape[1:] != source.shape:
        raise ValueError(f"{out} needs pixels {source_box(resampling, out)}, got {source} as {pixels_CYX.shape}")
    if resampling.method == "none":
        return pixels_CYX
    rows_y = _weights(resampling, 0, (out.y0, out.y1), source.y0)
    rows_x = _weights(resampling, 1, (out.x0, out.x1), source.x0)
    result = np.empty((pixels_CYX.shape[0], *out.shape), pixels_CYX.dtype)
    for channel, plane_YX in enumerate(pixels_CYX):
        for band in _bands(out.shape[0], source.shape[1]):
            result[channel, band] = _weigh(plane_YX, _Rows.take(rows_y, band), rows_x)
    return result


@dataclass(frozen=True, slots=True)
class _Rows:
    """Integer weights of one axis: a sparse (outputs, sources) matrix, and the sum of each row."""

    matrix: sparse.csr_array
    sums: NDArray[np.float64]

    def take(self, band: slice) -> _Rows:
        """A subset of the outputs."""
        return _Rows(self.matrix[band], self.sums[band])


def _bands(height: int, width: int) -> Iterator[slice]:
    """Slices of output rows whose float64 sums take about 2 MiB, the size of a cache."""
    step = max(1, _BAND_VALUES // width)
    return (slice(start, min(start + step, height)) for start in range(0, height, step))


def _weigh(plane_YX: NDArray[Any], rows_y: _Rows, rows_x: _Rows) -> Pixels:
    """Weighted sums over y, then x, divided by the sum of the weights and rounded half up, all exact.

    Values < 2**16 and row sums <= 2**17 keep sums below 2**50. A quotient that is no half differs from every half by at
    least 2**-35, so float64 puts it on the right side.
    """
    first, last = int(rows_y.matrix.indices.min()), int(rows_y.matrix.indices.max()) + 1
    over_y = rows_y.matrix[:, first:last] @ plane_YX[first:last].astype(np.float64)
    sums_XY = rows_x.matrix @ over_y.T
    weight_XY = rows_x.sums[:, None] * rows_y.sums[None, :]
    sums_XY += weight_XY / 2
    sums_XY /= weight_XY
    rounded_down: Pixels = sums_XY.astype(plane_YX.dtype)
    return rounded_down.T


def _weights(resampling: Resampling, axis: int, span: tuple[int, int], origin: int) -> _Rows:
    """Weights of the outputs ``span`` over the source pixels from ``origin`` on."""
    p, q = resampling.scale_yx[axis].numerator, resampling.scale_yx[axis].denominator
    length = resampling.source_yx[axis]
    i = np.arange(*span, dtype=np.int64)
    if resampling.method == "area":
        columns, weights = _area(i, p, q, length)
    else:
        columns, weights = _bilinear(i, p, q, length)
    n_columns = _source_span(resampling, axis, *span)[1] - origin
    row_of = np.repeat(np.arange(i.size), columns.shape[1])
    keep = weights.ravel() > 0
    entries = (weights.ravel()[keep].astype(np.float64), (row_of[keep], columns.ravel()[keep] - origin))
    return _Rows(sparse.csr_array(entries, shape=(i.size, n_columns)), weights.sum(axis=1).astype(np.float64))


def _area(i: NDArray[np.int64], p: int, q: int, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Columns and overlaps, in 1/q pixels, of the intervals [i*p, (i+1)*p) with the pixels [j*q, (j+1)*q)."""
    columns = (i * p // q)[:, None] + np.arange(-(-p // q) + 1)
    start = np.maximum(columns * q, (i * p)[:, None])
    stop = np.minimum((columns + 1) * q, ((i + 1) * p)[:, None])
    return columns, np.where(columns < length, np.maximum(stop - start, 0), 0)


def _bilinear(i: NDArray[np.int64], p: int, q: int, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Columns and weights, in 1/(2q), of the two pixels around ((2i+1)p - q) / 2q; edge pixels repeat."""
    position = (2 * i + 1) * p - q
    left = position // (2 * q)
    right_weight = position - left * 2 * q
    columns = np.clip(np.stack([left, left + 1], axis=1), 0, length - 1)
    return columns, np.stack([2 * q - right_weight, right_weight], axis=1)
