"""The export command on a real result: other libraries open every format, nothing is changed or overwritten."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest
import tifffile
import zarr
from numpy.typing import NDArray
from ome_zarr_models.v04.image import Image
from ome_zarr_models.v04.image_label import ImageLabel

from pipeline.errors import ConfigError, DamagedError
from pipeline.exports.formats import FORMATS, export
from pipeline.exports.vector_formats import CompleteResult
from pipeline.storage.slide_store import SlideStore
from tests.support.commands import Command, files_of
from tests.support.faults.trees import Finished


@dataclass(frozen=True)
class Exported:
    """A result and its exports."""

    root: Path

    @property
    def exports(self) -> Path:
        return self.root / "exports"

    def stored(self, path: str) -> NDArray[Any]:
        return np.asarray(zarr.open_array(self.root / "slide.ome.zarr" / path, mode="r")[:])

    @property
    def result(self) -> CompleteResult:
        return CompleteResult.open(SlideStore(self.root))


@pytest.fixture(scope="module")
def exported(finished: Finished, overtile_alone: Command, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    root = tmp_path_factory.mktemp("exported") / "out" / "slide"
    shutil.copytree(finished.result, root)
    before = files_of(root)
    (root.parent / "begun" / ".work").mkdir(parents=True)
    arguments = [word for name in FORMATS for word in ("--to", name)]
    ran = overtile_alone.run("export", root.parent, *arguments)
    assert ran.code == 3, ran.transcript
    assert f"not complete, left out: {root.parent / 'begun'}" in ran.stderr
    assert ran.stdout.splitlines() == [str(root / "exports" / name) for files in FORMATS.values() for name in files]
    assert {name: state for name, state in files_of(root).items() if not name.startswith("exports/")} == before
    return Exported(root)


def test_objects_are_the_same_in_every_format(exported: Exported) -> None:
    table = pq.read_table(exported.root / "objects.parquet").to_pandas()
    assert len(table) > 5
    frame = geopandas.read_parquet(exported.exports / "objects.geo.parquet").sort_values("id")
    sheet = pandas.read_csv(exported.exports / "objects.csv")
    features = json.loads((exported.exports / "objects.geojson").read_bytes())["features"]
    drawn = {feature["properties"]["measurements"]["Object id"]: feature for feature in features}
    assert table["id"].tolist() == frame["id"].tolist() == sheet["id"].tolist() == sorted(drawn)
    assert table["class"].tolist() == frame["class"].tolist() == sheet["class"].tolist()
    mpp = exported.result.manifest["plan"]["image"]["mpp"]
    scale = exported.result.manifest["plan"]["image"]["level0_from_image_yx"][0]
    assert np.allclose(frame.geometry.area * (mpp / scale) ** 2, table["area_um2"])
    centres = frame.geometry.centroid
    assert np.allclose(centres.x - 0.5, table["centroid_x_px"])
    assert np.allclose(centres.y - 0.5, table["centroid_y_px"])
    quick = geopandas.read_file(exported.exports / "objects.geojson")
    quick = quick.set_crs(None, allow_override=True)  # pixels of a slide have no coordinate reference system
    assert np.isclose(quick.geometry.area.sum(), frame.geometry.area.sum())


def test_ome_zarr_0_4_has_the_same_pixels_and_is_valid(exported: Exported) -> None:
    where = exported.exports / "slide.ngff04.zarr"
    assert not list(where.rglob("zarr.json"))
    group = zarr.open_group(where, mode="r", zarr_format=2)
    assert Image.from_zarr(group).attributes.multiscales[0].version == "0.4"
    assert Image.from_zarr(group["probability"]).attributes.multiscales[0].name == "probability"  # type: ignore[arg-type]  # it is a group
    assert ImageLabel.from_zarr(group["labels/objects"]).attributes.multiscales  # type: ignore[arg-type]  # it is a group
    assert group["labels"].attrs["labels"] == ["objects"]
    for kind in ("", "probability", "labels/objects"):
        attributes = json.loads((exported.root / "slide.ome.zarr" / kind / "zarr.json").read_bytes())["attributes"][
            "ome"
        ]
        assert group[kind].attrs["multiscales"] == [attributes["multiscales"][0] | {"version": "0.4"}]
    arrays = sorted(path.parent.relative_to(where).as_posix() for path in where.rglob(".zarray"))
    assert arrays == sorted(f"{kind}{level}" for kind in ("", "probability/", "labels/objects/") for level in range(3))
    for path in arrays:
        array = group[path]
        assert isinstance(array, zarr.Array)
        assert array.metadata.zarr_format == 2
        assert np.array_equal(array[:], exported.stored(path))
        assert json.loads((where / path / ".zarray").read_bytes())["dimension_separator"] == "/"


@pytest.mark.parametrize(("name", "path"), [("objects", "labels/objects"), ("probability", "probability")])
def test_ome_tiff_has_the_pyramid_of_the_result(exported: Exported, name: str, path: str) -> None:
    with tifffile.TiffFile(exported.exports / f"{name}.ome.tif") as tiff:
        assert tiff.is_bigtiff
        assert tiff.is_ome
        (series,) = tiff.series
        assert len(series.levels) == 3
        for number, level in enumerate(series.levels):
            expected = exported.stored(f"{path}/{number}")
            assert level.dtype == expected.dtype
            assert np.array_equal(level.asarray().reshape(expected.shape), expected)
            assert level.keyframe.is_tiled
        pixels = tifffile.xml2dict(tiff.ome_metadata or "")["OME"]["Image"]["Pixels"]
        mpp = exported.result.manifest["plan"]["image"]["mpp"]
        assert (pixels["PhysicalSizeX"], pixels["PhysicalSizeY"]) == (mpp, mpp)
        assert pixels["PhysicalSizeXUnit"] == "µm"
        if name == "probability":
            assert [channel["Name"] for channel in pixels["Channel"]] == list(exported.result.section.classes.names)


def test_existing_files_are_overwritten_only_with_force(exported: Exported, tmp_path: Path) -> None:
    (path,) = export(exported.result, ["csv"], tmp_path, force=False)
    assert path == tmp_path / "slide" / "objects.csv"
    path.write_text("mine")
    with pytest.raises(ConfigError, match=r"objects\.csv exists already\. Add --force"):
        list(export(exported.result, ["geojson", "csv"], tmp_path, force=False))
    assert [one.name for one in path.parent.iterdir()] == ["objects.csv"], "refused before anything was written"
    assert path.read_text() == "mine"
    list(export(exported.result, ["csv", "ngff04"], tmp_path, force=True))
    list(export(exported.result, ["ngff04"], tmp_path, force=True))
    assert path.read_bytes() == (exported.exports / "objects.csv").read_bytes()
    assert sorted(one.name for one in path.parent.iterdir()) == ["objects.csv", "slide.ngff04.zarr"]
    with pytest.raises(ConfigError, match="--to xml: expected one of geojson, geoparquet"):
        list(export(exported.result, ["xml"], tmp_path, force=True))


def test_a_damaged_result_leaves_no_partial_files(exported: Exported, tmp_path: Path) -> None:
    root = tmp_path / "slide"
    shutil.copytree(exported.root, root, ignore=shutil.ignore_patterns("exports"))
    shutil.rmtree(root / "slide.ome.zarr" / "probability" / "2" / "c")
    for name in ("ngff04", "ome-tiff"):
        with pytest.raises(DamagedError):
            list(export(CompleteResult.open(SlideStore(root)), [name], None, force=False))
    assert sorted(path.name for path in (root / "exports").iterdir()) == ["objects.ome.tif"]


TOOLS = Path(__file__).resolve().parents[4] / ".github" / "docs" / "tools.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```", TOOLS.read_text("utf-8"), re.M | re.S)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: snippet.split()[1])
def test_snippets_of_the_page_about_other_tools_run(exported: Exported, tmp_path: Path, snippet: str) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "tissue").symlink_to(exported.root)
    done = subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
