"""PNG and JPEG photos: exact pixels or an error; the density of a screen is no resolution."""

from __future__ import annotations

import random
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from pipeline.errors import SlideError
from pipeline.geometry import Box
from pipeline.slide_reader import TileError
from pipeline.slides import photo
from pipeline.slides.opening import open_slide
from tests.support.make_photos import write_jpeg, write_png
from tests.support.make_slides import CANARIES, noise_image, stained_image, write_tiff
from tests.unit.pipeline.slides.test_opening import assert_reads, planes_of

SEED = 5


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_png_has_same_pixels_as_tiff(tmp_path: Path, dtype: type, samples: int) -> None:
    image = noise_image(150, 203, samples, dtype)
    slide = open_slide(write_png(tmp_path / "a.png", image))
    twin = open_slide(write_tiff(tmp_path / "a.tif", image))
    assert (slide.format, slide.channels, slide.dtype) == ("PNG", twin.channels, twin.dtype)
    assert_reads(slide, 0, twin.read(0, Box.of_shape((150, 203))))
    assert_reads(slide, 0, planes_of(image))


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_has_pixels_of_pillow(tmp_path: Path, samples: int, progressive: bool) -> None:
    image = stained_image(150, 203)
    path = write_jpeg(tmp_path / "a.jpg", image if samples == 3 else image[..., 0], progressive=progressive)
    slide = open_slide(path)
    assert (slide.format, slide.channels) == ("JPEG", samples)
    assert_reads(slide, 0, planes_of(np.asarray(Image.open(path))))


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1)])
def test_photos_of_one_pixel_width_or_height_are_read(tmp_path: Path, shape: tuple[int, int]) -> None:
    image = noise_image(*shape, 3)
    assert_reads(open_slide(write_png(tmp_path / "a.png", image)), 0, planes_of(image))


def test_alpha_is_composited_over_white(tmp_path: Path) -> None:
    image = noise_image(20, 30, 4)
    colours, alpha = image[..., :3].astype(float), image[..., 3:] / 255
    expected = np.floor(colours * alpha + 255 * (1 - alpha) + 0.5 + 1e-9).astype(np.uint8)
    assert_reads(open_slide(write_png(tmp_path / "a.png", image)), 0, planes_of(expected))


def test_palette_is_expanded_to_rgb(tmp_path: Path) -> None:
    drawn = Image.fromarray(stained_image(40, 50)).quantize(7)
    drawn.save(tmp_path / "a.png")
    assert_reads(open_slide(tmp_path / "a.png"), 0, planes_of(np.asarray(drawn.convert("RGB"))))


@pytest.mark.parametrize(
    ("mpp", "expected"), [(0.5, 0.5), (9.0, 9.0), (25400 / 72, None), (25400 / 300, None), (None, None)]
)
def test_implausible_density_is_no_resolution(tmp_path: Path, mpp: float | None, expected: float | None) -> None:
    for slide in (
        open_slide(write_png(tmp_path / "a.png", noise_image(20, 30, 3), mpp)),
        open_slide(write_jpeg(tmp_path / "a.jpg", noise_image(20, 30, 3), mpp)),
    ):
        assert slide.mpp_yx == (None if expected is None else pytest.approx((expected, expected), rel=1e-3))


def test_fingerprint_depends_on_pixels_and_description_has_no_personal_data(tmp_path: Path) -> None:
    path = write_jpeg(tmp_path / "a.jpg", stained_image(90, 90), comment=CANARIES[0])
    first = open_slide(path)
    print_of_first = first.fingerprint()
    assert CANARIES[0] not in str(first.describe())
    (tmp_path / "b.jpg").write_bytes(path.read_bytes())
    assert open_slide(tmp_path / "b.jpg").fingerprint() == print_of_first
    write_jpeg(path, stained_image(90, 90)[::-1])
    assert open_slide(path).fingerprint() != print_of_first


# ---- damage ----------------------------------------------------------------------------------------------------------


