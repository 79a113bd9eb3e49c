"""The overview picture: its content for any slide, and the same bytes every time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from skimage.draw import disk
from skimage.measure import label
from skimage.segmentation import find_boundaries

from pipeline.errors import DamagedError
from pipeline.execution.blocks import StageContext, serial
from pipeline.inputs.regions import Regions
from pipeline.rendering.contrast import compose, contrast, windows
from pipeline.rendering.drawing import INK, Palette, Tint, length_label, nice_length, outline_objects
from pipeline.rendering.field_selection import FIELD_PX, View, choose_fields, field_side
from pipeline.stages.overlay import ALERT, MARKS, OverlayInputs, overlay_slide
from pipeline.stages.pyramid import PyramidInputs, pyramid_slide
from pipeline.storage.layout import OVERVIEW
from pipeline.storage.slide_store import SlideStore
from pipeline.tissue_detection.quality_control import MEASURES
from tests.support.make_store import put_array, put_objects
from tests.unit.pipeline.stage_inputs import NUCLEUS_MITOSIS, RGB, image_info

MPP = 0.5
COLOURS = ((0, 190, 60), (255, 140, 0))
SECTION = OverlayInputs(
    name="slide <b>one</b>.svs",
    model="nuclei@1",
    image=image_info(MPP),
    classes=NUCLEUS_MITOSIS,
    tissue_mm2=None,
    objects=True,
    flags=(),
    regions=None,
    masked=(),
)


def discs(shape_yx: tuple[int, int], radius: int, number: int, seed: int = 0) -> NDArray[np.uint32]:
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape_yx, bool)
    for y, x in rng.integers(0, shape_yx, (number, 2)):
        mask[disk((y, x), radius, shape=shape_yx)] = True
    return np.asarray(label(mask), np.uint32)


def measures(shape_yx: tuple[int, int]) -> NDArray[np.float32]:
    """Quality of all cells: all tissue, sharp and clean."""
    clean = np.zeros((len(MEASURES), *(-(-side // 512) for side in shape_yx)), np.float32)
    clean[:2] = 1
    return clean


def make_slide(
    root: Path, image: NDArray[Any], labels: NDArray[np.uint32], section: OverlayInputs = SECTION
) -> StageContext:
    store = SlideStore(root)
    plans = {"0": "a" * 64, "labels/objects/0": "c" * 64}
    put_array(store, "0", image, plans["0"])
    put_array(store, "labels/objects/0", labels, plans["labels/objects/0"])
    put_array(store, "quality", measures(labels.shape), "q" * 64)
    count = int(labels.max(initial=0))
    put_objects(store, labels, {"nucleus": range(1, count), "mitosis": range(max(1, count), count + 1)}, MPP)
    work = StageContext(root, labels.shape, 512, "p" * 64)
    pyramid_slide(work, PyramidInputs(section.image, section.classes, plans), serial)
    return work


def glass(labels: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Violet objects on glass."""
    inside = labels > 0
    return np.stack([np.where(inside, level, 240).astype(np.uint8) for level in (110, 60, 150)])


def drawn(root: Path) -> NDArray[np.uint8]:
    with Image.open(root / OVERVIEW) as picture:
        assert not picture.info, "no text, no time"
        return np.asarray(picture)


def share(page: NDArray[np.uint8], colour: tuple[int, int, int]) -> int:
    """Pixels of exactly this colour."""
    return int((page == np.array(colour, np.uint8)).all(-1).sum())


# ---- the whole picture ----------------------------------------------------------------------------------------------


def test_a_large_slide_shows_a_tint_and_three_fields(tmp_path: Path) -> None:
    labels = discs((1800, 4000), radius=5, number=1500)
    report = overlay_slide(make_slide(tmp_path, glass(labels), labels), SECTION)
    page = drawn(tmp_path)
    assert len(report.facts["fields"]) == 3
    assert 1600 <= page.shape[1] <= 1700
    assert page.shape[0] > 720 + FIELD_PX, "fields lie below a wide slide"
    assert share(page, COLOURS[0]) > 3000, "outlines in the fields"
    assert (tmp_path / ".work/overlay.stamp").exists()


def test_large_objects_are_outlined_on_the_overview(tmp_path: Path) -> None:
    labels = discs((2500, 1700), radius=40, number=60)
    section = replace(SECTION, tissue_mm2=0.5)
    work = make_slide(tmp_path, glass(labels), labels)
    tissue = np.zeros((79, 54), bool)
    tissue[10:60, 10:40] = True
    put_array(work.store, "tissue", tissue, "t" * 64)
    overlay_slide(work, section)
    page = drawn(tmp_path)
    assert page.shape[1] > page.shape[0] * 0.8, "fields lie to the right of a tall slide"
    assert share(page[:, :1000], COLOURS[0]) > 2000
    overlay_slide(work, SECTION)
    border_px = 2 * 2 * (50 + 30) * 32 * 1600 / 2500
    assert share(page, INK) - share(drawn(tmp_path), INK) > 0.8 * border_px, "the tissue's border is drawn"


