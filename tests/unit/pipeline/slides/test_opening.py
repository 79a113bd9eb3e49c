"""Every supported layout reads as the pixels that were written; metadata is checked."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tblib.pickling_support
import tifffile
from numpy.typing import NDArray

from pipeline.errors import SlideError
from pipeline.geometry import Box
from pipeline.slide_reader import SlideReader, TileError, downsample_yx, is_reduction
from pipeline.slides.opening import open_slide
from tests.support.make_slides import (
    CANARIES,
    Recipe,
    halved,
    noise_image,
    overwrite_bytes,
    overwrite_tag,
    stained_image,
    tile_span,
    write_ome,
    write_svs,
    write_tiff,
)

SEED = 7


def planes_of(image: NDArray[Any]) -> NDArray[Any]:
    """(y, x) or (y, x, s) as (c, y, x)."""
    return image[None] if image.ndim == 2 else np.moveaxis(image, -1, 0)


def boxes(shape_yx: tuple[int, int], count: int = 12) -> Iterator[Box]:
    """The whole image, its corners, and seeded boxes inside it."""
    height, width = shape_yx
    yield Box.of_shape(shape_yx)
    yield Box(0, 0, 1, 1)
    yield Box(height - 1, width - 1, height, width)
    rng = np.random.default_rng(SEED)
    for _ in range(count):
        y = np.sort(rng.integers(0, height + 1, 2))
        x = np.sort(rng.integers(0, width + 1, 2))
        if y[0] < y[1] and x[0] < x[1]:
            yield Box(int(y[0]), int(x[0]), int(y[1]), int(x[1]))


def assert_reads(slide: SlideReader, level: int, expected_CYX: NDArray[Any]) -> None:
    assert slide.levels[level].shape_yx == expected_CYX.shape[1:]
    for box in boxes(slide.levels[level].shape_yx):
        found = slide.read(level, box)
        assert found.flags.c_contiguous
        assert found.flags.owndata
        assert found.dtype == expected_CYX.dtype
        np.testing.assert_array_equal(found, expected_CYX[:, *box.slices], err_msg=str(box))


LOSSLESS = {
    "deflate": Recipe(),
    "deflate, predictor": Recipe(predictor=True),
    "LZW": Recipe(compression="lzw"),
    "zstd": Recipe(compression="zstd"),
    "PackBits": Recipe(compression="packbits"),
    "plain": Recipe(compression=None),
    "plain, big-endian": Recipe(compression=None, byteorder=">"),
    "deflate, big-endian, predictor": Recipe(byteorder=">", predictor=True),
    "BigTIFF": Recipe(bigtiff=True),
    "BigTIFF, big-endian": Recipe(bigtiff=True, byteorder=">"),
    "planes": Recipe(planar=True),
    "planes, plain": Recipe(planar=True, compression=None),
    "planes, plain strips": Recipe(planar=True, compression=None, tile=None, rows_per_strip=9),
    "strips of 7": Recipe(tile=None, rows_per_strip=7),
    "one deflate strip": Recipe(tile=None, rows_per_strip=1000),
    "one plain strip": Recipe(tile=None, compression=None, rows_per_strip=1000),
    "plain strips": Recipe(tile=None, compression=None, rows_per_strip=16),
    "JPEG 2000": Recipe(compression="jpeg2000"),
}


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_layouts_have_pixels_as_written(tmp_path: Path, name: str, dtype: type, samples: int) -> None:
    image = noise_image(150, 203, samples, dtype)
    slide = open_slide(write_tiff(tmp_path / "a.tif", image, LOSSLESS[name]))
    assert (slide.format, slide.channels, slide.dtype) == ("TIFF", samples, np.dtype(dtype))
    assert_reads(slide, 0, planes_of(image))


@pytest.mark.parametrize("recipe", [Recipe("jpeg"), Recipe("jpeg", planar=True), Recipe("jpeg", None, 24)])
@pytest.mark.parametrize("samples", [1, 3])
def test_jpeg_has_pixels_of_tifffile(tmp_path: Path, recipe: Recipe, samples: int) -> None:
    image = stained_image(150, 203)
    path = write_tiff(tmp_path / "a.tif", image if samples == 3 else image[..., 0].copy(), recipe)
    expected = tifffile.imread(path)
    assert_reads(open_slide(path), 0, expected if recipe.planar and samples == 3 else planes_of(expected))


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 5000), (5000, 1), (3, 2), (63, 65), (64, 64), (65, 63), (127, 128), (129, 16)]
)
@pytest.mark.parametrize("recipe", [Recipe(), Recipe(tile=None, rows_per_strip=16), Recipe("jpeg")])
def test_sizes_around_the_tile_size_are_read(tmp_path: Path, shape: tuple[int, int], recipe: Recipe) -> None:
    image = noise_image(*shape, 3)
    path = write_tiff(tmp_path / "a.tif", image, recipe)
    expected = image if recipe.compression == "deflate" else tifffile.imread(path).reshape(image.shape)
    assert_reads(open_slide(path), 0, planes_of(expected))


def test_large_uncompressed_strip_is_read_in_pieces(tmp_path: Path) -> None:
    image = noise_image(1500, 2000, 3)
    slide = open_slide(write_tiff(tmp_path / "a.tif", image, Recipe(None, None, 1500)))
    assert slide.describe()["levels"][0]["tile_yx"][0] < 200
    assert_reads(slide, 0, planes_of(image))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_alpha_is_composited_over_white(tmp_path: Path, dtype: type) -> None:
    image, white = noise_image(70, 90, 4, dtype), np.iinfo(dtype).max
    image[:20, :, 3], image[20:40, :, 3] = 0, white
    colours, alpha = image[..., :3].astype(object), image[..., 3:].astype(object)
    mixed = (2 * (colours * alpha + white * (white - alpha)) + white) // (2 * white)
    unassociated = open_slide(write_tiff(tmp_path / "u.tif", image, Recipe(extrasamples=(2,))))
    assert unassociated.channels == 3
    assert_reads(unassociated, 0, planes_of(mixed.astype(dtype)))
    image[..., :3] = np.minimum(image[..., :3], image[..., 3:])
    associated = open_slide(write_tiff(tmp_path / "a.tif", image, Recipe(extrasamples=(1,))))
    assert_reads(associated, 0, planes_of((image[..., :3] + (white - image[..., 3:])).astype(dtype)))


def test_grey_with_alpha_and_grey_with_extra_channels_are_read(tmp_path: Path) -> None:
    image = noise_image(70, 90, 2)
    image[..., 1] = 255
    options: dict[str, Any] = {"photometric": "minisblack", "planarconfig": "contig", "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", image, extrasamples=(2,), **options)
    assert_reads(open_slide(tmp_path / "a.tif"), 0, planes_of(image[..., 0]))
    image = noise_image(70, 90, 5)
    tifffile.imwrite(tmp_path / "b.tif", image, extrasamples=(0,) * 4, **options)
    assert_reads(open_slide(tmp_path / "b.tif"), 0, planes_of(image))


def test_aperio_jpeg_2000_in_ycbcr_becomes_rgb(tmp_path: Path) -> None:
    ycbcr = np.empty((64, 64, 3), np.uint8)
    ycbcr[:] = (76, 85, 255)  # pure red in full-range BT.601
    path = write_tiff(tmp_path / "a.tif", ycbcr, Recipe("jpeg2000"))
    overwrite_tag(path, 259, 33003)
    red = open_slide(path).read(0, Box(0, 0, 1, 1))[:, 0, 0]
    assert red.tolist() == [254, 0, 0]


@pytest.mark.parametrize("layout", ["pages", "subifds"])
def test_every_level_of_a_pyramid_is_read(tmp_path: Path, layout: str) -> None:
    image = noise_image(301, 403, 3)
    slide = open_slide(write_tiff(tmp_path / "a.tif", image, Recipe(levels=3, layout=layout)))
    assert [level.downsample_yx for level in slide.levels] == [(1, 1), (2, 2), (4, 4)]
    for level in range(3):
        assert_reads(slide, level, planes_of(image))
        image = halved(image)


def test_levels_are_found_in_any_order_and_other_images_ignored(tmp_path: Path) -> None:
    image = noise_image(256, 384, 3)
    quarter = halved(halved(image)).copy()
    pictures = [quarter, noise_image(100, 384, 3), image, noise_image(60, 90), halved(image).copy()]
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for picture in pictures:
            photometric = "rgb" if picture.ndim == 3 else "minisblack"
            writer.write(picture, tile=(64, 64), photometric=photometric, metadata=None, compression="deflate")
    slide = open_slide(tmp_path / "a.tif")
    assert [level.shape_yx for level in slide.levels] == [(256, 384), (128, 192), (64, 96)]
    assert_reads(slide, 0, planes_of(image))
    assert_reads(slide, 2, planes_of(quarter))


def test_aperio_levels_and_resolution_without_personal_data(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "CANARY-PATH.svs", stained_image(300, 400), mpp=0.2525, levels=3)
    slide = open_slide(path)
    assert slide.format == "Aperio SVS"
    assert slide.mpp_yx == (0.2525, 0.2525)
    assert [level.shape_yx for level in slide.levels] == [(300, 400), (150, 200), (75, 100)]
    with tifffile.TiffFile(path) as tiff:
        for level, series in enumerate(tiff.series[0].levels):
            assert_reads(slide, level, planes_of(series.asarray()))
    description = f"{slide.describe()} {slide.fingerprint()} {slide.format}"
    assert not [canary for canary in (*CANARIES, "CANARY-PATH") if canary in description]


def test_aperio_label_and_macro_are_never_opened(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "a.svs", stained_image(200, 300))
    with tifffile.TiffFile(path) as tiff:
        strips = [page for page in tiff.pages if not page.is_tiled]
        spans = [span for page in strips for span in zip(page.dataoffsets, page.databytecounts, strict=True)]
    for offset, count in spans:
        overwrite_bytes(path, offset, b"\xee" * count)
    assert len(spans) > 3
    assert open_slide(path).read(0, Box(0, 0, 200, 300)).shape == (3, 200, 300)


@pytest.mark.parametrize("levels", [1, 3])
def test_ome_channels_in_separate_images_are_read(tmp_path: Path, levels: int) -> None:
    planes = np.stack([noise_image(130, 170, dtype=np.uint16) // (k + 1) for k in range(4)])
    slide = open_slide(write_ome(tmp_path / "a.ome.tif", planes, mpp=0.325, levels=levels))
    assert (slide.format, slide.channels, len(slide.levels)) == ("OME-TIFF", 4, levels)
    assert slide.mpp_yx == pytest.approx((0.325, 0.325))
    for level in range(levels):
        assert_reads(slide, level, planes[:, :: 2**level, :: 2**level])


def test_ome_rgb_with_subimages_is_read(tmp_path: Path) -> None:
    image = noise_image(128, 192, 3)
    options: dict[str, Any] = {"photometric": "rgb", "tile": (64, 64), "compression": "deflate"}
    metadata = {"axes": "YXS", "PhysicalSizeX": 250, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.25}
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as writer:
        writer.write(image, subifds=1, metadata=metadata, **options)
        writer.write(halved(image).copy(), subfiletype=1, **options)
    slide = open_slide(tmp_path / "a.ome.tif")
    assert slide.mpp_yx == pytest.approx((0.25, 0.25))
    assert_reads(slide, 0, planes_of(image))
    assert_reads(slide, 1, planes_of(halved(image)))


@pytest.mark.parametrize(("axes", "phrase"), [("ZYX", "5 focal planes"), ("TYX", "5 time points")])
def test_ome_stacks_are_refused_by_name(tmp_path: Path, axes: str, phrase: str) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, np.zeros((5, 64, 64), np.uint8), metadata={"axes": axes}, photometric="minisblack")
    with pytest.raises(SlideError, match=phrase):
        open_slide(path)


def test_ome_pixels_in_other_files_are_refused_but_renamed_file_is_read(tmp_path: Path) -> None:
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1"><Image ID="Image:0"><Pixels '
        'ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="80" SizeY="64" SizeC="1" SizeZ="1" SizeT="1">'
        '<TiffData IFD="0"><UUID FileName="old-name.tif">urn:uuid:{}</UUID></TiffData></Pixels></Image></OME>'
    )
    image = noise_image(64, 80)
    mine, other = (
        write_tiff(tmp_path / f"{k}.ome.tif", image, Recipe(description=xml.format(k), mpp=None)) for k in (1, 2)
    )
    assert open_slide(mine).format == "OME-TIFF"
    assert open_slide(mine).mpp_yx is None
    with pytest.raises(SlideError, match="pixels lie in other files"):
        open_slide(other)
    larger = write_tiff(tmp_path / "3.ome.tif", noise_image(64, 81), Recipe(description=xml.format(1)))
    with pytest.raises(SlideError, match="promises 1 channels of 80 x 64 px"):
        open_slide(larger)


@pytest.mark.parametrize(
    ("resolution", "unit", "expected"),
    [
        ((40000, 40000), "CENTIMETER", (0.25, 0.25)),
        ((50800, 101600), "INCH", (0.25, 0.5)),
        ((1, 1), "NONE", None),
        ((1, 1), "CENTIMETER", None),
        ((40000, 40000), "NONE", None),
        ((72, 72), "INCH", (25400 / 72, 25400 / 72)),
    ],
)
def test_stated_resolution_needs_a_unit_of_length(
    tmp_path: Path, resolution: tuple[int, int], unit: str, expected: tuple[float, float] | None
) -> None:
    options: dict[str, Any] = {"resolution": resolution, "resolutionunit": unit, "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", noise_image(20, 20), **options)
    found = open_slide(tmp_path / "a.tif").mpp_yx
    assert found == (None if expected is None else pytest.approx(expected))


def test_aperio_without_mpp_has_no_resolution(tmp_path: Path) -> None:
    assert open_slide(write_svs(tmp_path / "a.svs", stained_image(100, 100), mpp=None)).mpp_yx is None


@pytest.mark.parametrize(
    ("software", "description", "phrase"),
    [
        ("Philips DP v1.0", None, "Philips TIFF"),
        ("PerkinElmer-QPI", None, "QPTIFF"),
        ("", "<scn></scn>", "Leica SCN"),
        ("", "ImageJ=1.53\nimages=5\nslices=5\n", "ImageJ stack"),
    ],
)
def test_unsupported_layouts_are_refused_by_name(
    tmp_path: Path, software: str, description: str | None, phrase: str
) -> None:
    options: dict[str, Any] = {"software": software, "description": description, "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", noise_image(64, 64), tile=(64, 64), **options)
    with pytest.raises(SlideError, match=phrase):
        open_slide(tmp_path / "a.tif")


def test_only_tiles_under_a_box_are_decoded_and_damaged_one_is_located(tmp_path: Path) -> None:
    image = noise_image(200, 300, 3)
    path = write_tiff(tmp_path / "a.tif", image)
    offset, count = tile_span(path, 7)
    overwrite_bytes(path, offset, bytes(count))
    slide = open_slide(path)
    around = [Box(0, 0, 64, 300), Box(64, 0, 128, 128), Box(64, 192, 128, 300), Box(128, 0, 200, 300)]
    for box in around:
        np.testing.assert_array_equal(slide.read(0, box), planes_of(image)[:, *box.slices])
    with pytest.raises(TileError, match=r"a\.tif: level 0, tile \(1, 2\)") as caught:
        slide.read(0, Box(100, 100, 140, 140))
    tblib.pickling_support.install()  # as dask does: causes are pickled too
    place = pickle.loads(pickle.dumps(caught.value)).place
    assert (place.level, place.row, place.col, place.box) == (0, 1, 2, Box(64, 128, 128, 192))


def test_concurrent_threads_read_same_pixels(tmp_path: Path) -> None:
    image = noise_image(700, 900, 3)
    slide = open_slide(write_tiff(tmp_path / "a.tif", image))
    requested = list(boxes((700, 900), 200))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda box: slide.read(0, box), requested))
    for box, pixels in zip(requested, found, strict=True):
        np.testing.assert_array_equal(pixels, planes_of(image)[:, *box.slices])


def test_box_outside_the_level_is_refused(tmp_path: Path) -> None:
    slide = open_slide(write_tiff(tmp_path / "a.tif", noise_image(100, 100)))
    for box in (Box(-1, 0, 5, 5), Box(0, 0, 101, 5), Box(3, 3, 3, 9)):
        with pytest.raises(ValueError, match="not inside level 0"):
            slide.read(0, box)


def test_reader_is_cached_until_its_file_changes(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", noise_image(100, 100))
    first = open_slide(path)
    assert open_slide(str(path)) is first
    write_tiff(path, noise_image(100, 101))
    assert open_slide(path).levels[0].shape_yx == (100, 101)


def test_evicted_readers_close_their_files(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for k in range(20):
        open_slide(write_tiff(tmp_path / f"{k}.tif", noise_image(64, 64)))
    bad = write_tiff(tmp_path / "bad.tif", noise_image(64, 64))
    overwrite_tag(bad, 259, 4711)
    for _ in range(20):
        with pytest.raises(SlideError):
            open_slide(bad)
    assert len(os.listdir("/proc/self/fd")) <= before + 8


def test_fingerprint_depends_on_pixels_not_names_or_dates(tmp_path: Path) -> None:
    image = noise_image(300, 300)
    path = write_tiff(tmp_path / "a.tif", image, Recipe(compression=None))
    state, first = path.stat(), open_slide(path).fingerprint()
    twin = write_tiff(tmp_path / "other.tif", image, Recipe(compression=None))
    os.utime(twin, ns=(1, 1))
    assert open_slide(twin).fingerprint() == first
    other = np.random.default_rng(SEED).permuted(image)
    write_tiff(path, other, Recipe(compression=None))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert path.stat().st_size == state.st_size
    assert open_slide(path).fingerprint() != first


def test_fingerprint_depends_on_stated_resolution(tmp_path: Path) -> None:
    recipe = Recipe()
    paths = [write_tiff(tmp_path / f"{mpp}.tif", noise_image(64, 64), replace(recipe, mpp=mpp)) for mpp in (0.25, 0.5)]
    assert len({open_slide(path).fingerprint() for path in paths}) == 2


@pytest.mark.parametrize(
    ("base", "shape", "expected"),
    [
        ((2967, 2220), (1483, 1110), (2, 2)),
        ((2967, 2220), (742, 555), (4, 4)),
        ((46000, 32914), (2875, 2057), (16, 16)),
        ((1023, 1023), (127, 127), (8, 8)),
        ((1000, 1000), (400, 400), (2.5, 2.5)),
        ((100, 100), (100, 100), (1, 1)),
    ],
)
def test_downsample_is_a_whole_number_where_sizes_allow(
    base: tuple[int, int], shape: tuple[int, int], expected: tuple[float, float]
) -> None:
    assert downsample_yx(base, shape) == expected


def test_reductions_keep_proportions() -> None:
    assert is_reduction((2967, 2220), (768, 574))
    assert not is_reduction((2967, 2220), (431, 1280))
    assert not is_reduction((2967, 2220), (2967, 2220))
    assert not is_reduction((100, 100), (50, 101))
