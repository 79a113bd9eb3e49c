"""Quality control: sharpness, ink and colour distance of cells, on synthetic pictures and real slides."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage
from skimage.data import immunohistochemistry

from pipeline.geometry import Box
from pipeline.slides.opening import open_slide
from pipeline.slides.resample import Override, resample, resolution, source_box
from pipeline.stages.tissue import area_mean
from pipeline.tissue_detection.quality_control import (
    BLURRED,
    LEAST_TISSUE,
    MEASURES,
    PEN_CELL,
    ImageStrip,
    Quality,
    detail,
    pen_mask,
)
from pipeline.tissue_detection.threshold import TissueParams, find_tissue, polarity_of
from unet_core.model_file.header import describe, resolve
from unet_core.optical_density import StainStatistics

CELL, FACTOR, MPP = 512, 32, 0.25
PARAMS = TissueParams(FACTOR * MPP, min_area_um2=4000, fill_holes_um2=40000, dilate_px=3)
H_AND_E = ["wsi/OS-1-detail.ome.tif", "wsi/CMU-1-Small-Region.svs", "mosaics/he_mosaic.tif"]
KI67 = ["wsi/OS-2-ndpi.ome.tif", "wsi/OS-2-vsi.ome.tif"]
FLUORESCENCE = ["wsi/test3-DAPI-2-(387).ndpi", "wsi/test3-TRITC 2 (560).ndpi"]
SHARP = [*H_AND_E, *KI67]

Pixels = NDArray[np.uint8]


@lru_cache
def image_of(path: Path) -> Pixels:
    """The slide (c, y, x) at 0.25 um per pixel, as a network reads it."""
    slide = open_slide(path)
    override: Override = MPP if path.parent.name == "mosaics" else None
    found = resolution(slide, override, MPP)
    box = Box.of_shape(found.out_yx)
    source = source_box(found.resampling, box)
    pixels: Pixels = resample(slide.read(found.level, source), found.resampling, source, box)
    return pixels


def quality_of(image: Pixels, stain: StainStatistics | None = None) -> Quality:
    thumb = area_mean(image, FACTOR)
    bright = polarity_of(thumb) == "bright-field" and len(thumb) == 3
    tissue = find_tissue(thumb, PARAMS).mask
    pen = pen_mask(thumb, FACTOR * MPP) if bright else np.zeros_like(tissue)
    strip = ImageStrip(thumb, detail(image, FACTOR), tissue, pen, CELL // FACTOR, bright)
    return Quality(strip.measures(stain), (CELL * MPP) ** 2 / 1e6)


def flags_of(image: Pixels, stain: StainStatistics | None = None) -> tuple[str, ...]:
    return quality_of(image, stain).flags(tissue_mm2=1.0)


def blurred(image: Pixels, sigma_px: float) -> Pixels:
    return np.stack(
        [ndimage.gaussian_filter(one.astype(np.float32), sigma_px).round().astype(np.uint8) for one in image]
    )


def with_strokes(image: Pixels, colour: tuple[int, int, int], *lines: tuple[int, int, int, int]) -> Pixels:
    """Draw translucent lines of 0.1 mm (x0, y0, x1, y1) on an image, as a marker does."""
    drawn = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    for line in lines:
        ImageDraw.Draw(drawn).line(line, fill=colour, width=400)
    through = 0.9 * np.asarray(drawn) + 0.1 * image.transpose(1, 2, 0)
    return np.ascontiguousarray(through.round().astype(np.uint8).transpose(2, 0, 1))


# ---- measures against loops ----------------------------------------------------------------------------------------


def by_loops(image: Pixels, factor: int) -> NDArray[np.float64]:
    """Mean squared Laplacian of grey values of k x k averaged pixels, cell by cell and square by square."""
    height, width = image.shape[1:]
    found = np.full((2, -(-height // factor), -(-width // factor)), np.nan)
    kernel = np.array([[0, -1, 0], [-1, 4, -1], [0, -1, 0]], float)
    for layer, k in enumerate((2, 8)):
        for y in range(0, height, CELL):
            for x in range(0, width, CELL):
                grey = image[:, y : y + CELL, x : x + CELL].astype(float).mean(axis=0)
                rows, cols = grey.shape[0] // k, grey.shape[1] // k
                mean = grey[: rows * k, : cols * k].reshape(rows, k, cols, k).mean(axis=(1, 3))
                squares: dict[tuple[int, int], list[float]] = {}
                energy = ndimage.convolve(mean, kernel) ** 2
                for row in range(1, rows - 1):
                    for col in range(1, cols - 1):
                        at = ((y + row * k) // factor, (x + col * k) // factor)
                        squares.setdefault(at, []).append(float(energy[row, col]))
                for at, energies in squares.items():
                    found[layer][at] = np.mean(energies)
    return found


@pytest.mark.parametrize(("shape_yx", "factor"), [((560, 700), 32), ((530, 90), 16), ((40, 41), 8), ((9, 600), 64)])
def test_detail_is_the_mean_squared_laplacian_within_each_cell(shape_yx: tuple[int, int], factor: int) -> None:
    image = np.random.default_rng(factor).integers(0, 256, (3, *shape_yx)).astype(np.uint8)
    found, expected = detail(image, factor), by_loops(image, factor)
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    np.testing.assert_allclose(found, expected, rtol=2e-6)


def test_detail_of_a_block_is_that_of_the_slide() -> None:
    image = np.random.default_rng(1).integers(0, 256, (3, 1100, 1300)).astype(np.uint8)
    whole, squares = detail(image, FACTOR), CELL // FACTOR
    for row, col in np.ndindex(3, 3):
        block = image[:, row * CELL : (row + 1) * CELL, col * CELL : (col + 1) * CELL]
        here = whole[:, row * squares : (row + 1) * squares, col * squares : (col + 1) * squares]
        np.testing.assert_array_equal(detail(block, FACTOR), here)


def test_detail_of_16_bit_equals_8_bit_and_is_undefined_for_other_images() -> None:
    image = np.random.default_rng(2).integers(0, 256, (3, 90, 90)).astype(np.uint8)
    np.testing.assert_array_equal(detail(image.astype(np.uint16) * 257, FACTOR), detail(image, FACTOR))
    assert np.isnan(detail(image[:1], FACTOR)).all()
    assert np.isnan(detail(image, 4)).all(), "squares smaller than a coarse pixel"


def test_measures_of_a_cell_equal_those_computed_by_hand() -> None:
    """Two cells; tissue in the left half of the first is dark, under ink, and of one colour."""
    thumb = np.full((3, 16, 32), 240, np.uint8)
    tissue = np.zeros((16, 32), bool)
    tissue[:, :8] = True
    thumb[:, :, :8] = np.array([40, 30, 60], np.uint8)[:, None, None]
    layers = np.full((2, 16, 32), np.nan, np.float32)
    layers[:, :, :4] = np.array([3.0, 12.0], np.float32)[:, None, None]  # half of the tissue has a sharpness
    pen = np.zeros((16, 32), bool)
    pen[:4, :] = True
    stain = StainStatistics((1.0, 1.0, 1.0), ((0.25, 0, 0), (0, 1, 0), (0, 0, 1)))
    found = ImageStrip(thumb, layers, tissue, pen, 16, True).measures(stain)[:, 0]
    named = dict(zip(MEASURES, found, strict=True))
    density = -np.log((np.array([40, 30, 60]) + 1) / 256)
    distance = np.sqrt(((density - 1) ** 2 / [0.25, 1, 1]).sum())
    expected = {
        "tissue": 0.5,
        "sharpness": 0.25,
        "saturation": 0.5,
        "dark": 1.0,
        "pen": 0.25,
        "stain_distance": distance,
    }
    assert {name: values[0] for name, values in named.items()} == pytest.approx(expected)
    assert named["tissue"][1] == 0
    assert named["pen"][1] == 0.25
    assert all(np.isnan(named[name][1]) for name in ("sharpness", "saturation", "dark", "stain_distance"))


INK = [(20, 130, 60), (30, 60, 170), (15, 120, 150), (25, 22, 28)]
STAINS = [(90, 60, 140), (225, 100, 160), (120, 70, 30), (116, 149, 189)]


@pytest.mark.parametrize(("colour", "is_ink"), [(one, one in INK) for one in (*INK, *STAINS)])
def test_ink_strokes_are_found_and_stains_and_specks_are_not(colour: tuple[int, int, int], is_ink: bool) -> None:
    """Haematoxylin, eosin, DAB, blue counterstain and specks of two squares in an ink's colour are not ink."""
    picture = np.full((3, 60, 60), 243, np.uint8)
    picture[:, 10:20, 5:50] = np.array(colour, np.uint8)[:, None, None]
    for y, x in np.ndindex(6, 15):
        picture[:, 26 + 5 * y : 28 + 5 * y, 4 * x : 4 * x + 2] = np.array(colour, np.uint8)[:, None, None]
    expected = np.zeros((60, 60), bool)
    expected[10:20, 5:50] = is_ink
    assert np.array_equal(pen_mask(picture, 8.0), expected)
    assert np.array_equal(pen_mask(picture.astype(np.uint16) * 257, 8.0), expected)


