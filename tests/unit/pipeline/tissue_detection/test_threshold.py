"""Tissue masks: tissue is never left out, glass is, and doubtful areas count as tissue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.geometry import Box
from pipeline.slides.opening import open_slide
from pipeline.slides.resample import Override, resample, resolution, source_box
from pipeline.tissue_detection.threshold import TissueParams, find_tissue, polarity_of

MPP = 8.0
PARAMS = TissueParams(mpp_um=MPP, min_area_um2=4000, fill_holes_um2=40000)
GLASS, PINK, BLUE = (243, 242, 244), (225, 170, 200), (90, 60, 140)


def glass(height: int = 100, width: int = 120) -> NDArray[np.uint8]:
    """Empty bright field (3, y, x)."""
    return np.broadcast_to(np.array(GLASS, np.uint8)[:, None, None], (3, height, width)).copy()


def paint(image: NDArray[np.uint8], box: Box, colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    image[:, *box.slices] = np.array(colour, np.uint8)[:, None, None]
    return image


def thumbnail(path: Path, override: Override = None) -> NDArray[np.uint8]:
    slide = open_slide(path)
    found = resolution(slide, override, MPP)
    out = Box.of_shape(found.out_yx)
    source = source_box(found.resampling, out)
    return resample(slide.read(found.level, source), found.resampling, source, out)


def test_tissue_on_glass_is_found() -> None:
    result = find_tissue(paint(glass(), Box(30, 40, 70, 90), PINK), PARAMS)
    expected = np.zeros((100, 120), bool)
    expected[30:70, 40:90] = True
    assert (result.method, result.flags) == ("otsu", ())
    assert (result.mask & expected).sum() == expected.sum()
    assert result.mask.sum() <= 46 * 56


def test_dilation_reaches_every_pixel_within_the_radius() -> None:
    image, radius = paint(glass(), Box(30, 40, 70, 90), PINK), 5
    mask = find_tissue(image, PARAMS).mask
    grown = find_tissue(image, TissueParams(MPP, 4000, 40000, radius)).mask
    for y, x in np.ndindex(mask.shape):
        seen = mask[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1].any()
        assert grown[y, x] == seen


@pytest.mark.parametrize("height", [255, 256, 257, 700])
def test_strips_of_a_large_picture_equal_the_whole(height: int) -> None:
    """A picture processed in strips of rows has the pixels of scipy and scikit-image on the whole."""
    rng = np.random.default_rng(height)
    tissue = (np.add.outer(np.arange(height) // 37, np.arange(90) // 41) % 3 == 0)[None]
    image = np.where(tissue, np.array(PINK)[:, None, None], np.array(GLASS)[:, None, None])
    image = np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)
    smooth = np.stack([ndimage.gaussian_filter(channel / 255.0, 1.0, mode="nearest") for channel in image])
    saturation = (smooth.max(axis=0) - smooth.min(axis=0)) / smooth.max(axis=0)
    found = find_tissue(image, TissueParams(MPP, min_area_um2=0, fill_holes_um2=0))
    assert found.threshold == 0.05  # the upper limit
    np.testing.assert_array_equal(found.mask, (saturation > 0.05) | (smooth.mean(axis=0) < 0.7))


def test_small_islands_are_removed_and_small_holes_filled() -> None:
    image = paint(paint(glass(), Box(20, 20, 80, 80), PINK), Box(40, 40, 55, 55), GLASS)
    image = paint(image, Box(90, 110, 93, 113), BLUE)
    mask = find_tissue(image, PARAMS).mask
    assert mask[40:55, 40:55].all()
    assert not mask[85:, 105:].any()
    without = find_tissue(image, TissueParams(MPP, min_area_um2=0, fill_holes_um2=0)).mask
    assert not without[45:50, 45:50].any()
    assert without[91, 111]


def test_crowded_specks_are_tissue() -> None:
    """Pale tissue consists of many stained specks, none of which is large enough alone."""
    specks = [Box(y, x, y + 2, x + 2) for y in range(20, 80, 6) for x in range(20, 80, 6)]
    image = glass()
    for box in specks:
        paint(image, box, BLUE)
    crowd = find_tissue(image, PARAMS).mask
    assert all(crowd[box.slices].all() for box in specks)
    assert not find_tissue(paint(glass(), specks[0], BLUE), PARAMS).mask.any()


def test_dark_grey_is_tissue() -> None:
    assert find_tissue(paint(glass(), Box(30, 30, 60, 60), (60, 60, 60)), PARAMS).mask[30:60, 30:60].all()


@pytest.mark.parametrize("colour", [PINK, BLUE, (200, 150, 190)])
def test_an_image_of_one_stain_is_tissue_throughout(colour: tuple[int, int, int]) -> None:
    assert find_tissue(paint(glass(), Box(0, 0, 100, 120), colour), PARAMS).mask.all()


def test_an_empty_slide_has_no_tissue_and_a_flag() -> None:
    result = find_tissue(glass(), PARAMS)
    assert not result.mask.any()
    assert result.flags == ("no tissue found",)


@pytest.mark.parametrize("side", [3, 20, 25])
def test_a_small_empty_slide_is_not_filled_as_a_hole(side: int) -> None:
    """25 px of 8 um are 40,000 um2: as a hole, all of it would be filled."""
    assert not find_tissue(glass(side, side), PARAMS).mask.any()


@pytest.mark.parametrize("value", [0, 20])
def test_a_dark_field_is_tissue_throughout(value: int) -> None:
    picture = np.full((3, 30, 40), value, np.uint8)
    result = find_tissue(picture, PARAMS)
    assert result.mask.all()
    assert (result.method, result.threshold) == ("off: not bright-field", None)
    assert polarity_of(picture) == polarity_of(picture[:1].astype(np.uint16) * 257) == "dark-field"


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_than_rgb_is_tissue_throughout(channels: int) -> None:
    picture = np.full((channels, 30, 40), 240, np.uint8)
    assert find_tissue(picture, PARAMS).mask.all()
    assert (find_tissue(picture, PARAMS).method, polarity_of(picture)) == ("off: not RGB", "bright-field")


def test_sixteen_bit_equals_eight_bit() -> None:
    image = paint(glass(), Box(30, 40, 70, 90), PINK)
    wide = find_tissue(image.astype(np.uint16) * 257, PARAMS)
    np.testing.assert_array_equal(wide.mask, find_tissue(image, PARAMS).mask)


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (3, 2)])
def test_tiny_pictures_have_a_mask(shape: tuple[int, int]) -> None:
    assert find_tissue(glass(*shape), PARAMS).mask.shape == shape


@pytest.mark.parametrize(
    ("name", "override"),
    [
        ("mosaics/he_mosaic.tif", 0.25),
        ("wsi/OS-1-detail.ome.tif", None),
        ("wsi/OS-2-ndpi.ome.tif", None),
        ("wsi/OS-2-vsi.ome.tif", None),
    ],
)
def test_real_crops_without_glass_are_tissue(shared_data: Path, name: str, override: Override) -> None:
    """The mask is dilated by a halo of 92 px at 0.25 um, as in a run."""
    params = TissueParams(MPP, min_area_um2=4000, fill_holes_um2=40000, dilate_px=3)
    assert find_tissue(thumbnail(shared_data / name, override), params).mask.mean() >= 0.95


def test_glass_of_a_real_slide_is_left_out(shared_data: Path) -> None:
    result = find_tissue(thumbnail(shared_data / "wsi" / "CMU-1-Small-Region.svs"), PARAMS)
    assert 0.36 < result.mask.mean() < 0.46
    assert result.mask[120:160, 60:80].all()
    assert not result.mask[100:180, :25].any()


@pytest.mark.parametrize("name", ["test3-DAPI-2-(387).ndpi", "test3-TRITC 2 (560).ndpi"])
def test_real_fluorescence_is_tissue_throughout(shared_data: Path, name: str) -> None:
    picture = thumbnail(shared_data / "wsi" / name)
    assert polarity_of(picture) == "dark-field"
    assert find_tissue(picture, PARAMS).method == "off: not bright-field"
    assert find_tissue(picture, PARAMS).mask.all()
