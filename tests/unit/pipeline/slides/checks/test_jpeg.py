"""JPEG tiles: the strict decoder gives the pixels of libjpeg."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile

from pipeline.geometry import Box
from pipeline.slides.checks.jpeg import decode_rgb
from pipeline.slides.opening import open_slide
from tests.support.make_slides import noise_image


@pytest.mark.parametrize("quality", [30, 90])
@pytest.mark.parametrize("subsampling", ["444", "422", "420", "411", "440"])
def test_strict_decoder_equals_libjpeg_to_the_bit(subsampling: str, quality: int) -> None:
    """Noise, so also between the samples of subsampled colour."""
    stream = imagecodecs.jpeg8_encode(noise_image(150, 203, 3), level=quality, subsampling=subsampling)
    np.testing.assert_array_equal(decode_rgb(stream), imagecodecs.jpeg8_decode(stream))


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 1), (2, 2), (4, 1)])
def test_subsampled_colour_has_pixels_of_tifffile(tmp_path: Path, subsampling: tuple[int, int]) -> None:
    options: dict[str, Any] = {"compression": "jpeg", "subsampling": subsampling, "resolution": (2e4, 2e4)}
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise_image(150, 203, 3), tile=(64, 64), photometric="rgb", **options)
    found = open_slide(path).read(0, Box(0, 0, 150, 203))
    np.testing.assert_array_equal(found, tifffile.imread(path).transpose(2, 0, 1))
