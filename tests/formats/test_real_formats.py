"""All real slides, with a PNG, a JPEG and a DICOM, in one command with a cases table."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

from tests.support.commands import Command, Ran, is_complete
from tests.support.make_dicom import write_dicom
from tests.support.make_photos import write_jpeg, write_png

FLUORESCENT = ("test3-DAPI-2-(387)", "test3-TRITC 2 (560)")
MADE = ("photo", "snapshot", "dicom")

pytestmark = pytest.mark.long
"""The other tests read each of these formats in generated slides."""


@pytest.fixture(scope="module")
def ran(overtile: Command, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A small network at 0.5 um a pixel: the test is about reading the slides, not about the objects."""
    folder = tmp_path_factory.mktemp("real-formats")
    crop = tifffile.imread(shared_data / "mosaics" / "he_mosaic.tif")[:700, :900]
    made = [
        write_png(folder / "photo.png", crop, 0.5),
        write_jpeg(folder / "snapshot.jpg", crop, None),
        write_dicom(folder / "dicom", crop, 0.5, "jpeg"),
    ]
    real = sorted((shared_data / "wsi").glob("*.*f")) + sorted((shared_data / "wsi").glob("*.svs"))
    real += sorted((shared_data / "wsi").glob("*.ndpi")) + sorted((shared_data / "omezarr").glob("*.zarr"))
    with (folder / "cases.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["slide", "mpp", "patient"])
        rows.writerows([path.name, "0.5" if path.name == "snapshot.jpg" else "", "p"] for path in (*made, *real))
    settings = ("outputs.geojson=false", "outputs.overview=false", "tiles.block=1024")
    return overtile.segment([*made, *real], folder / "out", "--cases", folder / "cases.csv", *settings)


def test_all_slides_complete(ran: Ran) -> None:
    assert ran.code == 0, ran.transcript
    states = ran.states()
    assert len(states) == 10
    assert set(states.values()) == {"complete"}
    assert {*FLUORESCENT, *MADE} < set(states)
    assert all(is_complete(ran.out / key) for key in states)


@pytest.mark.parametrize("key", FLUORESCENT)
def test_fluorescence_slides_are_read_at_level_of_model_resolution(ran: Ran, key: str) -> None:
    manifest = json.loads((ran.out / key / "manifest.json").read_text())
    image = manifest["plan"]["image"]
    assert image["slide_mpp"] == pytest.approx(0.22818, rel=1e-3)
    assert (image["level"], image["shape_yx"]) == (1, [round(side * 0.22818 / 0.5) for side in (4864, 3968)])
    assert manifest["stages"]["tissue"]["facts"]["tissue_px"] > 0


@pytest.mark.parametrize("key", FLUORESCENT)
def test_manifest_states_tissue_method_and_polarity(ran: Ran, key: str) -> None:
    for name, polarity, method in (
        (key, "dark-field", "off: not bright-field"),
        ("OS-1-detail", "bright-field", "otsu"),
    ):
        facts = json.loads((ran.out / name / "manifest.json").read_text())["stages"]["tissue"]["facts"]
        assert facts["polarity"] == polarity
        assert facts["method"].startswith(method)


def test_results_have_one_row_per_slide_and_class(ran: Ran) -> None:
    with (ran.out / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["slide"] for row in rows} == set(ran.states())
    assert len(rows) == len({(row["slide"], row["class"]) for row in rows})
    assert all(row["patient"] == "p" and float(row["tissue_mm2"]) > 0 and row["count"] != "" for row in rows)


def test_channels_of_ome_zarr_have_their_names(ran: Ran) -> None:
    (key,) = (key for key in ran.states() if key.startswith("cardiomyocyte"))
    manifest = json.loads((ran.out / key / "manifest.json").read_text())
    assert manifest["plan"]["image"]["channels"] == ["DAPI", "nanog", "Lamin B1"]
    assert "enlarged 1.30 times" in " ".join(manifest["plan"]["image"]["warnings"])


def test_png_jpeg_and_dicom_of_one_crop_have_similar_pixels(ran: Ran) -> None:
    photo, snapshot, dicom = (
        np.asarray(zarr.open_array(ran.out / key / "slide.ome.zarr" / "0", mode="r")).astype(int) for key in MADE
    )
    assert np.abs(photo - snapshot).mean() < 3
    assert np.abs(photo - dicom).mean() < 3
