"""Folders of images and masks: every kind of mask is read correctly, every fault is named before training."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from pipeline.annotations.dataset import open_dataset
from pipeline.annotations.label_image import TiffLabels
from pipeline.annotations.lazy_arrays import Windows
from pipeline.errors import ConfigError
from pipeline.geometry import Box
from pipeline.slides.tiff.reader import TiffSlide
from tests.unit.flows.annotating import (
    COLOURS,
    SHAPE,
    dataset,
    draw,
    folders,
    read_all,
    rectangle,
    save_geojson,
    save_image,
    save_mask,
    save_table,
)
from unet_core.data.mask_encoding import DataSettings

TWO = DataSettings(classes=tuple(COLOURS))
TABLE = DataSettings(colours=COLOURS)


# ---- kinds of masks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_gb", [2.0, 0.0], ids=["in memory", "by window"])
@pytest.mark.parametrize("kind", ["0/1", "0/255", "bool", "labels png", "labels tif"])
def test_masks_of_one_class_in_any_format(tmp_path: Path, kind: str, memory_gb: float) -> None:
    images, masks, drawings = dataset(tmp_path, kind)
    found = open_dataset(images, masks, None, DataSettings(memory_gb=memory_gb))
    assert found.class_names == ("object",)
    assert [case.name for case in found.cases] == list(drawings)
    for case in found.cases:
        drawing = drawings[case.name]
        assert np.array_equal(read_all(case.image_CYX), drawing.image_YXC.transpose(2, 0, 1))
        assert np.array_equal(read_all(case.labels_YX), drawing.one_class)
        assert case.labels_YX[:, :].dtype == np.int32
        assert case.classes_YX is None
        assert isinstance(case.image_CYX, np.ndarray) == (memory_gb > 0)


@pytest.mark.parametrize("memory_gb", [2.0, 0.0], ids=["in memory", "by window"])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [("classes", TWO), ("palette", TWO), ("palette", TABLE), ("rgb png", TABLE), ("rgb tif", TABLE)],
)
def test_masks_of_two_classes_in_any_format(
    tmp_path: Path, kind: str, settings: DataSettings, memory_gb: float
) -> None:
    images, masks, drawings = dataset(tmp_path, kind)
    found = open_dataset(images, masks, None, settings.model_copy(update={"memory_gb": memory_gb}))
    assert found.class_names == tuple(COLOURS)
    for case in found.cases:
        assert np.array_equal(read_all(case.classes_YX), drawings[case.name].classes)
        assert np.array_equal(read_all(case.labels_YX), drawings[case.name].objects)
        window = slice(17, 55), slice(30, 31)
        assert np.array_equal(case.labels_YX[window], drawings[case.name].objects[window])
        assert np.array_equal(case.image_CYX[(slice(1, 3), *window)], read_all(case.image_CYX)[(slice(1, 3), *window)])


def test_assumptions_about_masks_are_reported(tmp_path: Path) -> None:
    images, masks, _ = dataset(tmp_path, "0/255")
    message = " ".join(open_dataset(images, masks).remarks)
    assert "0 and one more number; 8-connected components are the objects" in message
    assert "every image counts as a patient of its own" in message


# ---- images larger than memory ---------------------------------------------------------------------------------------


def test_images_beyond_memory_are_read_by_windows_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pyramid TIFF and a label TIFF: a window reads its own pixels only, whatever the size of the slide."""
    images, masks = folders(tmp_path)
    drawing = draw(5, (1300, 1100), 200)
    save_image(images, "slide", drawing, "tif")
    save_mask(masks, "slide", "labels tif", drawing)
    read: Counter[str] = Counter()

    def counted(kind: type, name: str) -> None:
        plain = getattr(kind, name)

        def count(self: Any, *arguments: Any) -> Any:
            read[kind.__name__] += arguments[-1].area_px
            assert arguments[-1].area_px <= 1024**2, f"{arguments[-1]} is more than a window"
            return plain(self, *arguments)

        monkeypatch.setattr(kind, name, count)

    counted(TiffSlide, "read")
    counted(TiffLabels, "read")
    (case,) = open_dataset(images, masks, None, DataSettings(memory_gb=0)).cases
    assert read["TiffSlide"] == 0, "opening an image reads no pixel of it"
    assert read["TiffLabels"] == 1300 * 1100, "its mask is read once, for its distinct values"
    read.clear()
    window = slice(1000, 1100), slice(700, 900)
    assert np.array_equal(case.image_CYX[(slice(None), *window)], drawing.image_YXC.transpose(2, 0, 1)[:, *window])
    assert np.array_equal(case.labels_YX[window], drawing.one_class[window])
    assert read == {"TiffSlide": 20_000, "TiffLabels": 20_000}