def test_flags_depend_on_the_number_of_cells() -> None:
    """One of eight cells has too little tissue to be evaluated; its measures do not count."""
    measures = np.zeros((len(MEASURES), 2, 4), np.float32)
    tissue, sharpness, _, _, pen, distance = measures
    tissue[:] = 1
    tissue[1, 3] = LEAST_TISSUE * 0.9
    sharpness[:] = 2 * BLURRED
    quality = Quality(measures, cell_mm2=0.05)
    assert quality.flags(1.0) == ()
    sharpness[1, 3] = 0
    sharpness[0, 0] = BLURRED * 0.9
    distance[0, :3] = 6
    assert quality.flags(0.05) == ("little_tissue",)
    sharpness[0, 1] = 0
    distance[0, 3] = 6
    assert quality.flags(1.0) == ("blurred", "colour_far_from_training")
    assert quality.facts()["blurred_cells"] == 2
    sharpness[:] = 2 * BLURRED
    distance[:] = 0
    pen[0] = PEN_CELL * 0.99
    assert quality.flags(1.0) == ()
    pen[0] = PEN_CELL
    assert quality.flags(1.0) == ("pen",)
    assert quality.facts()["pen_mm2"] == pytest.approx(4 * 0.1 * 0.05)


# ---- real slides ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHARP)
def test_real_slides_are_sharp_and_clean_and_blurred_ones_are_not(shared_data: Path, name: str) -> None:
    image = image_of(shared_data / name)
    assert flags_of(image) == ()
    sharpest = quality_of(image)
    assert not sharpest.blurred.any()
    assert not sharpest.inked.any()
    soft = quality_of(blurred(image, 4.0))
    assert "blurred" in soft.flags(1.0)
    assert soft.blurred[soft.evaluated].mean() > 0.95


