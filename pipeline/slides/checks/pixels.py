"""Conversions of decoded pixels: YCbCr to RGB, alpha to white."""

from __future__ import annotations

import numpy as np

from pipeline.slide_reader import Pixels
from pipeline.slides.checks.image import ASSOCIATED


def rgb_from_ycbcr(tile_YXS: Pixels) -> Pixels:
    """Full-range BT.601 YCbCr to RGB (JFIF 1.02), rounded, for JPEG 2000 that carries YCbCr components."""
    y, cb, cr = (tile_YXS[..., k].astype(np.float64) for k in range(3))
    half = (int(np.iinfo(tile_YXS.dtype).max) + 1) // 2
    red = y + 1.402 * (cr - half)
    green = y - 0.344136 * (cb - half) - 0.714136 * (cr - half)
    blue = y + 1.772 * (cb - half)
    rgb = np.clip(np.rint(np.stack([red, green, blue], axis=-1)), 0, np.iinfo(tile_YXS.dtype).max)
    result: Pixels = rgb.astype(tile_YXS.dtype)
    return result


def over_white(pixels_CYX: Pixels, alpha_kind: int) -> Pixels:
    """Composite colours over white by their alpha, the last channel; rounded half up.

    Unassociated alpha a: c*a + white*(1 - a). Associated alpha (colours already multiplied): c + white*(1 - a).

    Args:
        pixels_CYX: (c, y, x) pixels, alpha last.
        alpha_kind: ASSOCIATED or UNASSOCIATED.

    Returns:
        (c - 1, y, x) pixels of the same type.
    """
    white = int(np.iinfo(pixels_CYX.dtype).max)
    colours, alpha = pixels_CYX[:-1].astype(np.int64), pixels_CYX[-1:].astype(np.int64)
    if alpha_kind == ASSOCIATED:
        mixed = np.minimum(colours + white - alpha, white)
    else:
        mixed = (colours * alpha + white * (white - alpha) + white // 2) // white
    result: Pixels = mixed.astype(pixels_CYX.dtype)
    return result