def test_images_are_read_into_memory_until_it_is_full(tmp_path: Path) -> None:
    images, masks, _ = dataset(tmp_path, "labels png")
    needed = SHAPE[0] * SHAPE[1] * (3 + 4)
    for room, held in ((0, 0), (needed - 1, 0), (needed, 1), (2.5 * needed, 2), (3 * needed, 3)):
        cases = open_dataset(images, masks, None, DataSettings(memory_gb=room / 1e9)).cases
        assert [isinstance(case.labels_YX, np.ndarray) for case in cases] == [True] * held + [False] * (3 - held)


@pytest.mark.parametrize("key", [(slice(0, 9, 2), slice(0, 9)), (slice(0, 9),) * 4])
def test_slices_with_steps_or_too_many_axes_are_rejected(tmp_path: Path, key: Any) -> None:
    images, masks, _ = dataset(tmp_path, "0/1", (1,))
    (case,) = open_dataset(images, masks, None, DataSettings(memory_gb=0)).cases
    with pytest.raises(IndexError, match="expected at most"):
        case.labels_YX[key]
    assert case.labels_YX[5:5].shape == (0, SHAPE[1])
    assert case.image_CYX[:, 90:200, 7:3].shape == (3, 6, 0)


# ---- QuPath annotations ----------------------------------------------------------------------------------------------


def test_qupath_annotations_become_labels_and_classes(tmp_path: Path) -> None:
    images, masks = folders(tmp_path)
    drawing = draw(7)
    save_image(images, "slide", drawing, "tif")
    areas = [
        (rectangle(5, 5, 50, 60), "tumour"),
        (rectangle(20.6, 20.2, 30.4, 30.6), "stroma"),
        (rectangle(70, 9, 80, 20), ""),
    ]
    save_geojson(masks / "slide.geojson", *areas[:2])
    with pytest.raises(ConfigError, match=r"slide\.geojson: annotations of 2 classes, stroma, tumour.*data\.classes="):
        open_dataset(images, masks)
    found = open_dataset(images, masks, None, TWO)
    (case,) = found.cases
    classes, labels = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.int32)
    classes[5:60, 5:50] = labels[5:60, 5:50] = 1
    classes[20:31, 21:30] = labels[20:31, 21:30] = 2
    assert np.array_equal(read_all(case.labels_YX), labels)
    assert np.array_equal(read_all(case.classes_YX), classes)
    assert found.mpp == {"slide": pytest.approx(0.5)}
    save_geojson(masks / "slide.geojson", *areas)
    with pytest.raises(ConfigError, match=r"an annotation without a class, where data\.classes names tumour, stroma"):
        open_dataset(images, masks, None, TWO)
    save_geojson(masks / "slide.geojson", areas[0], areas[2])
    found = open_dataset(images, masks)
    assert (found.class_names, found.cases[0].classes_YX) == (("tumour",), None)


def test_each_annotated_region_becomes_a_case(tmp_path: Path) -> None:
    images, masks = folders(tmp_path)
    drawing = draw(8)
    save_image(images, "slide", drawing, "tif")
    regions = [(rectangle(10, 20, 70, 80), "Region*"), (rectangle(80, 0, 500, 50), "Region*")]
    save_geojson(masks / "slide.geojson", (rectangle(30, 30, 40, 45), "nucleus"), *regions)
    table = save_table(tmp_path / "cases.csv", "image,patient", "slide.tif,ann")
    for memory_gb in (0.0, 1.0):
        found = open_dataset(images, masks, table, DataSettings(memory_gb=memory_gb))
        assert [case.name for case in found.cases] == ["slide#1", "slide#2"]
        assert {row.patient for row in found.rows.values()} == {"ann"}
        first, second = found.cases
        assert np.array_equal(read_all(first.image_CYX), drawing.image_YXC.transpose(2, 0, 1)[:, 20:80, 10:70])
        assert np.array_equal(np.argwhere(read_all(first.labels_YX)).min(axis=0), (10, 20))
        assert (read_all(first.labels_YX) == 1).sum() == 150
        assert second.image_CYX.shape == (3, 50, 40)
        assert not read_all(second.labels_YX).any()
    assert "2 areas of class Region*" in " ".join(found.remarks)


# ---- faults ----------------------------------------------------------------------------------------------------------


def refused(message: str, *arguments: Any) -> None:
    with pytest.raises(ConfigError, match=message):
        open_dataset(*arguments)


