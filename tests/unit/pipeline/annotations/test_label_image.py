"""Label images are read window by window as stored, or rejected by name; files are written by Pillow and tifffile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pipeline.annotations.label_image import open_labels
from pipeline.errors import SlideError
from pipeline.geometry import Box
from pipeline.slides.tiff.tile_decoder import StoredImage

RNG = np.random.default_rng(20261121)
SHAPE = (150, 210)
PALETTE = [(0, 0, 0), (255, 0, 0), (0, 128, 7), (9, 9, 9)]


def ids(dtype: Any, most: int = 200) -> NDArray[Any]:
    return RNG.integers(0, most, SHAPE).astype(dtype)


def whole(path: Path) -> NDArray[Any]:
    found = open_labels(path)
    return found.read(Box.of_shape(found.shape_yx))


DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")


@pytest.mark.parametrize("layout", ["strips", "one strip", "tiles", "big endian", "predictor"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_integers_of_any_tiff_are_read_exactly(tmp_path: Path, dtype: str, layout: str) -> None:
    options: dict[str, Any] = {
        "strips": {"rowsperstrip": 16, "compression": "zlib"},
        "one strip": {},
        "tiles": {"tile": (32, 48), "compression": "lzw"},
        "big endian": {"byteorder": ">"},
        "predictor": {"tile": (64, 64), "compression": "zlib", "predictor": not dtype.endswith("64")},
    }[layout]
    labels = ids(dtype, 120)
    labels[0, 0] = np.iinfo(dtype).max
    path = tmp_path / "labels.tif"
    tifffile.imwrite(path, labels, **options)
    found = open_labels(path)
    assert (found.path, found.shape_yx, found.palette, found.coloured) == (path, SHAPE, (), False)
    assert np.array_equal(whole(path)[0], labels)
    assert whole(path).dtype == labels.dtype
    box = Box(33, 47, 131, 150)
    assert np.array_equal(found.read(box)[0], labels[box.slices])


@pytest.mark.parametrize("name", ["m.png", "m.tif"])
@pytest.mark.parametrize("mode", ["1", "L", "I;16", "P", "RGB", "RGBA"])
def test_every_pillow_mode_is_read_exactly(tmp_path: Path, name: str, mode: str) -> None:
    path, labels = tmp_path / name, ids(np.uint8, 4)
    expected: NDArray[Any] = labels[None]
    if mode == "1":
        expected = (labels > 1)[None]
        Image.fromarray(expected[0]).save(path)
    elif mode == "P":
        picture = Image.fromarray(labels)
        picture.putpalette([value for colour in PALETTE for value in colour])
        picture.save(path)
    elif mode in ("RGB", "RGBA"):
        pixels = np.array(PALETTE, np.uint8)[labels]
        expected = pixels.transpose(2, 0, 1)
        opaque = np.full((*SHAPE, 1), 255, np.uint8)
        Image.fromarray(np.concatenate([pixels, opaque], axis=2) if mode == "RGBA" else pixels).save(path)
    else:
        expected = (labels * (np.uint8(1) if mode == "L" else np.uint16(9000)))[None]
        Image.fromarray(expected[0]).save(path)
    found = open_labels(path)
    assert found.coloured == (mode in ("RGB", "RGBA"))
    assert found.palette[:4] == (tuple(PALETTE) if mode == "P" else ())
    assert np.array_equal(whole(path), expected)
    box = Box(3, 5, 77, 190)
    assert np.array_equal(found.read(box), expected[:, *box.slices])


def test_one_bit_masks_are_read(tmp_path: Path) -> None:
    mask = ids(np.uint8, 2).astype(bool)
    for name, options in (("a.tif", {}), ("b.tif", {"compression": "zlib", "rowsperstrip": 7})):
        tifffile.imwrite(tmp_path / name, mask, **options)
        assert np.array_equal(whole(tmp_path / name)[0], mask)


def test_the_palette_of_a_tiff_is_read(tmp_path: Path) -> None:
    labels, colours = ids(np.uint8, 3), np.zeros((3, 256), np.uint16)
    colours[:, :4] = np.array(PALETTE, np.uint16).T * 257
    tifffile.imwrite(tmp_path / "p.tif", labels, photometric="palette", colormap=colours)
    assert open_labels(tmp_path / "p.tif").palette[:4] == tuple(PALETTE)
    assert np.array_equal(whole(tmp_path / "p.tif")[0], labels)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 149), st.integers(0, 209), st.integers(1, 150), st.integers(1, 210))
def test_windows_equal_the_whole(
    tmp_path_factory: pytest.TempPathFactory, y: int, x: int, high: int, wide: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "windows.tif"
    labels = np.arange(SHAPE[0] * SHAPE[1], dtype=np.int32).reshape(SHAPE)
    if not path.exists():
        tifffile.imwrite(path, labels, tile=(32, 32), compression="zlib")
    box = Box(y, x, min(y + high, SHAPE[0]), min(x + wide, SHAPE[1]))
    assert np.array_equal(open_labels(path).read(box)[0], labels[box.slices])


def test_a_window_decodes_only_the_tiles_it_touches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.tif"
    levels = [ids(np.uint16)[::step, ::step] for step in (1, 2)]
    with tifffile.TiffWriter(path) as writer:
        for number, level in enumerate(levels):
            writer.write(level, tile=(32, 32), compression="zlib", subfiletype=number)
    decoded = []
    plain = StoredImage._decode
    monkeypatch.setattr(StoredImage, "_decode", lambda self, at, place: decoded.append(at) or plain(self, at, place))
    labels = open_labels(path)
    assert labels.shape_yx == SHAPE, "the largest image, not a level of it"
    assert decoded == []
    labels.read(Box(40, 40, 60, 90))
    assert len(decoded) == 2


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: Image.fromarray(ids(np.uint8)).save(p, "JPEG"), "a JPEG changes numbers"),
        (lambda p: tifffile.imwrite(p, ids(np.uint8), compression="jpeg"), "JPEG is lossy or unknown"),
        (lambda p: tifffile.imwrite(p, ids(np.float32)), "expected whole numbers of 8 to 64 bits, found 32-bit float"),
        (
            lambda p: tifffile.imwrite(p, np.zeros((3, *SHAPE), np.uint8), photometric="minisblack"),
            "3 images of 210 x 150 px",
        ),
        (lambda p: tifffile.imwrite(p, np.zeros((*SHAPE, 3), np.uint16), photometric="rgb"), "colours of 16 bits"),
        (lambda p: Image.fromarray(np.zeros((*SHAPE, 4), np.uint8)).save(p, "PNG"), "the mask is transparent"),
        (lambda p: Image.fromarray(np.zeros((*SHAPE, 2), np.uint8)).save(p, "PNG"), "colour type 4 cannot hold labels"),
        (lambda p: p.write_bytes(imagecodecs.png_encode(np.zeros((9, 9, 3), np.uint16))), "16 bits and colour type 2"),
        (lambda p: p.write_bytes(b"hello, world, this is no picture"), "TIFF|picture"),
        (lambda p: p.write_bytes(b""), "empty|0 bytes|TIFF"),
        (lambda p: _cut(p, "PNG"), "damaged|cut|found something else"),
        (lambda p: _cut(p, "TIFF"), "end of the file|file is cut"),
        (lambda p: _cut(p, "bits"), "end of the file|damaged"),
    ],
)
def test_files_that_cannot_store_labels_are_rejected_by_name(tmp_path: Path, write: Any, message: str) -> None:
    path = tmp_path / "mask.png"
    write(path)
    with pytest.raises(SlideError, match=message) as caught:
        whole(path)
    assert "mask.png" in str(caught.value)


def _cut(path: Path, kind: str) -> None:
    if kind == "bits":
        tifffile.imwrite(path, RNG.integers(0, 2, (900, 900)).astype(bool))
    else:
        Image.fromarray(RNG.integers(0, 255, (200, 200)).astype(np.uint8)).save(path, kind)
    path.write_bytes(path.read_bytes()[:9000] if kind == "PNG" else path.read_bytes()[:-9000])
