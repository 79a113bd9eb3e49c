"""Ignored pixels: areas called Ignore* in QuPath, and an ignored value of masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from pydantic import ValidationError

from pipeline.annotations.dataset import open_dataset
from pipeline.annotations.dataset_checks import check_annotations
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
)
from unet_core.class_map import IGNORED
from unet_core.data.mask_encoding import DataSettings


def test_ignore_areas_are_neither_object_nor_background(tmp_path: Path) -> None:
    images, masks = folders(tmp_path)
    save_image(images, "slide", draw(7), "tif")
    areas = [(rectangle(5, 5, 50, 60), "tumour"), (rectangle(40, 50, 70, 80), "Ignore*")]
    save_geojson(masks / "slide.geojson", *areas)
    for memory_gb in (0.0, 1.0):
        found = open_dataset(images, masks, None, DataSettings(memory_gb=memory_gb))
        (case,) = found.cases
        classes = np.zeros(SHAPE, np.uint8)
        classes[5:60, 5:50] = 1
        classes[50:80, 40:70] = IGNORED
        assert np.array_equal(read_all(case.class_map), classes)
        assert np.array_equal(read_all(case.labels_YX), classes == 1)
    assert "1 areas of class Ignore*" in " ".join(found.remarks)


@pytest.mark.parametrize(
    ("kind", "ignore", "settings"),
    [
        ("0/1", 255, {}),
        ("labels png", 999, {}),
        ("classes", 9, {"classes": tuple(COLOURS)}),
        ("rgb png", (9, 9, 9), {"colours": COLOURS, "background": (255, 255, 255)}),
    ],
)
def test_an_ignored_value_of_masks_has_no_class_and_no_object(
    tmp_path: Path, kind: str, ignore: Any, settings: dict[str, Any]
) -> None:
    """Ignored pixels belong to no class and no object; all others are unchanged."""
    images, masks, drawings = dataset(tmp_path, kind)
    unknown = np.zeros(SHAPE, bool)
    unknown[20:60, 30:90] = True
    for path in masks.iterdir():
        pixels = np.array(tifffile.imread(path) if path.suffix == ".tif" else Image.open(path))
        if kind == "rgb png":
            pixels[(pixels == 0).all(axis=-1)] = 255
        pixels[unknown] = ignore
        tifffile.imwrite(path, pixels) if path.suffix == ".tif" else Image.fromarray(pixels).save(path)
    found = open_dataset(images, masks, None, DataSettings(ignore=ignore, **settings))
    for case in found.cases:
        drawing = drawings[case.name]
        classes = np.where(unknown, IGNORED, drawing.classes if settings else drawing.classes > 0)
        assert np.array_equal(read_all(case.class_map), classes)
        assert not read_all(case.labels_YX)[unknown].any()
    summary = check_annotations(found)
    assert f"{unknown.mean():.1%} of all pixels are ignored" in " ".join(summary.remarks)
    assert sum(summary.class_px) == 3 * (~unknown).sum()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ignore": (1, 2, 3)}, "expected a number"),
        ({"ignore": 5, "colours": COLOURS}, "expected a colour"),
        ({"ignore": 2, "classes": tuple(COLOURS)}, "expected another than those of classes"),
        ({"ignore": (0, 0, 0), "colours": COLOURS}, "expected another than those of classes"),
        ({"ignore": 0}, "greater than 0"),
    ],
)
def test_invalid_ignore_values_are_rejected(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataSettings(**settings)
