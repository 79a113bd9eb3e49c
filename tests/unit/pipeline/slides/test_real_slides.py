"""Real slides of the shared data: every level has the pixels that tifffile reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from pipeline.errors import SlideError
from pipeline.geometry import Box
from pipeline.slide_reader import TileError
from pipeline.slides.opening import open_slide
from tests.support.make_slides import overwrite_bytes

SLIDES = {
    "CMU-1-Small-Region.svs": ("Aperio SVS", 0.499, [(2967, 2220)]),
    "OS-1-detail.ome.tif": ("OME-TIFF", 0.2271, [(1101, 1101)]),
    "OS-2-ndpi.ome.tif": ("OME-TIFF", 0.2271, [(2202, 2202)]),
    "OS-2-vsi.ome.tif": ("OME-TIFF", 0.34606, [(1445, 1445)]),
    "test3-DAPI-2-(387).ndpi": ("Hamamatsu NDPI", 0.22818, [(4864, 3968), (2432, 1984), (1216, 992), (608, 496)]),
    "test3-TRITC 2 (560).ndpi": ("Hamamatsu NDPI", 0.22818, [(4864, 3968), (2432, 1984), (1216, 992), (608, 496)]),
}
SEED = 11


@pytest.mark.parametrize("name", SLIDES)
def test_real_slide_has_pixels_of_tifffile(shared_data: Path, name: str) -> None:
    path = shared_data / "wsi" / name
    form, mpp, shapes = SLIDES[name]
    slide = open_slide(path)
    assert slide.format == form
    assert slide.mpp_yx == pytest.approx((mpp, mpp), rel=1e-4)
    assert [level.shape_yx for level in slide.levels] == shapes
    assert [level.downsample_yx for level in slide.levels] == [(2**k, 2**k) for k in range(len(shapes))]
    rng = np.random.default_rng(SEED)
    with tifffile.TiffFile(path) as tiff:
        for level, series in enumerate(tiff.series[0].levels):
            expected_CYX = np.moveaxis(series.asarray(), -1, 0)
            for _ in range(4):
                y0, x0 = (int(rng.integers(0, side - 100)) for side in shapes[level])
                box = Box(y0, x0, min(y0 + 700, shapes[level][0]), min(x0 + 900, shapes[level][1]))
                np.testing.assert_array_equal(slide.read(level, box), expected_CYX[:, *box.slices])


def test_description_has_no_personal_data(shared_data: Path) -> None:
    description = str([open_slide(shared_data / "wsi" / name).describe() for name in SLIDES])
    assert not [
        word for word in ("b414003d", "CMU-1", "12/29/09", "CPAPERIOCS", "2017", "950291") if word in description
    ]


def test_renamed_ndpi_is_detected(shared_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    path.write_bytes((shared_data / "wsi" / "test3-TRITC 2 (560).ndpi").read_bytes())
    assert open_slide(path).format == "Hamamatsu NDPI"
    assert len(open_slide(path).levels) == 4


def test_damaged_ndpi_scan_is_located(shared_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "slide.ndpi"
    path.write_bytes((shared_data / "wsi" / "test3-TRITC 2 (560).ndpi").read_bytes())
    slide = open_slide(path)
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages.first.dataoffsets[300], tiff.pages.first.databytecounts[300]
    overwrite_bytes(path, offset + count // 2, bytes(count // 2))
    with pytest.raises(TileError, match=r"tile \(300, 0\)"):
        slide.read(0, Box(2390, 5, 2420, 50))
    assert slide.read(0, Box(2408, 5, 2420, 50)).shape == (3, 12, 45)


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "OS-1-detail.ome.tif", "test3-DAPI-2-(387).ndpi"])
def test_truncated_real_slide_is_refused(shared_data: Path, tmp_path: Path, name: str) -> None:
    data = (shared_data / "wsi" / name).read_bytes()
    for k, part in enumerate((0.999, 0.9, 0.5, 0.01)):
        path = tmp_path / f"{k}-{name}"
        path.write_bytes(data[: int(len(data) * part)])
        with pytest.raises(SlideError):
            read_all(path)


def read_all(path: Path) -> None:
    slide = open_slide(path)
    for level, size in enumerate(slide.levels):
        slide.read(level, Box.of_shape(size.shape_yx))
