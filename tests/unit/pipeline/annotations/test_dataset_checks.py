"""Checks of a dataset: exact counts, rejection of unusable data, remarks, and folds."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from rich.console import Console

from flows.cli.dataset_summary import show_summary
from pipeline.annotations.dataset import open_dataset
from pipeline.annotations.dataset_checks import DatasetSummary, check_annotations, draw_folds, members
from pipeline.errors import ConfigError
from tests.unit.flows.annotating import (
    COLOURS,
    SHAPE,
    Drawing,
    dataset,
    draw,
    folders,
    save_image,
    save_mask,
    save_table,
)
from unet_core.data.folds import FoldSettings
from unet_core.data.mask_encoding import DataSettings

TWO = DataSettings(classes=tuple(COLOURS))


def shown(summary: DatasetSummary) -> str:
    console = Console(file=io.StringIO(), width=140)
    show_summary(summary, console)
    return console.file.getvalue()


@pytest.mark.parametrize("memory_gb", [2.0, 0.0], ids=["in memory", "by window"])
def test_counts_and_moments_equal_numpy_over_all_pixels(tmp_path: Path, memory_gb: float) -> None:
    images, masks, drawings = dataset(tmp_path, "classes")
    summary = check_annotations(open_dataset(images, masks, None, TWO.model_copy(update={"memory_gb": memory_gb})))
    pixels = np.concatenate([one.image_YXC.reshape(-1, 3) for one in drawings.values()]) / 255
    classes = np.concatenate([one.classes.ravel() for one in drawings.values()])
    assert summary.mean == pytest.approx(pixels.mean(axis=0), rel=1e-12)
    assert summary.std == pytest.approx(pixels.std(axis=0), rel=1e-12)
    assert summary.class_px == tuple(np.bincount(classes, minlength=3))
    assert summary.frequencies == pytest.approx(np.bincount(classes, minlength=3) / classes.size)
    for case, drawing in zip(summary.cases, drawings.values(), strict=True):
        assert case.counted.objects == drawing.objects.max()
        assert case.in_memory == (memory_gb > 0)
        assert (case.shape_yx, case.counted.dtype, case.counted.pixels) == (SHAPE, np.uint8, SHAPE[0] * SHAPE[1])


def test_counts_do_not_depend_on_windows(tmp_path: Path) -> None:
    """An image wider than a window, 16 bits: sums are integers, so they do not depend on windows."""
    images, masks = folders(tmp_path)
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 65536, (1500, 1100)).astype(np.uint16)
    classes = np.zeros(pixels.shape, np.uint8)
    classes[1000:1050, 1000:1050] = classes[5:9, 5:9] = 1
    tifffile.imwrite(images / "a.tif", pixels, tile=(256, 256))
    tifffile.imwrite(masks / "a.tif", classes, tile=(256, 256))
    summary = check_annotations(open_dataset(images, masks, None, DataSettings(memory_gb=0)))
    (case,) = summary.cases
    assert case.counted.sums == (int(pixels.sum(dtype=np.int64)),)
    assert case.counted.squares == (int((pixels.astype(np.int64) ** 2).sum()),)
    assert (case.class_px, case.counted.objects) == ((1500 * 1100 - 2516, 2516), 2)
    assert summary.std == pytest.approx([(pixels / 65535).std()], rel=1e-9)


def test_fault_61_a_class_without_a_pixel_is_refused(tmp_path: Path) -> None:
    images, masks, _ = dataset(tmp_path, "classes")
    three = DataSettings(classes=(*COLOURS, "necrosis"))
    with pytest.raises(ConfigError, match=r"class 'necrosis' has not one pixel in 3 masks \(case 1.*data\.classes"):
        check_annotations(open_dataset(images, masks, None, three))
    images, masks, _ = dataset(tmp_path / "none", "0/1")
    for path in masks.iterdir():
        Image.new("L", SHAPE[::-1]).save(path)
    with pytest.raises(ConfigError, match="class 'object' has not one pixel"):
        check_annotations(open_dataset(images, masks))


def test_images_of_one_colour_are_rejected(tmp_path: Path) -> None:
    images, masks, _ = dataset(tmp_path, "0/1")
    for path in images.iterdir():
        Image.new("RGB", SHAPE[::-1], (9, 9, 9)).save(path)
    with pytest.raises(ConfigError, match=r"case 1: every pixel of every image has one value"):
        check_annotations(open_dataset(images, masks))


def test_unusual_data_are_reported_and_tables_displayed(tmp_path: Path) -> None:
    images, masks, _ = dataset(tmp_path, "0/255")
    blank = Drawing(np.full((*SHAPE, 3), 200, np.uint8), np.zeros(SHAPE, np.uint8))
    save_image(images, "[bold]blank", blank)
    save_mask(masks, "[bold]blank", "0/1", blank)
    for path in masks.glob("case*"):
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    summary = check_annotations(open_dataset(images, masks, None, DataSettings(memory_gb=0)))
    message = " ".join(summary.remarks)
    for words in (
        "1 images have one value throughout: [bold]blank",
        "1 images have no object: [bold]blank",
        "of all pixels are objects: are objects and background exchanged?",
        "4 images do not fit into data.memory_gb",
        "every image counts as a patient of its own",
    ):
        assert words in message
    text = shown(summary)
    for words in ("[bold]blank", "case 3", "120 x 96", "uint8", "4 images of 4 patients", "background", "note: "):
        assert words in text, text


def test_different_resolutions_are_reported(tmp_path: Path) -> None:
    images, masks = folders(tmp_path)
    for number, mpp in enumerate((0.25, 0.5)):
        pixels = draw(number).image_YXC
        tifffile.imwrite(
            images / f"{number}.tif",
            pixels,
            photometric="rgb",
            resolution=(1e4 / mpp,) * 2,
            resolutionunit="CENTIMETER",
        )
        save_mask(masks, f"{number}", "0/1", draw(number))
    summary = check_annotations(open_dataset(images, masks))
    assert [case.mpp for case in summary.cases] == pytest.approx([0.25, 0.5])
    assert any("images state 0.25 to 0.5 um per pixel" in message for message in summary.remarks)


# ---- folds -----------------------------------------------------------------------------------------------------------


def test_folds_follow_the_table_and_are_stored(tmp_path: Path) -> None:
    images, masks, drawings = dataset(tmp_path, "classes", range(1, 9))
    lines = [f"{name}.png,p{number // 2}" for number, name in enumerate(drawings)]
    table = save_table(tmp_path / "t.csv", "image,patient", *lines)
    annotations = open_dataset(images, masks, table, TWO)
    summary = check_annotations(annotations)
    assert summary.patients == 4
    folds = draw_folds(tmp_path / "folds.json", annotations, summary, FoldSettings(k=2))
    assert draw_folds(tmp_path / "folds.json", annotations, summary, FoldSettings(k=2)) == folds
    for first, second in zip(*[iter(drawings)] * 2, strict=True):
        assert folds.folds[first] == folds.folds[second]
    with pytest.raises(ConfigError, match=r"as many patients as folds \(5\), found 4"):
        draw_folds(tmp_path / "more.json", annotations, summary, FoldSettings(k=5))


def test_fault_62_a_column_that_parts_a_patient_or_starves_a_fold_is_refused(tmp_path: Path) -> None:
    images, masks, drawings = dataset(tmp_path, "classes", range(1, 5))
    lines = [f"{name},p{number // 2},{number % 2}" for number, name in enumerate(drawings)]
    table = save_table(tmp_path / "t.csv", "image,patient,fold", *lines)
    annotations = open_dataset(images, masks, table, TWO)
    with pytest.raises(ConfigError, match="patient 'p0' is on both sides: case 1 in fold 0, case 2 in fold 1"):
        draw_folds(tmp_path / "folds.json", annotations, check_annotations(annotations), FoldSettings())
    assert not (tmp_path / "folds.json").exists()
    for name in ("case 1", "case 2"):  # of fold 0, without any stroma then
        only = np.where(drawings[name].classes == 1, 1, 0).astype(np.uint8)
        tifffile.imwrite(masks / f"{name}.tif", only)
    table = save_table(tmp_path / "u.csv", "image,fold", *[f"{name},{n // 2}" for n, name in enumerate(drawings)])
    annotations = open_dataset(images, masks, table, TWO)
    summary = check_annotations(annotations)
    assert members(annotations, summary)[0].classes == {"tumour"}
    with pytest.raises(ConfigError, match="fold 0 has no object of class 'stroma'"):
        draw_folds(tmp_path / "folds.json", annotations, summary, FoldSettings())