def test_a_missing_partner_is_named(tmp_path: Path) -> None:
    images, masks, _ = dataset(tmp_path, "0/1")
    shutil.move(masks / "case 2.png", masks / "case 2_mask.png")
    refused(
        r"1 images without a mask: .*case 2\.png\. Expected .*case 2\.png, \.tif, \.geojson or \.csv .*_mask\.png",
        images,
        masks,
    )
    (masks / "case 2_mask.png").rename(tmp_path / "away.png")
    Image.new("L", SHAPE[::-1]).save(masks / "case 2.jpg")
    refused(r"There is .*case 2\.jpg, which cannot hold labels", images, masks)
    shutil.move(tmp_path / "away.png", masks / "case 2.png")
    shutil.copy(masks / "case 2.png", masks / "case 9.png")
    refused(r"1 masks without an image of the same name: .*case 9\.png", images, masks)
    shutil.move(masks / "case 9.png", masks / "case 2.TIF")
    refused(r"two masks of one image: .*case 2\.TIF and .*case 2\.png|two masks of one image", images, masks)


def test_missing_equal_or_empty_folders_are_rejected(tmp_path: Path) -> None:
    images, masks, _ = dataset(tmp_path, "0/1")
    refused("is no folder: expected annotated images", tmp_path / "nowhere", masks)
    refused("is no folder: expected the masks", images, tmp_path / "nowhere")
    refused("--images and --masks are the same folder", images, images)
    (tmp_path / "empty").mkdir()
    refused("empty: no image found: tried", tmp_path / "empty", masks)


