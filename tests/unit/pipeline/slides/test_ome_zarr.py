"""OME-Zarr slides: pixels as zarr stores them, stated resolution and names, missing chunks."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from pipeline.errors import SlideError
from pipeline.geometry import Box
from pipeline.slide_reader import TileError
from pipeline.slides.opening import open_slide
from tests.support.make_photos import edit_json, write_zarr
from tests.support.make_slides import noise_image
from tests.unit.pipeline.slides.test_opening import assert_reads, planes_of

VERSIONS = ("0.4", "0.5")
CHANNELS = np.stack([noise_image(150, 203, 1, np.uint16), noise_image(150, 203, 1, np.uint16)[::-1]])


def chunk_of(path: Path, level: int = 0, row: int = 1, col: int = 2) -> Path:
    """File of a chunk of the first channel of a (c, y, x) image."""
    (found,) = (path / str(level)).glob(f"**/0/{row}/{col}")
    return found


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("axes", "index"), [("cyx", ()), ("tczyx", (None, slice(None), None)), ("czyx", (slice(None), None))]
)
@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2"])
def test_every_level_has_pixels_as_written(
    tmp_path: Path, version: str, axes: str, index: tuple[Any, ...], dtype: str
) -> None:
    image = CHANNELS.astype(dtype)
    slide = open_slide(write_zarr(tmp_path / "a.zarr", image[index] if index else image, version, axes, levels=3))
    assert (slide.format, slide.channels, slide.dtype) == (f"OME-Zarr {version}", 2, np.dtype(f"u{dtype[-1]}"))
    assert [level.downsample_yx for level in slide.levels] == [(1, 1), (2, 2), (4, 4)]
    for level in range(3):
        assert_reads(slide, level, image[:, :: 2**level, :: 2**level].astype(slide.dtype))


def test_image_without_channel_axis_is_grey(tmp_path: Path) -> None:
    slide = open_slide(write_zarr(tmp_path / "a.zarr", noise_image(90, 80), axes="yx"))
    assert slide.channel_names == ("grey",)
    assert_reads(slide, 0, noise_image(90, 80)[None])


@pytest.mark.parametrize("version", VERSIONS)
def test_resolution_and_channel_names_are_as_stated(tmp_path: Path, version: str) -> None:
    path = write_zarr(tmp_path / "a.zarr", CHANNELS, version, mpp=0.325, names=("DAPI", "Lamin B1"))
    assert open_slide(path).mpp_yx == pytest.approx((0.325, 0.325))
    assert open_slide(path).channel_names == ("DAPI", "Lamin B1")
    bare = write_zarr(tmp_path / "b.zarr", CHANNELS, version, mpp=None)
    assert open_slide(bare).mpp_yx is None
    assert open_slide(bare).channel_names == ("channel 1", "channel 2")


@pytest.mark.parametrize(("unit", "um"), [("nanometer", 1e-3), ("millimeter", 1e3), ("parsec", None), (7, None)])
def test_units_of_length_are_converted_and_others_ignored(tmp_path: Path, unit: str, um: float | None) -> None:
    path = write_zarr(tmp_path / "a.zarr", CHANNELS, mpp=0.5)

    def change(document: Any) -> None:
        for axis in document["multiscales"][0]["axes"][1:]:
            axis["unit"] = unit

    edit_json(path / ".zattrs", change)
    try:
        found = open_slide(path).mpp_yx
    except SlideError:
        found = None
    assert found == (None if um is None else pytest.approx((0.5 * um, 0.5 * um)))


def test_scale_of_multiscale_is_applied(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "a.zarr", CHANNELS, mpp=0.5)
    whole = [{"type": "scale", "scale": [1.0, 2.0, 2.0]}]
    edit_json(path / ".zattrs", lambda found: found["multiscales"][0].update(coordinateTransformations=whole))
    assert open_slide(path).mpp_yx == pytest.approx((1.0, 1.0))


def test_real_ome_zarr_has_pixels_of_zarr(shared_data: Path) -> None:
    path = shared_data / "omezarr" / "cardiomyocyte_B03_mip_lv1.zarr"
    slide = open_slide(path)
    assert slide.channel_names == ("DAPI", "nanog", "Lamin B1")
    assert slide.mpp_yx == pytest.approx((0.65, 0.65))
    for level, name in enumerate("123"):
        assert_reads(slide, level, np.asarray(zarr.open_array(path / name, mode="r"))[:, 0])


def test_largest_image_of_bioformats2raw_tree_is_the_slide(tmp_path: Path) -> None:
    tree = tmp_path / "a.zarr"
    zarr.open_group(str(tree), mode="w", zarr_format=2).attrs.update({"bioformats2raw.layout": 3})
    write_zarr(tree / "0", noise_image(60, 50)[None, None, None], axes="tczyx", levels=1)
    write_zarr(tree / "1", planes_of(noise_image(150, 203, 3))[None, :, None], axes="tczyx", levels=2)
    (tree / "OME").mkdir()
    slide = open_slide(tree)
    assert_reads(slide, 0, planes_of(noise_image(150, 203, 3)))
    assert len(slide.fingerprint()) == 64


def test_sharded_array_is_read(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "a.zarr", CHANNELS, "0.5", levels=1)
    shutil.rmtree(path / "0")
    array = zarr.create_array(
        str(path / "0"), shape=CHANNELS.shape, shards=(2, 128, 128), chunks=(1, 64, 64), dtype=CHANNELS.dtype
    )
    array[:] = CHANNELS
    assert_reads(open_slide(path), 0, CHANNELS)


# ---- missing and damaged chunks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_missing_chunk_is_fill_value_with_a_warning(tmp_path: Path, version: str) -> None:
    path = write_zarr(tmp_path / "a.zarr", CHANNELS, version)
    before = open_slide(path)
    assert before.warnings == ()
    first = before.fingerprint()
    chunk_of(path).unlink()
    slide, expected = open_slide(path), CHANNELS.copy()
    expected[0, 64:128, 128:192] = 0
    assert_reads(slide, 0, expected)
    (warning,) = slide.warnings
    assert "level 0: 1 of 24 chunks" in warning
    assert "0/1/2" in warning
    assert slide.fingerprint() != first, "a chunk that arrives later makes another slide of it"


def test_level_without_chunks_is_refused(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "a.zarr", CHANNELS)
    shutil.rmtree(path / "1" / "0")
    shutil.rmtree(path / "1" / "1")
    with pytest.raises(SlideError, match=r"level 1 .* has no chunks"):
        open_slide(path).fingerprint()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("damage", ["empty", "cut", "noise"])
def test_damaged_chunk_is_located(tmp_path: Path, version: str, damage: str) -> None:
    path = write_zarr(tmp_path / "a.zarr", CHANNELS, version)
    data = chunk_of(path).read_bytes()
    chunk_of(path).write_bytes({"empty": b"", "cut": data[:40], "noise": b"\x01\x07" * 60}[damage])
    slide = open_slide(path)
    with pytest.raises(TileError, match=r"a\.zarr: level 0, tile \(1, 2\) .*0/1/2\) is damaged") as caught:
        slide.read(0, Box(0, 0, 150, 203))
    assert caught.value.place.box == Box(64, 128, 128, 192)
    assert np.array_equal(slide.read(0, Box(0, 0, 64, 203)), CHANNELS[:, :64])


# ---- refused images --------------------------------------------------------------------------------------------------


def refuse(path: Path, phrase: str) -> None:
    with pytest.raises(SlideError, match=phrase) as caught:
        open_slide(path)
    assert str(path) in str(caught.value)


def test_stacks_floats_and_other_axes_are_refused_by_name(tmp_path: Path) -> None:
    refuse(write_zarr(tmp_path / "z.zarr", np.stack([CHANNELS] * 3, 1), axes="czyx"), "3 focal planes")
    refuse(write_zarr(tmp_path / "t.zarr", np.stack([CHANNELS] * 2), axes="tcyx"), "2 time points")
    refuse(write_zarr(tmp_path / "f.zarr", CHANNELS.astype(np.float32)), "pixels of float32")
    refuse(write_zarr(tmp_path / "x.zarr", CHANNELS, axes="zxy"), "axes")


@pytest.mark.parametrize("where", ["../b.zarr/0", "/etc", ""])
def test_level_path_outside_the_image_is_refused(tmp_path: Path, where: str) -> None:
    write_zarr(tmp_path / "b.zarr", CHANNELS)
    path = write_zarr(tmp_path / "a.zarr", CHANNELS, levels=1)
    edit_json(path / ".zattrs", lambda found: found["multiscales"][0]["datasets"][0].update(path=where))
    refuse(path, "a level lies at")


def test_invalid_metadata_is_named(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "a.zarr", CHANNELS)
    edit_json(path / ".zattrs", lambda found: found["multiscales"][0].pop("datasets"))
    refuse(path, "metadata is not valid: datasets")
    edit_json(path / ".zattrs", lambda found: found.update(multiscales=[]))
    refuse(path, "describes no image")
    other = write_zarr(tmp_path / "b.zarr", CHANNELS)
    (other / "0" / ".zarray").write_text("{")
    refuse(other, "level 0 cannot be opened")
    shutil.rmtree(other / "0")
    refuse(other, "level 0 cannot be opened")


def test_plate_and_other_folders_are_refused(tmp_path: Path) -> None:
    plate = tmp_path / "plate.zarr"
    zarr.open_group(str(plate), mode="w", zarr_format=2).attrs.update({"plate": {"wells": []}})
    refuse(plate, "a plate")
    (tmp_path / "folder.svs").mkdir()
    refuse(tmp_path / "folder.svs", "a folder")


def test_chunk_above_size_limit_is_refused(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "a.zarr", CHANNELS)
    edit_json(path / "0" / ".zarray", lambda found: found.update(chunks=[1, 1 << 15, 1 << 15]))
    refuse(path, "one chunk holds 2147483648 bytes")


def test_labels_of_an_image_are_not_its_levels(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "a.zarr", CHANNELS)
    write_zarr(path / "labels" / "nuclei", noise_image(150, 203)[None], axes="cyx")
    assert len(open_slide(path).levels) == 2
    assert os.fspath(open_slide(path).path) == str(path)


def test_result_of_overtile_is_refused(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "a.zarr", CHANNELS, "0.5")
    edit_json(path / "0" / "zarr.json", lambda found: found["attributes"].update(overtile={"plan": "x"}))
    refuse(path, "a result of overtile, not a slide. Name the slide")
