"""The pyramid: levels against brute force, resume to the same bytes, and metadata that other readers accept."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from ome_zarr_models.v05 import Image

from pipeline.errors import DamagedError, StoreError
from pipeline.execution.blocks import StageContext, serial
from pipeline.stages.pyramid import PyramidInputs, halve_mean, level_shapes, pyramid_slide
from pipeline.storage.layout import IMAGE, OBJECTS, PROBABILITY
from pipeline.storage.slide_store import SlideStore
from tests.support.make_store import StopAfter, StoppedError, backwards, put_array, tree_bytes
from tests.unit.pipeline.stage_inputs import NUCLEUS, image_info

SHAPE_YX = (1101, 1300)
BLOCKS = 3 * (2 * 2) + 3 * 1  # three arrays; level 1 is 551 x 650 (four blocks), level 2 is 276 x 325 (one)
PLANS = {IMAGE: "a" * 64, PROBABILITY: "b" * 64, OBJECTS: "c" * 64}
SECTION = PyramidInputs(image_info(0.25), NUCLEUS, PLANS)


def slide_arrays(shape_yx: tuple[int, int] = SHAPE_YX, seed: int = 0) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return {
        IMAGE: rng.integers(0, 256, (3, *shape_yx), np.uint8),
        PROBABILITY: rng.integers(0, 256, (1, *shape_yx), np.uint8),
        OBJECTS: rng.integers(0, 2**32, shape_yx, np.uint32),
    }


def make_slide(root: Path, arrays: Mapping[str, NDArray[Any]], plans: Mapping[str, str] = PLANS) -> StageContext:
    for path, pixels in arrays.items():
        put_array(SlideStore(root), path, pixels, plans[path])
    return StageContext(root, arrays[IMAGE].shape[-2:], 512, "p" * 64)


def mean_of_each_square(pixels: NDArray[Any]) -> NDArray[Any]:
    """Brute force: each output pixel separately, rounded half up."""
    height, width = -(-pixels.shape[-2] // 2), -(-pixels.shape[-1] // 2)
    made = np.empty((*pixels.shape[:-2], height, width), pixels.dtype)
    for y, x in np.ndindex(height, width):
        square = pixels[..., 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].astype(np.int64)
        number = square.shape[-2] * square.shape[-1]
        made[..., y, x] = (2 * square.sum((-2, -1)) + number) // (2 * number)
    return made


def mean_of_what_exists(pixels: NDArray[Any]) -> NDArray[Any]:
    """The same for large arrays: exact sums and numbers of the existing pixels of each square."""

    def sums(values: NDArray[Any]) -> NDArray[Any]:
        rows, cols = (np.arange(0, length, 2) for length in values.shape[-2:])
        return np.asarray(np.add.reduceat(np.add.reduceat(values.astype(np.int64), rows, -2), cols, -1))

    number = sums(np.ones_like(pixels))
    return np.asarray((2 * sums(pixels) + number) // (2 * number), pixels.dtype)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("slide")
    pyramid_slide(make_slide(root, slide_arrays()), SECTION, serial)
    return root


@settings(deadline=None)
@given(
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.sampled_from([np.uint8, np.uint16]),
    st.integers(0, 2**32 - 1),
)
def test_mean_is_brute_force(shape: tuple[int, int], dtype: type[np.unsignedinteger[Any]], seed: int) -> None:
    limit = int(np.iinfo(dtype).max)
    pixels = np.random.default_rng(seed).choice([0, 1, 2, 3, limit - 1, limit], (2, *shape)).astype(dtype)
    np.testing.assert_array_equal(halve_mean(pixels), mean_of_each_square(pixels))
    np.testing.assert_array_equal(mean_of_what_exists(pixels), mean_of_each_square(pixels))


def test_mean_refuses_what_it_cannot_round() -> None:
    with pytest.raises(TypeError, match="float32"):
        halve_mean(np.zeros((2, 2), np.float32))


def test_levels_until_both_sides_fit() -> None:
    assert level_shapes((1, 1)) == [(1, 1)]
    assert level_shapes((512, 512)) == [(512, 512)]
    assert level_shapes((513, 3)) == [(513, 3), (257, 2)]
    assert level_shapes((2050, 1)) == [(2050, 1), (1025, 1), (513, 1), (257, 1)]


def test_levels_are_brute_force(finished: Path) -> None:
    store = SlideStore(finished)
    arrays = slide_arrays()
    for path in (IMAGE, PROBABILITY):
        expected = mean_of_what_exists(arrays[path])
        np.testing.assert_array_equal(store.read(path[:-1] + "1")[:], expected)
        np.testing.assert_array_equal(store.read(path[:-1] + "2")[:], mean_of_what_exists(expected))
    for level in (1, 2):
        step = 2**level
        np.testing.assert_array_equal(store.read(f"labels/objects/{level}")[:], arrays[OBJECTS][::step, ::step])
    assert not (store.zarr / "3").exists()


def test_stamp_and_counts(finished: Path, tmp_path: Path) -> None:
    report = pyramid_slide(make_slide(tmp_path, slide_arrays()), SECTION, serial)
    assert (report.blocks, report.computed) == (BLOCKS, BLOCKS)
    store = SlideStore(finished)
    assert store.stamped("pyramid") == "p" * 64
    assert store.facts("pyramid") == {"levels": 3, "arrays": [IMAGE, OBJECTS, PROBABILITY]}


@pytest.mark.parametrize("stop_after", [0, 3, 5, BLOCKS - 1])
def test_resume_is_byte_identical(finished: Path, tmp_path: Path, stop_after: int) -> None:
    work = make_slide(tmp_path, slide_arrays())
    with pytest.raises(StoppedError):
        pyramid_slide(work, SECTION, StopAfter(stop_after))
    assert work.store.stamped("pyramid") is None
    report = pyramid_slide(work, SECTION, backwards)
    assert (report.blocks, report.computed) == (BLOCKS, BLOCKS - stop_after)
    assert tree_bytes(tmp_path) == tree_bytes(finished)
    assert pyramid_slide(work, SECTION, serial).computed == 0
    assert tree_bytes(tmp_path) == tree_bytes(finished)


def test_changed_objects_leave_the_image_alone(tmp_path: Path) -> None:
    work = make_slide(tmp_path, slide_arrays())
    pyramid_slide(work, SECTION, serial)
    before = tree_bytes(work.store.zarr)
    changed = slide_arrays(seed=1)[OBJECTS]
    put_array(work.store, OBJECTS, changed, "d" * 64)
    section = replace(SECTION, arrays={**PLANS, OBJECTS: "d" * 64})
    report = pyramid_slide(replace(work, plan_hash="q" * 64), section, serial)
    assert report.computed == BLOCKS // 3
    np.testing.assert_array_equal(work.store.read("labels/objects/2")[:], changed[::4, ::4])
    after = tree_bytes(work.store.zarr)
    assert {name for name in before if after[name] != before[name]} <= {n for n in after if n.startswith("labels/")}
    assert not any((work.store.work / "new").rglob("zarr.json"))


def test_a_smaller_image_removes_old_levels_and_objects(tmp_path: Path) -> None:
    pyramid_slide(make_slide(tmp_path, slide_arrays()), SECTION, serial)
    plans = {IMAGE: "e" * 64, PROBABILITY: "f" * 64}
    arrays = slide_arrays((700, 90))
    work = make_slide(tmp_path, {path: arrays[path] for path in plans}, plans)
    pyramid_slide(work, replace(SECTION, arrays=plans), serial)
    assert sorted(entry.name for entry in work.store.zarr.iterdir()) == ["0", "1", "probability", "zarr.json"]
    assert sorted(entry.name for entry in (work.store.zarr / "probability").iterdir()) == ["0", "1", "zarr.json"]
    check_metadata(work.store.zarr)


def test_a_parent_of_another_plan_is_refused(tmp_path: Path) -> None:
    work = make_slide(tmp_path, slide_arrays())
    with pytest.raises(StoreError, match="expected an array of plan eeeeeeee, found aaaaaaaa"):
        pyramid_slide(work, replace(SECTION, arrays={**PLANS, IMAGE: "e" * 64}), serial)


def test_a_missing_parent_shard_is_refused(tmp_path: Path) -> None:
    work = make_slide(tmp_path, slide_arrays())
    (work.store.zarr / "0/c/0/1/1").unlink()
    with pytest.raises(DamagedError, match="c/0/1/1 is missing or empty"):
        pyramid_slide(work, SECTION, serial)


def test_labels_of_another_size_are_refused(tmp_path: Path) -> None:
    arrays = slide_arrays((30, 40)) | {OBJECTS: np.zeros((30, 41), np.uint32)}
    with pytest.raises(StoreError, match=r"labels/objects/0: expected \(30, 40\) px like the image, found \(30, 41\)"):
        pyramid_slide(make_slide(tmp_path, arrays), SECTION, serial)


def test_one_pixel(tmp_path: Path) -> None:
    work = make_slide(tmp_path, slide_arrays((1, 1)))
    report = pyramid_slide(work, SECTION, serial)
    assert (report.blocks, report.computed) == (0, 0)
    check_metadata(work.store.zarr)


# ---- metadata -------------------------------------------------------------------------------------------------------


def check_metadata(path: Path) -> None:
    """Check ``path`` with ome-zarr-models as OME-Zarr 0.5, and four rules that it does not check."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Image.from_zarr(zarr.open_group(path, mode="r"))
    groups = [path, *(path / name for name in ("probability", "labels/objects") if (path / name).exists())]
    for group in groups:
        Image.from_zarr(zarr.open_group(group, mode="r"))
        check_scales(group)
    image = scales_of(path)
    for group in groups[1:]:
        assert [shape[-2:] for shape, _, _ in scales_of(group)] == [shape[-2:] for shape, _, _ in image]
        assert [scale[-2:] for _, scale, _ in scales_of(group)] == [scale[-2:] for _, scale, _ in image]