def test_a_mask_of_another_size_is_named(tmp_path: Path) -> None:
    images, masks, _ = dataset(tmp_path, "0/1")
    Image.new("L", (SHAPE[1] // 2, SHAPE[0] // 2)).save(masks / "case 2.png")
    refused(r"masks/case 2\.png: expected 120 x 96 px as .*images/case 2\.png, found 60 x 48.*full size", images, masks)
    Image.new("L", SHAPE).save(masks / "case 2.png")
    refused(r"found 96 x 120\. It is turned by 90 degrees", images, masks)


def test_images_of_two_kinds_are_named(tmp_path: Path) -> None:
    images, masks, _ = dataset(tmp_path, "0/1")
    Image.fromarray(draw(2).image_YXC[..., 0]).save(images / "case 2.png")
    refused(r"case 2\.png: channels 1, where .*case 1\.png has 3", images, masks)
    (images / "case 2.png").unlink()
    tifffile.imwrite(images / "case 2.tif", draw(2).image_YXC.astype(np.uint16), photometric="rgb")
    refused(r"case 2\.tif: dtype uint16, where .*case 1\.png has uint8", images, masks)


def test_masks_in_colours_without_a_table_are_named(tmp_path: Path) -> None:
    images, masks, _ = dataset(tmp_path, "rgb png")
    refused(
        r"masks/case 1\.png: the mask is in colours, \[0, 0, 0\], \[0, 128, 255\], .*--set 'data\.colours=",
        images,
        masks,
    )
    missing = DataSettings(colours={"tumour": COLOURS["tumour"]})
    refused(r"masks/case 1\.png: .*found also \[0, 128, 255\] \(1 in all\)", images, masks, None, missing)


def test_unknown_values_are_named(tmp_path: Path) -> None:
    images, masks, drawings = dataset(tmp_path, "classes")
    wrong = drawings["case 3"].classes.copy()
    wrong[4, 4] = 9
    tifffile.imwrite(masks / "case 3.tif", wrong)
    refused(
        r"masks/case 3\.tif: expected numbers of classes, 0 to 2 \(tumour, stroma\), found also 9",
        images,
        masks,
        None,
        TWO,
    )
    refused(r"masks/case 3\.tif: it holds 0, 1, 2, 9, .*data\.mask=labels .* data\.classes=", images, masks)


def test_mixed_masks_of_0_1_and_0_255_are_named(tmp_path: Path) -> None:
    images, masks, drawings = dataset(tmp_path, "0/1")
    save_mask(masks, "case 2", "0/255", drawings["case 2"])
    refused(r"masks of two kinds: .*case 1\.png holds 0, 1, .*case 2\.png 0, 255.*data\.mask=binary", images, masks)
    found = open_dataset(images, masks, None, DataSettings(mask="binary"))
    assert np.array_equal(read_all(found.cases[1].labels_YX), drawings["case 2"].one_class)


def test_a_smoothed_mask_is_rejected(tmp_path: Path) -> None:
    images, masks, drawings = dataset(tmp_path, "0/255")
    small = Image.fromarray(((drawings["case 1"].classes > 0) * 255).astype(np.uint8)).resize((60, 48))
    small.resize(SHAPE[::-1], Image.Resampling.BILINEAR).save(masks / "case 1.png")
    refused(r"masks/case 1\.png: it holds .*smoothed", images, masks)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    images, masks, _ = dataset(tmp_path, "0/1")
    whole_file = (masks / "case 2.png").read_bytes()
    (masks / "case 2.png").write_bytes(whole_file[: len(whole_file) // 2])
    refused(r"masks/case 2\.png", images, masks)
    (masks / "case 2.png").write_bytes(whole_file)
    (images / "case 3.png").write_bytes((images / "case 3.png").read_bytes()[:5000])
    refused(r"images/case 3\.png", images, masks)


# ---- the table -------------------------------------------------------------------------------------------------------


def test_the_table_selects_images_and_their_patients(tmp_path: Path) -> None:
    images, masks, _ = dataset(tmp_path, "0/1")
    lines = ["case 3.png,he,ann,2024-05-31,low,1", "case 1,he,bob,2023-01-02,high,0", "other.png,fluo,eve,,,0"]
    table = save_table(tmp_path / "t.csv", "image,kind,patient,date,stratum,fold", *lines)
    found = open_dataset(images, masks, table, DataSettings(only={"kind": "he"}))
    assert [case.name for case in found.cases] == ["case 1", "case 3"]
    row = found.rows["case 3"]
    assert (row.patient, str(row.date), row.stratum, row.fold) == ("ann", "2024-05-31", "low", 1)
    assert "1 of 3 images are not in the table" in found.remarks[0]
    refused(r"t\.csv, line 4: no image 'other\.png' .*data\.only=", images, masks, table)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["name,patient", "case 1,a"], r"line 1: expected column names, one of them 'image'"),
        (["image,Patient", "case 1,a"], r"line 1: column 'Patient': expected 'patient'"),
        (["image,patient", "case 1,a", "case 1.png,b"], r"line 3: 'case 1\.png' is the image of line 2 too"),
        (["image,patient", "case 1,"], r"line 2: the cell 'patient' is empty"),
        (["image,date", "case 1,31.05.2024"], r"line 2: expected a date such as 2024-05-31 .* found '31\.05\.2024'"),
        (["image,fold", "case 1,one"], r"line 2: expected a whole number as fold, found 'one'"),
        (["image,fold", "case 11,1"], r"line 2: no image 'case 11' .*did you mean 'case 1'"),
        (["image"], r"expected one line an image, found none"),
        (["image,fold", "case 1"], r"line 2: expected 2 cells as in the header, found 1"),
    ],
)
def test_an_invalid_table_is_rejected_by_line(tmp_path: Path, lines: list[str], message: str) -> None:
    images, masks, _ = dataset(tmp_path, "0/1", (1,))
    refused(message, images, masks, save_table(tmp_path / "t.csv", *lines))


def test_images_in_subfolders_are_found_by_path(tmp_path: Path) -> None:
    images, masks = folders(tmp_path)
    for patient in ("a", "b"):
        (images / patient).mkdir()
        (masks / patient).mkdir()
        save_image(images / patient, "1", draw(1))
        save_mask(masks / patient, "1", "0/1", draw(1))
    table = save_table(tmp_path / "t.csv", "image,slide", "a/1.png,s", "b/1,t")
    found = open_dataset(images, masks, table)
    assert {name: row.patient for name, row in found.rows.items()} == {"a/1": "s", "b/1": "t"}
    refused(
        r"2 images are called '1\.png': a/1, b/1\. Give the path",
        *(images, masks, save_table(tmp_path / "u.csv", "image", "1.png")),
    )


def test_shared_label_images_are_read_unchanged(shared_data: Path) -> None:
    """The label images and the table of the built-in model's training data: masks are detected as object numbers."""
    folder = shared_data / "dsb2018"
    settings = DataSettings(only={"kind": "he"})
    found = open_dataset(folder / "he" / "images", folder / "he" / "labels", folder / "groups.csv", settings)
    assert any("a number for each object" in message for message in found.remarks)
    case = found.cases[0]
    stored = np.asarray(Image.open(folder / "he" / "labels" / f"{case.name}.png"))
    assert np.array_equal(case.labels_YX, stored)
    assert {row.fold for row in found.rows.values()} == {0, 1, 2, 3, 4}


def test_slices_of_windows_are_relative_to_their_area() -> None:
    """Slices are in pixels of the annotated part."""
    image = np.arange(400).reshape(20, 20)
    part = Windows(lambda box: image[box.slices], Box(3, 5, 13, 20), np.dtype(np.int32))
    assert part.shape == (10, 15)
    assert np.array_equal(part[2:4, 1:], image[5:7, 6:])
    assert np.array_equal(part[-2:], image[11:13, 5:])