@pytest.mark.parametrize("name", ["wsi/OS-1-detail.ome.tif", "wsi/OS-2-vsi.ome.tif"])
def test_sharpness_does_not_depend_on_stain_intensity(shared_data: Path, name: str) -> None:
    image = image_of(shared_data / name)
    paler = (255 - (255 - image.astype(float)) * 0.4).round().astype(np.uint8)
    for one in (image, paler):
        assert "blurred" not in flags_of(one)
        assert "blurred" in flags_of(blurred(one, 4.0))


@pytest.mark.parametrize("colour", [INK[0], *(pytest.param(one, marks=pytest.mark.long) for one in INK[1:])], ids=str)
@pytest.mark.parametrize(
    "name",
    [
        "wsi/CMU-1-Small-Region.svs",
        pytest.param("wsi/OS-2-vsi.ome.tif", marks=pytest.mark.long),
        pytest.param("mosaics/he_mosaic.tif", marks=pytest.mark.long),
    ],
)
def test_pen_on_tissue_and_on_glass_is_flagged(shared_data: Path, name: str, colour: tuple[int, int, int]) -> None:
    image = image_of(shared_data / name)
    height, width = image.shape[1:]
    inked = with_strokes(image, colour, (300, 300, width - 300, height - 300))
    assert "pen" in flags_of(inked)
    glass = with_strokes(np.full_like(image, 243), colour, (300, height // 2, width - 300, height // 2))
    quality = quality_of(glass)
    assert "pen" in quality.flags(1.0)
    assert quality.inked.any(axis=1).sum() <= 3, "only the cells under the stroke"


def test_immunohistochemistry_of_another_scanner_is_clean() -> None:
    image = np.ascontiguousarray(immunohistochemistry().transpose(2, 0, 1))
    assert not quality_of(image).inked.any()
    assert "blurred" not in flags_of(image)


@pytest.mark.parametrize(("names", "far"), [(SHARP, False), (FLUORESCENCE, True)], ids=["stained", "fluorescence"])
def test_fluorescence_is_flagged_as_far_from_training_colours(shared_data: Path, names: list[str], far: bool) -> None:
    stain = describe(resolve("nuclei@1")).spec.stain
    assert stain is not None
    for name in names:
        quality = quality_of(image_of(shared_data / name), stain)
        assert ("colour_far_from_training" in quality.flags(1.0)) == far, name
        median = quality.facts()["stain_distance"]
        assert median > 13 if far else median < 2, (name, median)


def test_grey_images_have_the_stain_distance_of_repeated_channels() -> None:
    stain = StainStatistics((0.7, 0.7, 0.7), ((0.1, 0, 0), (0, 0.1, 0), (0, 0, 0.1)))
    grey = np.full((1, 512, 512), 127, np.uint8)
    colour = np.repeat(grey, 3, axis=0)
    found = [quality_of(image, stain)["stain_distance"][0, 0] for image in (grey, colour)]
    assert found[0] == found[1] < 0.1
    assert np.isnan(quality_of(np.repeat(grey, 5, axis=0), stain)["stain_distance"]).all()