def ome(group: Path) -> dict[str, Any]:
    content = json.loads((group / "zarr.json").read_text())
    assert set(content) == {"zarr_format", "node_type", "attributes"}, "no consolidated metadata"
    return dict(content["attributes"]["ome"])


def scales_of(group: Path) -> list[tuple[tuple[int, ...], list[float], list[float]]]:
    made = []
    for dataset in ome(group)["multiscales"][0]["datasets"]:
        scale, translation = dataset["coordinateTransformations"]
        shape = tuple(json.loads((group / dataset["path"] / "zarr.json").read_text())["shape"])
        made.append((shape, scale["scale"], translation["translation"]))
    return made


def check_scales(group: Path) -> None:
    content = ome(group)
    assert content["version"] == "0.5"
    axes = content["multiscales"][0]["axes"]
    assert [axis.get("unit") for axis in axes][-2:] == ["micrometer", "micrometer"]
    for level, (shape, scale, translation) in enumerate(scales_of(group)):
        assert all(step > 0 for step in scale)
        assert scale[-2:] == [0.25 * 2**level] * 2
        assert translation[-2:] == [0.25 * (2**level - 1) / 2] * 2
        assert len(shape) == len(axes) == len(scale) == len(translation)
    for channel in content.get("omero", {"channels": []})["channels"]:
        assert len(channel["color"]) == 6
        assert int(channel["color"], 16) >= 0
        window = channel["window"]
        assert window["min"] <= window["start"] < window["end"] <= window["max"]