def test_blurred_and_inked_cells_are_outlined_and_flags_are_in_caption(tmp_path: Path) -> None:
    labels = np.zeros((1600, 2000), np.uint32)
    work = make_slide(tmp_path, glass(labels), labels)
    overlay_slide(work, SECTION)
    plain = drawn(tmp_path)
    found = measures(labels.shape)
    found[MEASURES.index("sharpness"), 0, 1] = 0
    found[MEASURES.index("pen"), 1, :3] = 1
    put_array(work.store, "quality", found, "r" * 64)
    overlay_slide(work, replace(SECTION, flags=("blurred", "pen", "little_tissue")))
    page = drawn(tmp_path)
    side_px = 512 * 1600 / 2000
    for flag, border_px in (("blurred", 4 * side_px), ("pen", 8 * side_px)):
        seen = share(page, MARKS[flag]) - share(plain, MARKS[flag])
        assert 0.8 * border_px < seen < 3 * border_px + 2000, flag
    assert share(page, ALERT) > share(plain, ALERT), "the third flag is in the caption"


def test_regions_are_outlined(tmp_path: Path) -> None:
    labels = np.zeros((1600, 2000), np.uint32)
    work = make_slide(tmp_path, glass(labels), labels)
    area = shapely.box(100, 200, 700, 600)
    regions = Regions(("a",), ("",), (shapely.to_wkb(area),))
    overlay_slide(work, replace(SECTION, regions=regions, image=image_info(MPP, (0.5, 0.5))))
    colour = (0, 110, 200)
    page = drawn(tmp_path)
    at = np.argwhere((page == colour).all(axis=2))
    size = np.ptp(at, axis=0) + 1
    assert size == pytest.approx([800 * 0.8, 1200 * 0.8], abs=5), "twice the drawn size, on a page at 0.8"
    assert share(page, colour) > 2 * (800 + 1200) * 0.8


def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    labels = discs((1000, 2000), radius=12, number=100)
    work = make_slide(tmp_path, glass(labels), labels)
    overlay_slide(work, SECTION)
    first = (tmp_path / OVERVIEW).read_bytes()
    (tmp_path / OVERVIEW).unlink()
    overlay_slide(work, SECTION)
    assert (tmp_path / OVERVIEW).read_bytes() == first


@pytest.mark.parametrize("shape_yx", [(1, 1), (1, 5000), (3000, 2), (300, 700), (513, 512)])
@pytest.mark.parametrize("filled", [0, 1])
def test_any_shape_with_and_without_objects(tmp_path: Path, shape_yx: tuple[int, int], filled: int) -> None:
    labels = np.full(shape_yx, filled, np.uint32)
    overlay_slide(make_slide(tmp_path, glass(labels), labels), SECTION)
    page = drawn(tmp_path)
    assert page.shape[1] >= 720
    assert page.size < 2200 * 2200 * 3


def test_without_labels(tmp_path: Path) -> None:
    labels = np.zeros((1700, 40), np.uint32)
    work = make_slide(tmp_path, glass(labels), labels)
    (tmp_path / "objects.parquet").unlink()
    report = overlay_slide(work, replace(SECTION, objects=False))
    assert report.facts["fields"] == ["[512:1024, 0:40]"]


def test_no_tissue_at_all(tmp_path: Path) -> None:
    labels = np.zeros((600, 600), np.uint32)
    work = make_slide(tmp_path, glass(labels), labels)
    put_array(work.store, "tissue", np.zeros((38, 38), bool), "t" * 64)
    overlay_slide(work, replace(SECTION, tissue_mm2=0.0))


def test_sixteen_bit_channels_are_visible(tmp_path: Path) -> None:
    labels = discs((700, 900), radius=20, number=40)
    rng = np.random.default_rng(0)
    image = rng.integers(90, 110, (2, 700, 900)).astype(np.uint16)
    image[0][labels > 0] += 400
    section = replace(SECTION, image=image_info(MPP, channels=("DAPI", "Cy3")))
    overlay_slide(make_slide(tmp_path, image, labels, section), section)
    page = drawn(tmp_path)
    assert share(page, (127, 222, 157)) > 1000, "outlines are lighter on a dark picture"
    assert (page[..., 2] > 200).sum() > 20_000, "0.8 % of the range is stretched to be seen"


def test_control_characters_in_name_are_replaced(tmp_path: Path) -> None:
    labels = np.zeros((40, 40), np.uint32)
    work = make_slide(tmp_path, glass(labels), labels)
    overlay_slide(work, replace(SECTION, name="\x1b[31m a\nb " + "long " * 100, model="m\u00e9\u4e2d"))
    assert drawn(tmp_path).shape[1] == 720


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    labels = discs((1700, 1700), radius=30, number=20)
    work = make_slide(tmp_path, glass(labels), labels)
    (work.store.zarr / "0/c/0/1/1").unlink()
    with pytest.raises(DamagedError, match="c/0/1/1 is missing or empty"):
        overlay_slide(work, SECTION)
    assert not (tmp_path / OVERVIEW).exists()
    assert work.store.stamped("overlay") is None


