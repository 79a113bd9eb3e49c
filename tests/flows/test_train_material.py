"""The command trains on what groups have: a slide with QuPath annotations, other networks than the U-Net.

Each network it writes is run by `overtile segment`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray

from tests.commands import Command
from tests.flows.annotating import folders, rectangle, save_geojson
from tests.make_discs import drawn, write_discs
from unet_core.header import describe

TINY = (
    *("network.depth=1", "network.width=2", "sampling.batch=2", "sampling.output_px=32", "schedule.warmup=2"),
    *("compute.precision=fp32", "compute.device=cpu", "compute.threads=1"),
)


def words(images: Path, masks: Path, out: Path, *more: str) -> list[str]:
    """The command line of a tiny training."""
    options = [word for one in (*TINY, *more) for word in (("--set", one) if "=" in one else (one,))]
    return ["train", "--images", str(images), "--masks", str(masks), "--out", str(out), *options]


def segmented(overtile: Command, slide: Path, model: Path, out: Path) -> NDArray[Any]:
    """The objects that a model finds in a slide."""
    ran = overtile.segment(slide, out, "tissue=null", model=model)
    assert ran.code == 0, ran.said
    objects = zarr.open_array(out / slide.stem / "slide.ome.zarr" / "labels" / "objects" / "0", mode="r")
    return np.asarray(objects[:])


def save_slide(path: Path, image: NDArray[np.uint8], mpp: float) -> Path:
    """A tiled pyramid of two levels that states its resolution."""
    with tifffile.TiffWriter(path) as writer:
        for level in range(2):
            options = {"subfiletype": level, "resolution": (1e4 / mpp / 2**level,) * 2, "resolutionunit": "CENTIMETER"}
            writer.write(
                image[:: 2**level, :: 2**level], tile=(64, 64), compression="zlib", photometric="rgb", **options
            )
    return path


def test_a_slide_annotated_in_qupath_becomes_a_network(overtile: Command, tmp_path: Path) -> None:
    """Two rectangles of it were annotated; objects outside these are nothing to learn from."""
    images, masks = folders(tmp_path)
    image = np.full((400, 500, 3), (230, 170, 200), np.uint8)
    corners = [(x, y) for x in range(20, 460, 50) for y in range(20, 360, 40)]
    for x, y in corners:
        image[y : y + 14, x : x + 18] = (90, 60, 140)
    slide = save_slide(images / "slide.tif", image, 0.5)
    nuclei = [(rectangle(x, y, x + 18, y + 14), "nucleus") for x, y in corners if x < 240]
    regions = [(rectangle(0, 0, 240, 190), "Region*"), (rectangle(0, 200, 230, 400), "Region*")]
    save_geojson(masks / "slide.geojson", *nuclei, *regions)
    out = tmp_path / "run"
    ran = overtile.run(*words(images, masks, out, "--steps", "250", "--fold", "none", "optimiser.rate=0.01"))
    assert ran.code == 0, ran.said
    header = describe(out / "best.safetensors")
    assert header.spec.class_names == ("nucleus",)
    assert header.provenance["trained_on"] == ["slide#1", "slide#2"]
    objects = segmented(overtile, slide, out / "best.safetensors", tmp_path / "out")
    found, true = objects > 0, np.zeros((400, 500), bool)
    for x, y in corners:
        true[y : y + 14, x : x + 18] = True
    assert 2 * (found & true).sum() / (found.sum() + true.sum()) > 0.8


# ---- other networks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["attention", pytest.param("unet++", marks=pytest.mark.long)])
def test_other_networks_are_trained_and_run(overtile: Command, tmp_path: Path, preset: str) -> None:
    discs = write_discs(tmp_path, 3)
    depth = "network.depth=null" if preset == "unet++" else "network.depth=2"
    more = (f"network.preset={preset}", "network.width=2", "network.growth=1", depth, "data.mask=labels")
    out = tmp_path / "run"
    ran = overtile.run(*words(discs.images, discs.masks, out, *more, "--steps", "3", "--fold", "none"))
    assert ran.code == 0, ran.said
    assert describe(out / "best.safetensors").spec.architecture == preset
    image, _ = drawn(5, (96, 96))
    slide = save_slide(tmp_path / "slide.tif", image, 0.5)
    assert segmented(overtile, slide, out / "best.safetensors", tmp_path / "out").shape == (96, 96)
