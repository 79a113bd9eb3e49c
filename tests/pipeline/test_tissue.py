"""The tissue stage: one low-resolution picture whatever the blocks, resumed from its small results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.data import immunohistochemistry

from pipeline.tissue import TissueSection, area_mean, tissue_factor, tissue_slide
from pipeline.tissue_mask import TissueParams, find_tissue
from pipeline.work import MapBlocks, Work, serial
from tests.make_store import StopAfter, StoppedError, backwards, put_array, tree_bytes

PLAN = "7" * 64


def slide() -> NDArray[np.uint8]:
    """Glass with a piece of stained tissue on it (c, y, x), no multiple of anything."""
    image = np.full((3, 1337, 1777), 243, np.uint8)
    image[:, 200:709, 600:1105] = immunohistochemistry()[:509, :505].transpose(2, 0, 1)
    return image


def section(mpp: float = 0.5) -> TissueSection:
    factor = tissue_factor(mpp)
    return TissueSection(TissueParams(mpp * factor, min_area_um2=4000, fill_holes_um2=40000, dilate_px=2), factor)


def work(root: Path, image: NDArray[np.uint8], block_px: int) -> Work:
    made = Work(root, (image.shape[1], image.shape[2]), block_px, PLAN)
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
def test_the_mask_is_that_of_the_whole_picture_whatever_the_block(tmp_path: Path, block_px: int) -> None:
    image, how = slide(), section()
    made = work(tmp_path, image, block_px)
    tissue_slide(made, how, serial)
    assert how.params is not None
    whole = find_tissue(area_mean(image, how.factor), how.params).mask
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
    tissue_slide(made, TissueSection(None, 16), serial)
    assert made.store.read("tissue")[:].all()
    assert made.store.facts("tissue")["tissue_px"] == 1337 * 1777


@pytest.mark.parametrize("stop", [0, 1, 5, 11])
def test_stopped_and_run_again_only_the_rest_is_read(tmp_path: Path, stop: int) -> None:
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
