"""Several classes through the command, on a slide with known areas.

The network's weights are set by hand: flat red is one class, flat blue the other, so the class map is known exactly.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
import zarr
from numpy.typing import NDArray
from skimage.measure import label

from tests.support import oracle
from tests.support.commands import CLASSES, Command, Ran
from tests.support.faults.pictures import BLUE, RED, Disc, draw, red_and_blue, write

SHAPE, MPP = (1000, 1100), 0.5
NAMES = ("red cell", "blue cell")
COLOURS = ((200, 30, 30), (30, 60, 200))


def picture() -> NDArray[np.uint8]:
    """Discs in rows, some on seams between blocks; both colours touching; one in the corner of four blocks."""
    pairs = [Disc(512, 200 + 170 * number, 40, colour) for number, colour in enumerate((RED, BLUE, RED, BLUE, RED))]
    beside = [Disc(540, 250 + 170 * number, 30, colour) for number, colour in enumerate((BLUE, RED, RED, BLUE))]
    return draw(SHAPE, [*red_and_blue(SHAPE), *pairs, *beside, Disc(512, 512, 60, BLUE), Disc(512, 512, 20, RED)])


def class_map() -> NDArray[np.int64]:
    """0 background, 1 red, 2 blue, by the colours drawn."""
    image = picture()
    classes = np.zeros(SHAPE, np.int64)
    for number, colour in enumerate((RED, BLUE), start=1):
        classes[(image == np.array(colour)).all(axis=-1)] = number
    return classes


@pytest.fixture(scope="module")
def ran(overtile: Command, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("classes")
    slide = write(folder / "discs.tif", picture(), MPP)
    ran = overtile.segment(slide, folder / "out", model=CLASSES)
    assert ran.code == 0, ran.transcript
    return ran


@pytest.fixture(scope="module")
def objects(ran: Ran) -> NDArray[np.uint32]:
    """The label image."""
    return np.asarray(zarr.open_array(ran.out / "discs/slide.ome.zarr/labels/objects/0", mode="r")[:])


def facts(ran: Ran, stage: str) -> dict[str, Any]:
    return dict(json.loads((ran.out / "discs" / "manifest.json").read_text())["stages"][stage]["facts"])


def test_the_class_map_is_the_one_that_was_drawn(ran: Ran) -> None:
    stored = np.asarray(zarr.open_array(ran.out / "discs/slide.ome.zarr/probability/0", mode="r")[:])
    assert stored.shape == (2, *SHAPE)
    background = np.maximum(0, 255 - stored.astype(np.int16).sum(axis=0))
    assert np.array_equal(np.argmax(np.concatenate([background[None], stored]), axis=0), class_map())
    image = np.ascontiguousarray(picture().transpose(2, 0, 1))[:, :300, :400]
    whole = oracle.forward(oracle.network(CLASSES), np.pad(image, [(0, 0), (20, 20), (20, 20)], mode="reflect"))
    assert np.abs(whole[:, :280, :380].astype(int) - stored[:, :280, :380]).max() <= 1


def test_labels_are_identical_to_skimage_on_the_class_map(objects: NDArray[np.uint32]) -> None:
    expected = label(class_map(), background=0, connectivity=2)
    assert np.array_equal(objects, expected)
    assert len(np.unique(label(class_map() > 0, connectivity=2))) < len(np.unique(expected)), (
        "touching discs of different classes are separate objects"
    )


def test_area_and_number_per_class(ran: Ran, objects: NDArray[np.uint32]) -> None:
    classes = class_map()
    area_px = [int((classes == number).sum()) for number in (1, 2)]
    count = [len(np.unique(objects[classes == number])) for number in (1, 2)]
    assert facts(ran, "label")["area_px_per_class"] == area_px
    assert facts(ran, "label")["objects_per_class"] == count
    assert facts(ran, "measure")["area_um2"] == {name: px * MPP**2 for name, px in zip(NAMES, area_px, strict=True)}
    table = pq.read_table(ran.out / "discs" / "objects.parquet")
    name_of = np.array(table["class"].to_pylist())
    for number, name in enumerate(NAMES, start=1):
        rows = name_of == name
        assert rows.sum() == count[number - 1]
        assert table["area_px"].to_numpy()[rows].sum() == area_px[number - 1]
    first_px = np.unique(objects.ravel(), return_index=True)[1][1:]
    assert [NAMES[number - 1] for number in classes.ravel()[first_px]] == name_of.tolist()


def test_geojson_has_the_classes_and_their_exact_areas(ran: Ran) -> None:
    with gzip.open(ran.out / "discs" / "objects.geojson.gz") as file:
        features = json.load(file)["features"]
    area = dict.fromkeys(NAMES, 0.0)
    for feature in features:
        kind = feature["properties"]["classification"]
        assert tuple(kind["color"]) == COLOURS[NAMES.index(kind["name"])]
        area[kind["name"]] += shapely.geometry.shape(feature["geometry"]).area
    assert area == {name: float((class_map() == number).sum()) for number, name in enumerate(NAMES, start=1)}


def test_the_viewer_s_metadata_names_the_classes(ran: Ran) -> None:
    group = json.loads((ran.out / "discs/slide.ome.zarr/probability/zarr.json").read_text())
    channels = group["attributes"]["ome"]["omero"]["channels"]
    assert [channel["label"] for channel in channels] == list(NAMES)
    assert [channel["color"] for channel in channels] == ["{:02X}{:02X}{:02X}".format(*colour) for colour in COLOURS]
    assert not (Path(ran.out) / "discs" / ".work" / "failure.json").exists()
