"""Images at another resolution than the network's: pixels resampled as in segment, masks by the nearest pixel."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from flows.training.training_data import TrainRequest, prepare
from pipeline.annotations.dataset import open_dataset
from pipeline.annotations.resampling import common_resolution
from pipeline.config import load_as
from pipeline.errors import ConfigError
from tests.unit.flows.annotating import COLOURS, draw, folders, read_all, rectangle, save_geojson
from unet_core.data.mask_encoding import DataSettings
from unet_core.training.config import TrainConfig

TWO = DataSettings(classes=tuple(COLOURS))


def save(path: Path, pixels: NDArray[Any], mpp: float | tuple[float, float] | None, **more: Any) -> None:
    """Write a tiled TIFF with a resolution (x, y), or without one."""
    if mpp is not None:
        both = mpp if isinstance(mpp, tuple) else (mpp, mpp)
        more |= {"resolution": tuple(1e4 / one for one in both), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels, tile=(32, 32), compression="zlib", **more)


def enlarged(pixels: NDArray[Any]) -> NDArray[Any]:
    return pixels.repeat(2, axis=0).repeat(2, axis=1)


def test_a_twofold_enlarged_image_is_resampled_to_the_original(tmp_path: Path) -> None:
    """The same holds for annotated parts, in memory and by window."""
    images, masks = folders(tmp_path)
    drawing = draw(3)
    save(images / "a.tif", enlarged(drawing.image_YXC), 0.25, photometric="rgb")
    save(masks / "a.tif", enlarged(drawing.classes), None)
    for memory_gb in (0.0, 1.0):
        found = open_dataset(images, masks, None, TWO.model_copy(update={"memory_gb": memory_gb}), 0.5)
        (case,) = found.cases
        assert np.array_equal(read_all(case.image_CYX), drawing.image_YXC.transpose(2, 0, 1))
        assert np.array_equal(read_all(case.class_map), drawing.classes)
        assert np.array_equal(read_all(case.labels_YX), drawing.objects)
        window = slice(17, 55), slice(30, 31)
        assert np.array_equal(case.labels_YX[window], drawing.objects[window])
    assert found.mpp == {"a": 0.5}
    assert "1 images of 0.25 to 0.25 um per pixel are resampled to the network's 0.5" in " ".join(found.remarks)
    (masks / "a.tif").unlink()
    areas = [
        (rectangle(21, 30, 61, 90), "Region*"),
        (rectangle(30, 40, 50, 60), "a"),
        (rectangle(51, 80, 90, 90), "Ignore*"),
    ]
    save_geojson(masks / "a.geojson", *areas)
    (part,) = open_dataset(images, masks, None, DataSettings(), 0.5).cases
    assert np.array_equal(read_all(part.image_CYX), drawing.image_YXC.transpose(2, 0, 1)[:, 15:45, 11:30])
    expected = np.zeros((30, 19), np.uint8)
    expected[5:15, 4:14] = 1
    expected[25:, 14:] = 255
    assert np.array_equal(read_all(part.class_map), expected)


@pytest.mark.parametrize("mpp", [0.31, 0.77])
def test_any_factor_takes_the_label_at_each_pixels_centre(tmp_path: Path, mpp: float) -> None:
    """Equal to a loop in rational numbers, finer and coarser; windows agree with the whole."""
    images, masks = folders(tmp_path)
    drawing = draw(4, (70, 90))
    save(images / "a.tif", drawing.image_YXC, mpp, photometric="rgb")
    save(masks / "a.tif", drawing.classes, None)
    (case,) = open_dataset(images, masks, None, TWO, 0.5).cases
    factor = Fraction(50, round(100 * mpp))
    height, width = (max(1, int(length / factor + Fraction(1, 2))) for length in (70, 90))
    assert case.labels_YX.shape == case.image_CYX.shape[1:] == (height, width)
    expected = np.zeros((height, width), int)
    for y, x in np.ndindex(height, width):
        at = (min(int((i + Fraction(1, 2)) * factor), side - 1) for i, side in ((y, 70), (x, 90)))
        expected[y, x] = drawing.objects[tuple(at)]
    assert np.array_equal(read_all(case.labels_YX), expected)
    (windowed,) = open_dataset(images, masks, None, TWO.model_copy(update={"memory_gb": 0.0}), 0.5).cases
    for window in ((slice(3, 30), slice(5, 40)), (slice(30, 31), slice(0, 7))):
        assert np.array_equal(windowed.labels_YX[window], expected[window])
        assert np.array_equal(windowed.image_CYX[(slice(None), *window)], case.image_CYX[(slice(None), *window)])


@pytest.mark.parametrize("mpp", [1.3, (0.25, 0.3)])
def test_images_that_cannot_be_resampled_are_rejected(tmp_path: Path, mpp: Any) -> None:
    images, masks = folders(tmp_path)
    save(images / "a.tif", draw(3).image_YXC, mpp, photometric="rgb")
    save(masks / "a.tif", draw(3).classes, None)
    with pytest.raises(ConfigError, match=r"a\.tif: pixels of .* um cannot be resampled to the network's 0\.5 um"):
        open_dataset(images, masks, None, TWO, 0.5)
    assert open_dataset(images, masks, None, TWO).cases[0].labels_YX.shape == (96, 120)


def test_a_common_resolution_is_within_the_tolerance_of_segment() -> None:
    assert common_resolution([0.5, 0.5]) == 0.5
    assert common_resolution([0.5, 0.51, 0.49]) == pytest.approx(0.5)
    assert common_resolution([0.5, 0.53]) is None
    assert common_resolution([0.5, None]) is None
    assert common_resolution([None]) is None


@pytest.mark.parametrize(
    ("stated", "requested", "expected", "side"),
    [
        ((0.5, 0.51), None, 0.505, 96),
        ((0.5, 0.25), None, None, 96),
        ((0.25, 0.25), 0.5, 0.5, 48),
        ((0.5, None), 0.5, 0.5, 96),
    ],
)
def test_network_and_images_have_one_resolution(
    tmp_path: Path, stated: tuple[float | None, ...], requested: float | None, expected: float | None, side: int
) -> None:
    images, masks = folders(tmp_path)
    for number, mpp in enumerate(stated):
        save(images / f"{number}.tif", draw(number).image_YXC, mpp, photometric="rgb")
        save(masks / f"{number}.tif", draw(number).classes, None)
    settings = ["network.depth=1", "network.width=2", "folds.hold_back=null", "data.classes=[tumour, stroma]"]
    settings += [] if requested is None else [f"network.mpp={requested}"]
    request = TrainRequest(images, masks, None, tmp_path / "run", load_as(TrainConfig, None, settings))
    prepared = prepare(request)
    (order,) = prepared.jobs
    assert order.spec().mpp == expected
    assert order.recipe.network.resolution() == expected
    assert order.material.training[0].labels_YX.shape[0] == side
    message = " ".join(prepared.summary.remarks)
    assert ("as all images state" in message) == (requested is None and expected is not None)
    assert ("1 images state no resolution and are taken for 0.5" in message) == (None in stated)