def test_photo_above_size_limit_is_refused_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_png(tmp_path / "my photo.png", noise_image(100, 100, 3))
    monkeypatch.setattr(photo, "MAX_PHOTO_BYTES", 29_999)
    with pytest.raises(SlideError, match=r"30000 bytes .* expected at most 29999.*vips tiffsave 'my photo.png'"):
        open_slide(path)


def test_forged_size_is_refused_without_allocation(tmp_path: Path) -> None:
    data = bytearray(write_png(tmp_path / "a.png", noise_image(50, 50, 3)).read_bytes())
    data[16:24] = (2**31 - 1).to_bytes(4, "big") * 2
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(SlideError, match="expected at most 536870912"):
        open_slide(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_truncated_photo_is_refused_at_any_length(tmp_path: Path, kind: str) -> None:
    write = write_png if kind == "png" else write_jpeg
    good = write(tmp_path / f"a.{kind}", stained_image(130, 170)).read_bytes()
    rng = random.Random(SEED)
    for length in (*rng.sample(range(4, len(good) - 1), 40), len(good) - 2):
        path = tmp_path / f"{length}.{kind}"
        path.write_bytes(good[:length])
        with pytest.raises(SlideError):
            open_slide(path).read(0, Box(0, 0, 130, 170))


def test_damage_error_names_slide_and_cause(tmp_path: Path) -> None:
    png = write_png(tmp_path / "a.png", noise_image(64, 64, 3))
    jpeg = write_jpeg(tmp_path / "a.jpg", noise_image(64, 64, 3))
    for path in (png, jpeg):
        data = bytearray(path.read_bytes())
        data[len(data) // 2 :] = bytes(len(data) - len(data) // 2 - 12) + data[-12:]
        path.write_bytes(data)
        with pytest.raises(TileError, match=r"a\.(png|jpg): the (PNG|JPEG) is damaged: .* Copy it again"):
            open_slide(path).read(0, Box(0, 0, 8, 8))


def test_unsupported_photos_are_refused_by_name(tmp_path: Path) -> None:
    Image.fromarray(noise_image(20, 20, 3)).convert("1").save(tmp_path / "mask.png")
    Image.fromarray(noise_image(20, 20, 3)).convert("CMYK").save(tmp_path / "inks.jpg")
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(noise_image(20, 20, 3)).save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(noise_image(20, 20, 3)).save(tmp_path / "turned.png", exif=exif)
    for name, phrase in [
        ("mask.png", "1 bits"),
        ("inks.jpg", "4 components"),
        ("turned.jpg", "orientation 6"),
        ("turned.png", "orientation 6"),
    ]:
        with pytest.raises(SlideError, match=phrase):
            open_slide(tmp_path / name)


def test_damaged_bytes_raise_only_slide_errors(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    for kind, write in (("png", write_png), ("jpg", write_jpeg)):
        path = write(tmp_path / f"a.{kind}", stained_image(100, 120))
        good, refused = path.read_bytes(), 0
        for _ in range(150):
            data = bytearray(good)
            for _ in range(rng.randint(1, 4)):
                data[rng.randrange(8, len(data) if rng.random() < 0.4 else 200)] = rng.choice(
                    [0, 1, 0xFF, rng.randrange(256)]
                )
            path.write_bytes(data)
            try:
                slide = open_slide(path)
                slide.read(0, Box.of_shape(slide.levels[0].shape_yx))
            except SlideError:
                refused += 1
        print(f"seed {SEED}, {kind}: {refused} of 150 refused")
        assert refused > 40


def test_one_decoded_photo_is_cached(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        open_slide(write_png(tmp_path / name, noise_image(30, 30, 3))).read(0, Box(0, 0, 3, 3))
    assert photo._decoded.cache_info().currsize == 1


def test_twelve_bit_jpeg_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(imagecodecs.jpeg_encode(noise_image(16, 16, 1, np.uint16) // 16, bitspersample=12))
    with pytest.raises(SlideError):
        open_slide(tmp_path / "a.jpg").read(0, Box(0, 0, 16, 16))