# ---- where to look --------------------------------------------------------------------------------------------------


def test_the_densest_fields_are_found_in_order() -> None:
    view = View.of((10_240, 20_480))
    places = np.array([[600.0] * 3 + [9000.0] * 5 + [600.0] * 4, [700.0] * 3 + [20_000.0] * 5 + [10_000.0] * 4])
    assert [str(box) for box in choose_fields(places, view, 512)] == [
        "[8704:9216, 19968:20480]",
        "[512:1024, 9728:10240]",
        "[512:1024, 512:1024]",
    ]


def test_fields_keep_apart_and_are_not_empty() -> None:
    view = View.of((5120, 5120))
    places = np.array([[100.0, 600.0, 1100.0], [100.0, 100.0, 100.0]])
    assert [str(box) for box in choose_fields(places, view, 512)] == ["[0:512, 0:512]", "[1024:1536, 0:512]"]
    assert [str(box) for box in choose_fields(np.zeros((2, 0)), view, 512)] == ["[2048:2560, 2048:2560]"]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9000), st.integers(1, 9000), st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_views_and_fields_fit_the_image(height: int, width: int, number: int, seed: int) -> None:
    view = View.of((height, width))
    assert max(view.shape_yx) <= 1600
    longest = -(-max(height, width) // 2**view.level)
    assert longest >= max(view.shape_yx) or view.level == 0
    assert longest < 2 * 1600
    places = np.random.default_rng(seed).random((2, number)) * np.array([[height], [width]])
    for box in choose_fields(places, view, 512):
        assert 0 <= box.y0 < box.y1 <= height
        assert 0 <= box.x0 < box.x1 <= width
        assert box.shape == (min(512, height), min(512, width))
    rows, cols = view.nearest((-(-height // 4), -(-width // 4)))
    assert (len(rows), len(cols)) == view.shape_yx
    assert rows.max() < -(-height // 4)
    assert cols.max() < -(-width // 4)


def test_small_objects_are_shown_twice_as_large() -> None:
    assert (field_side(0), field_side(13.9), field_side(14)) == (512, 256, 512)


# ---- drawing --------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_outlines_are_rims_in_the_class_colour(seed: int, width_px: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 4, (6, 6)).astype(np.uint32)
    labels = np.kron(labels, np.ones((4, 4), np.uint32))
    palette = Palette(np.array([0, 1, 0], np.uint8), np.array(COLOURS, np.uint8))
    picture = np.zeros((24, 24, 3), np.uint8)
    outline_objects(picture, labels, palette, width_px)
    touched = np.asarray(picture.any(-1))
    assert not touched[labels == 0].any()
    assert touched[find_boundaries(labels, connectivity=1, mode="inner")].all()
    for identity, colour in ((1, COLOURS[0]), (2, COLOURS[1]), (3, COLOURS[0])):
        assert (picture[touched & (labels == identity)] == np.array(colour)).all()


def test_a_tint_leaves_what_has_none() -> None:
    picture = np.full((1, 3, 3), 200, np.uint8)
    layer = Tint.empty((1, 3))
    layer.add(np.array([[0, 5, 100]], np.float32), (0, 0, 0))
    layer.lay_over(picture, full=10)
    assert picture[0, :, 0].tolist() == [200, 140, 80]


def test_scale_bar_lengths_are_round_numbers() -> None:
    assert [nice_length(value) for value in (1, 1.99, 4.9, 5, 99, 1234, 0.03)] == [1, 1, 2, 5, 50, 1000, 0.02]
    assert [length_label(value) for value in (0.5, 20, 1000, 5000)] == ["0.5 \u00b5m", "20 \u00b5m", "1 mm", "5 mm"]


# ---- colours --------------------------------------------------------------------------------------------------------


def test_bright_colour_is_shown_as_it_is_and_dark_colour_brightened() -> None:
    rng = np.random.default_rng(0)
    bright = rng.integers(100, 256, (3, 20, 20)).astype(np.uint8)
    assert windows(bright, RGB) == ((0.0, 255.0),) * 3
    np.testing.assert_array_equal(compose(bright, RGB, windows(bright, RGB)), np.moveaxis(bright, 0, -1))
    dark = (bright // 8).astype(np.uint8)
    assert compose(dark, RGB, windows(dark, RGB)).max() == 255
    assert compose(dark, RGB, windows(dark, RGB)).mean() > 120


def test_contrast_ignores_unscanned_areas() -> None:
    plane = np.zeros((100, 100), np.uint16)
    plane[:50] = 700
    plane[:25] = 900
    assert contrast(plane) == (700, 900)
    assert contrast(np.zeros((3, 3), np.uint16)) == (0, 1)
    assert contrast(np.full((3, 3), 65535, np.uint16)) == (65534, 65535)


def test_grey_is_grey() -> None:
    plane = np.arange(100, dtype=np.uint8).reshape(1, 10, 10)
    mixed = compose(plane, ("grey",), windows(plane, ("grey",)))
    assert (mixed[..., 0] == mixed[..., 1]).all()
    assert (mixed.min(), mixed.max()) == (0, 255)
