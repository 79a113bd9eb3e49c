"""Tissue masks from files of any size and mode: which squares are tissue."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import SlideError
from pipeline.inputs.tissue_mask_file import find_mask, read_mask, tissue_from_mask

SLIDE = (300, 400)


def save(path: Path, pixels: NDArray[np.generic], **options: str) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def rings(height: int = 30, width: int = 40) -> NDArray[np.bool_]:
    y, x = np.ogrid[:height, :width]
    return ((y // 3 + x // 4) % 3 == 0) & (y > 2)


# ---- squares ---------------------------------------------------------------------------------------------------------


def by_overlap(mask: NDArray[np.bool_], image_yx: tuple[int, int], factor: int) -> NDArray[np.bool_]:
    """Square by square in fractions of the slide: whether a set mask pixel shares some of its area."""
    found = np.zeros([-(-side // factor) for side in image_yx], bool)
    for at in np.ndindex(*found.shape):
        spans = []
        for axis in (0, 1):
            start, stop = at[axis] * factor, min((at[axis] + 1) * factor, image_yx[axis])
            pixel = Fraction(image_yx[axis], mask.shape[axis])
            spans.append([k for k in range(mask.shape[axis]) if k * pixel < stop and (k + 1) * pixel > start])
        found[at] = mask[np.ix_(*spans)].any()
    return found


@settings(max_examples=80, deadline=None)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.sampled_from([1, 2, 4, 8]),
    st.floats(0.02, 0.6),
)
def test_any_overlap_is_tissue(mask_yx: tuple[int, int], image_yx: tuple[int, int], factor: int, share: float) -> None:
    mask = np.random.default_rng(mask_yx[0] * 100 + image_yx[1]).random(mask_yx) < share
    assert np.array_equal(tissue_from_mask(mask, image_yx, factor), by_overlap(mask, image_yx, factor))


# ---- the file --------------------------------------------------------------------------------------------------------


def test_every_image_mode_gives_same_mask(tmp_path: Path) -> None:
    mask = rings()
    grey = mask * np.uint8(7)
    rgb = np.zeros((30, 40, 3), np.uint8)
    rgb[mask] = (0, 0, 1)
    alpha = np.dstack([np.full((30, 40, 3), 9, np.uint8), grey])
    palette = Image.fromarray(grey)
    palette.putpalette([0, 0, 0] * 256)
    palette.save(tmp_path / "palette.png")
    palette.convert("P").save(tmp_path / "palette.png")
    files = [
        save(tmp_path / "bits.png", mask),
        save(tmp_path / "grey.png", grey),
        save(tmp_path / "grey16.png", grey.astype(np.uint16) * 256),
        save(tmp_path / "rgb.png", rgb),
        save(tmp_path / "alpha.png", alpha),
        save(tmp_path / "grey.tif", grey),
        save(tmp_path / "packed.tif", grey, compression="tiff_lzw"),
        save(tmp_path / "wide.tif", mask.astype(np.int32)),
        tmp_path / "palette.png",
    ]
    for file in files:
        assert np.array_equal(read_mask(file, SLIDE), mask), file.name


@pytest.mark.parametrize("mask_yx", [(30, 40), (31, 40), (29, 39), (3, 4), (300, 400), (599, 801), (1, 1)], ids=str)
def test_mask_with_proportions_of_slide_to_a_pixel_is_accepted(tmp_path: Path, mask_yx: tuple[int, int]) -> None:
    assert read_mask(save(tmp_path / "mask.png", np.ones(mask_yx, np.uint8)), SLIDE).shape == mask_yx


@pytest.mark.parametrize("mask_yx", [(40, 30), (30, 43), (300, 404), (60, 40)], ids=str)
def test_mask_of_other_proportions_is_refused(tmp_path: Path, mask_yx: tuple[int, int]) -> None:
    path = save(tmp_path / "mask.png", np.ones(mask_yx, np.uint8))
    with pytest.raises(SlideError, match=rf"expected a mask of the whole slide.*400 x 300, found {mask_yx[1]} x"):
        read_mask(path, SLIDE)


@pytest.mark.parametrize("raw", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", b"GIF89a\x01\x00\x01\x00\x00\x00\x00;"])
def test_file_that_is_no_mask_is_named(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "mask.png"
    path.write_bytes(raw)
    with pytest.raises(SlideError, match=r"mask\.png: expected a mask, PNG or TIFF, found something else"):
        read_mask(path, SLIDE)


def test_truncated_mask_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(4).integers(0, 255, (300, 400)).astype(np.uint8)
    path = save(tmp_path / "mask.png", noise)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(SlideError, match="expected a mask"):
        read_mask(path, SLIDE)


def test_mask_above_size_limit_is_refused_before_decoding(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.new("1", (12000, 11500)).save(path)
    with pytest.raises(SlideError, match="expected at most 128 million pixels, found 12000 x 11500"):
        read_mask(path, SLIDE)


def test_mask_is_found_in_folder_or_shared(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    one = save(tmp_path / "a" / "b.c.png", np.ones((3, 4), np.uint8))
    other = save(tmp_path / "d.tif", np.ones((3, 4), np.uint8))
    assert find_mask(tmp_path, "a/b.c").path == one
    assert find_mask(tmp_path, "d").path == other
    assert find_mask(one, "whatever").sha256 == hashlib.sha256(one.read_bytes()).hexdigest()
    with pytest.raises(SlideError, match=r"^e: tissue\.method=.*: expected .*e\.png, .*e\.tif, .*found no such file"):
        find_mask(tmp_path, "e")
    with pytest.raises(SlideError, match=r"tissue\.method=otsuu: expected otsu, a mask \(PNG or TIFF\), or a folder"):
        find_mask(Path("otsuu"), "e")


def test_mask_changed_during_the_run_is_refused(tmp_path: Path) -> None:
    found = find_mask(save(tmp_path / "mask.png", rings().astype(np.uint8)), "slide")
    assert found.read(SLIDE).any()
    save(tmp_path / "mask.png", rings().astype(np.uint8) * 2)
    with pytest.raises(SlideError, match="the mask changed during the run"):
        found.read(SLIDE)
