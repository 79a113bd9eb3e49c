"""`segment_image` gives the arrays that the installed command writes, for an array and for a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
import zarr

import pipeline
from pipeline.errors import ConfigError
from tests.support.commands import CLASSES
from tests.support.faults.trees import Finished
from tests.unit.flows.dark_discs import SPEC, draw_discs, save_dark_network
from unet_core.spec import ObjectSettings

MOMENTS = ["major_axis_um", "minor_axis_um", "orientation_rad", "eccentricity"]
"""Columns whose last bit depends on the size of blocks, which is 512 px in the command's result."""


def stored(result: Path, path: str) -> np.ndarray:
    """An array of a result, read by zarr alone."""
    return np.asarray(zarr.open_array(result / "slide.ome.zarr" / path, mode="r")[...])


@pytest.mark.parametrize("as_array", [True, False])
def test_arrays_and_table_equal_those_of_the_command(finished: Finished, *, as_array: bool) -> None:
    image = tifffile.imread(finished.slide) if as_array else finished.slide
    found = pipeline.segment_image(image, str(CLASSES), mpp=0.5, tissue={}, precision="fp32")
    assert np.array_equal(found.image, stored(finished.result, "0"))
    assert np.array_equal(found.probability, stored(finished.result, "probability/0"))
    assert np.array_equal(found.labels, stored(finished.result, "labels/objects/0"))
    assert found.labels.max() > 0
    expected = pq.read_table(finished.result / "objects.parquet")
    assert found.objects.drop_columns(MOMENTS).equals(expected.drop_columns(MOMENTS))
    for name in ("major_axis_um", "minor_axis_um"):
        assert np.allclose(found.objects[name], expected[name], rtol=1e-12)
    assert found.mpp == 0.5


def test_object_settings_reach_the_objects(finished: Finished) -> None:
    image = tifffile.imread(finished.slide)
    few = pipeline.segment_image(image, str(CLASSES), mpp=0.5, precision="fp32", min_area_um2=1e6)
    assert len(few.objects) == 0
    assert few.labels.max() == 0
    assert few.probability.max() > 0


def test_a_model_without_a_resolution_states_its_areas_in_pixels(tmp_path: Path) -> None:
    """20 to 81 px are 1 to 4 um2 here; as um2 they would be 395 to 1600 px, and no object would be left."""
    objects = ObjectSettings(max_area_um2=81.0)
    spec = SPEC.model_copy(update={"mpp": None, "min_area_um2": 20.0, "objects": objects})
    path = save_dark_network(tmp_path / "m.safetensors", 4.0, spec=spec)
    sizes = []
    for mpp in (0.225, 0.5, 1.0):
        found = pipeline.segment_image(draw_discs(0)[0], str(path), mpp=mpp, precision="fp32")
        assert min(found.objects["area_um2"].to_numpy()) >= 20 * mpp**2 * (1 - 1e-9)
        sizes.append(np.bincount(found.labels.ravel())[1:].tolist())
    assert sizes[0] == sizes[1] == sizes[2]
    assert len(sizes[0]) >= 3
    assert max(sizes[0]) <= 81
    stated = pipeline.segment_image(draw_discs(0)[0], str(path), mpp=0.225, precision="fp32", min_area_um2=3.0)
    assert 0 < len(stated.objects) < len(sizes[0]), "a limit of the user is in um2"


@pytest.mark.parametrize(
    ("shape", "dtype"), [((10, 10, 3, 1), np.uint8), ((10, 10), np.float32), ((0, 10), np.uint8), ((10,), np.uint8)]
)
def test_arrays_of_other_shapes_or_types_are_refused(shape: tuple[int, ...], dtype: type) -> None:
    with pytest.raises(ConfigError, match=r"expected \(y, x\) or \(y, x, channel\) of uint8 or uint16"):
        pipeline.segment_image(np.zeros(shape, dtype), str(CLASSES), mpp=0.5)


def test_an_array_without_a_resolution_is_refused() -> None:
    with pytest.raises(ConfigError, match="Give mpp="):
        pipeline.segment_image(np.zeros((50, 50, 3), np.uint8), str(CLASSES))


def test_unknown_object_settings_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="treshold"):
        pipeline.segment_image(np.zeros((50, 50, 3), np.uint8), str(CLASSES), mpp=0.5, treshold=0.4)


def test_exported_names_are_listed_and_exist() -> None:
    assert set(pipeline.__all__) <= set(dir(pipeline))
    assert all(getattr(pipeline, name).__doc__ for name in pipeline.__all__)
    with pytest.raises(AttributeError, match="segment_picture"):
        pipeline.segment_picture  # noqa: B018  the access is what fails
