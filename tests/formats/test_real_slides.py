"""Real slides with the built-in model: complete, verified, and readable by other programs.

The other real slides, and all other formats, use a smaller network: see test_real_formats.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import zarr
from ome_zarr_models.v05.image import Image

from tests.conftest import skip_or_fail
from tests.support.commands import Command, Ran

SLIDES = ("OS-1-detail.ome.tif", "OS-2-ndpi.ome.tif", "OS-2-vsi.ome.tif")
KEYS = [name.removesuffix(".ome.tif") for name in SLIDES]
NAPARI = """
import json, sys
from napari_ome_zarr import napari_get_reader
for path in sys.argv[1:]:
    layers = napari_get_reader(path)(path)
    print("layers", json.dumps([[kind, meta.get("scale")] for _, meta, kind in layers]))
"""


@pytest.fixture(scope="module")
def ran(overtile: Command, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """All in one batch, with the default configuration."""
    out = tmp_path_factory.mktemp("real")
    return overtile.run("segment", *(shared_data / "wsi" / name for name in SLIDES), "--out", out, out=out)


def test_all_slides_complete_and_verify(ran: Ran, overtile: Command) -> None:
    assert ran.code == 0, ran.transcript
    assert set(ran.states().values()) == {"complete"}
    assert overtile.run("verify", ran.out).code == 0


def test_objects_per_mm2_are_plausible(ran: Ran) -> None:
    slides = {slide["key"]: slide for slide in json.loads((ran.out / "batch.json").read_text())["slides"]}
    for key in KEYS:
        print(f"{key}: {slides[key]['objects']} objects, {slides[key]['objects_per_mm2']} per mm2 of tissue")
        assert slides[key]["objects"] > 100
        assert slides[key]["tissue_mm2"] > 0


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("part", ["", "probability"])
def test_stores_are_valid_ome_zarr(ran: Ran, key: str, part: str) -> None:
    Image.from_zarr(zarr.open_group(ran.out / key / "slide.ome.zarr" / part, mode="r"))


def test_napari_reads_image_and_labels(ran: Ran) -> None:
    if find_spec("napari_ome_zarr") is None:
        skip_or_fail("napari-ome-zarr is not installed")
    stores = [str(ran.out / key / "slide.ome.zarr") for key in KEYS]
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", NAPARI, *stores], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = [line.removeprefix("layers ") for line in result.stdout.splitlines() if line.startswith("layers ")]
    assert len(found) == len(KEYS)
    for key, layers in zip(KEYS, map(json.loads, found), strict=True):
        assert [kind for kind, _ in layers] == ["image", "labels"], key
        mpp = json.loads((ran.out / key / "manifest.json").read_text())["plan"]["image"]["mpp"]
        assert all(scale[-2:] == [mpp, mpp] for _, scale in layers), key
