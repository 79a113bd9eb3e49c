"""The tissue stage: one thumbnail for any blocks, resumed from its small results."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage.data import immunohistochemistry

from pipeline.execution.blocks import MapBlocks, StageContext, serial
from pipeline.inputs.regions import Regions
from pipeline.inputs.tissue_mask_file import find_mask, tissue_from_mask
from pipeline.stages.tissue import TissueInputs, area_mean, tissue_slide
from pipeline.storage.layout import tissue_factor
from pipeline.tissue_detection.quality_control import MEASURES, ImageStrip, Quality, detail, pen_mask
from pipeline.tissue_detection.threshold import TissueParams, find_tissue
from tests.support.make_store import StopAfter, StoppedError, backwards, put_array, tree_bytes
from tests.unit.pipeline.stage_inputs import image_info

PLAN = "7" * 64


def slide() -> NDArray[np.uint8]:
    """Glass with a piece of stained tissue (c, y, x), of no round size."""
    image = np.full((3, 1337, 1777), 243, np.uint8)
    image[:, 200:709, 600:1105] = immunohistochemistry()[:509, :505].transpose(2, 0, 1)
    return image


def section(mpp: float = 0.5) -> TissueInputs:
    factor = tissue_factor(mpp)
    how = TissueParams(mpp * factor, min_area_um2=4000, fill_holes_um2=40000, dilate_px=2)
    return TissueInputs(how, factor, image_info(mpp), regions=None, stain=None, exclude_qc=False, normalisations=())


def work(root: Path, image: NDArray[np.uint8], block_px: int) -> StageContext:
    made = StageContext(root, (image.shape[1], image.shape[2]), block_px, PLAN)
    put_array(made.store, "0", image, "1" * 64, block_px)
    return made


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 2, 4, 8, 16]), st.integers(0, 2**32 - 1))
def test_area_mean_is_the_mean_of_what_exists(height: int, width: int, factor: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (2, height, width)).astype(np.uint8)
    found = area_mean(image, factor)
    for c, y, x in np.ndindex(*found.shape):
        square = image[c, y * factor : (y + 1) * factor, x * factor : (x + 1) * factor].astype(int)
        assert found[c, y, x] == int(square.mean() + 0.5), "rounded half up"


@pytest.mark.parametrize(
    ("mpp", "factor"), [(0.05, 64), (0.125, 64), (0.25, 32), (0.26, 16), (1.0, 8), (8.0, 1), (9, 1)]
)
def test_a_tissue_pixel_is_at_most_8_um_and_divides_a_cell(mpp: float, factor: int) -> None:
    assert tissue_factor(mpp) == factor
    assert 512 % factor == 0


@pytest.mark.parametrize("block_px", [512, 1024, 2048])
def test_mask_does_not_depend_on_blocks(tmp_path: Path, block_px: int) -> None:
    image, how = slide(), section()
    made = work(tmp_path, image, block_px)
    tissue_slide(made, how, serial)
    assert isinstance(how.how, TissueParams)
    whole = find_tissue(area_mean(image, how.factor), how.how).mask
    assert np.array_equal(made.store.read("tissue")[:], whole)
    assert 0.1 < whole.mean() < 0.5


def test_facts_count_image_pixels_exactly(tmp_path: Path) -> None:
    image, how = slide(), section()
    made = work(tmp_path, image, 512)
    tissue_slide(made, how, serial)
    mask = made.store.read("tissue")[:]
    grown = np.kron(mask, np.ones((how.factor, how.factor), bool))[: image.shape[1], : image.shape[2]]
    assert made.store.facts("tissue")["tissue_px"] == grown.sum()
    assert made.store.facts("tissue")["method"].startswith("otsu")


def test_switched_off_everything_is_tissue(tmp_path: Path) -> None:
    made = work(tmp_path, slide(), 1024)
    tissue_slide(made, replace(section(), how=None, factor=16), serial)
    assert made.store.read("tissue")[:].all()
    assert made.store.facts("tissue")["tissue_px"] == 1337 * 1777


@pytest.mark.parametrize("stop", [0, 1, 5, 11])
def test_stopped_stage_reads_only_remaining_blocks(tmp_path: Path, stop: int) -> None:
    image = slide()
    whole = work(tmp_path / "whole", image, 512)
    tissue_slide(whole, section(), backwards)
    made = work(tmp_path / "stopped", image, 512)
    stopping: MapBlocks = StopAfter(stop)
    with pytest.raises(StoppedError):
        tissue_slide(made, section(), stopping)
    report = tissue_slide(made, section(), serial)
    assert (report.blocks, report.computed) == (12, 12 - stop)
    assert tree_bytes(made.root) == tree_bytes(whole.root)


# ---- regions, masks, quality ---------------------------------------------------------------------------------------


def area(folder: Path, *corners: tuple[float, float]) -> Regions:
    ring = [list(corner) for corner in [*corners, corners[0]]]
    (folder / "drawn.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    return Regions.read(folder / "drawn.geojson")


def test_tissue_of_each_region_is_counted_square_by_square(tmp_path: Path) -> None:
    """A square counts where its centre lies, with its existing pixels; the first of two regions gets it."""
    one = area(tmp_path, (900.0, 300.0), (2300.0, 500.0), (1500.0, 1500.0))
    two = area(tmp_path, (1200.0, 400.0), (3500.0, 400.0), (3500.0, 2600.0), (1200.0, 2600.0))
    regions = Regions(("one", "two", "nowhere"), ("", "", ""), (*one.areas, *two.areas, shapely.box(0, 0, 9, 9).wkb))
    scale, image = (1.9, 2.1), slide()
    counts = []
    for block_px in (512, 1024):
        how = replace(section(), regions=regions, image=image_info(0.5, scale))
        made = work(tmp_path / str(block_px), image, block_px)
        counts.append(tissue_slide(made, how, serial).facts["region_tissue_px"])
    mask, factor = made.store.read("tissue")[:], how.factor
    expected = [0, 0, 0]
    polygons = [shapely.from_wkb(one) for one in regions.areas]
    for row, col in np.argwhere(mask):
        below, right = min((row + 1) * factor, 1337), min((col + 1) * factor, 1777)
        centre = shapely.Point(scale[1] * (col * factor + right) / 2, scale[0] * (row * factor + below) / 2)
        inside = [number for number, polygon in enumerate(polygons) if polygon.intersects(centre)]
        if inside:
            expected[inside[0]] += (below - row * factor) * (right - col * factor)
    assert counts == [expected, expected]
    assert min(expected[:2]) > 10_000
    assert expected[2] == 0


def test_a_mask_from_a_file_is_taken_as_it_is(tmp_path: Path) -> None:
    mask = np.zeros((135, 178), np.uint8)
    mask[20:90, 100] = 1  # a line of a tenth of the image's pixels: no island is dropped, no hole filled
    Image.fromarray(mask).save(tmp_path / "mask.png")
    made = work(tmp_path, slide(), 512)
    how = replace(section(), how=find_mask(tmp_path / "mask.png", "slide"))
    report = tissue_slide(made, how, serial)
    assert report.facts["method"] == "mask mask.png"
    assert np.array_equal(made.store.read("tissue")[:], tissue_from_mask(mask != 0, (1337, 1777), how.factor))


@pytest.mark.parametrize("block_px", [512, 2048])
def test_quality_does_not_depend_on_blocks(tmp_path: Path, block_px: int) -> None:
    image, how = slide(), section()
    made = work(tmp_path, image, block_px)
    report = tissue_slide(made, how, serial)
    thumb, tissue = area_mean(image, how.factor), made.store.read("tissue")[:]
    pen = pen_mask(thumb, how.factor * how.image.mpp)
    strip = ImageStrip(thumb, detail(image, how.factor), tissue, pen, 512 // how.factor, bright_field=True)
    stored = made.store.read("quality")[:]
    assert stored.shape == (len(MEASURES), 3, 4)
    np.testing.assert_array_equal(stored, strip.measures(None))
    assert report.facts["polarity"] == "bright-field"
    assert report.facts["quality"]["cells"] == (stored[0] >= 0.25).sum() == 2


def test_flagged_cells_are_excluded_only_when_configured(tmp_path: Path) -> None:
    image = slide()
    soft = [ndimage.gaussian_filter(one.astype(np.float32), 4.0).round().astype(np.uint8) for one in image]
    image[:, :, :1024] = np.stack(soft)[:, :, :1024]
    facts, masks = [], []
    for exclude in (False, True):
        made = work(tmp_path / str(exclude), image, 1024)
        facts.append(tissue_slide(made, replace(section(), exclude_qc=exclude), serial).facts)
        masks.append(made.store.read("tissue")[:])
        quality = Quality(made.store.read("quality")[:], 1.0)
    flagged = np.kron(quality.blurred | quality.inked, np.ones((512 // section().factor,) * 2, bool))
    flagged = flagged[: masks[0].shape[0], : masks[0].shape[1]]
    assert facts[0]["flags"] == facts[1]["flags"] == ["blurred", "little_tissue"]
    assert 0 < (masks[0] & flagged).sum() < masks[0].sum()
    assert np.array_equal(masks[1], masks[0] & ~flagged)
    assert facts[1]["tissue_px"] < facts[0]["tissue_px"]
    assert facts[0]["quality"] == facts[1]["quality"]