def test_metadata(finished: Path) -> None:
    path = SlideStore(finished).zarr
    check_metadata(path)
    assert len(ome(path)["omero"]["channels"]) == 3
    assert [channel["label"] for channel in ome(path / "probability")["omero"]["channels"]] == ["nucleus"]
    assert ome(path / "labels") == {"labels": ["objects"], "version": "0.5"}
    label = ome(path / "labels/objects")["image-label"]
    assert label == {"version": "0.5", "source": {"image": "../../"}}, "colours for some ids would hide all others"


def test_sixteen_bit_channels_get_a_window_from_the_slide(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    image = np.zeros((2, 40, 50), np.uint16)
    image[0, 5:, :], image[1, :, 5:] = rng.integers(300, 900, (35, 50)), 5000
    put_array(SlideStore(tmp_path), IMAGE, image, PLANS[IMAGE])
    section = replace(SECTION, image=image_info(0.25, channels=("DAPI", "Cy3")), arrays={IMAGE: PLANS[IMAGE]})
    pyramid_slide(StageContext(tmp_path, (40, 50), 512, "p" * 64), section, serial)
    first, second = ome(SlideStore(tmp_path).zarr)["omero"]["channels"]
    assert 300 <= first["window"]["start"] < first["window"]["end"] < 900
    assert second["window"] == {"min": 0, "max": 65535, "start": 4999, "end": 5000}
    assert first["color"] != second["color"]


@pytest.mark.filterwarnings("ignore")  # the viewer's own imports warn
def test_napari_reads_it(finished: Path) -> None:
    reader = pytest.importorskip("napari_ome_zarr").napari_get_reader
    path = str(SlideStore(finished).zarr)
    image, labels = reader(path)(path)
    assert image[2] == "image"
    assert image[1]["channel_axis"] == 0
    assert [level.shape for level in image[0]] == [(3, 1101, 1300), (3, 551, 650), (3, 276, 325)]
    assert (labels[2], [level.shape for level in labels[0]]) == ("labels", [(1101, 1300), (551, 650), (276, 325)])
    assert image[1]["scale"] == labels[1]["scale"] == [0.25, 0.25]
    (probability,) = reader(path + "/probability")(path + "/probability")
    assert probability[0][0].shape == (1, 1101, 1300)
