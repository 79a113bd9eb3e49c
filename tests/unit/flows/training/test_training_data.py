"""The train command on realistic data: QuPath annotations, a slide larger than memory, other architectures.

Each resulting network is run by ``overtile segment``.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray

from tests.support.commands import Command, installed_command
from tests.support.make_discs import drawn, write_discs
from tests.unit.flows.annotating import folders, rectangle, save_geojson
from unet_core.model_file.header import describe

TINY = (
    *("network.depth=1", "network.width=2", "sampling.batch=2", "sampling.output_px=32", "schedule.warmup=2"),
    *("compute.precision=fp32", "compute.device=cpu", "compute.threads=1"),
)


def words(images: Path, masks: Path, out: Path, *more: str) -> list[str]:
    """Command line of a small training run."""
    options = [word for one in (*TINY, *more) for word in (("--set", one) if "=" in one else (one,))]
    return ["train", "--images", str(images), "--masks", str(masks), "--out", str(out), *options]


def segmented(overtile: Command, slide: Path, model: Path, out: Path) -> NDArray[Any]:
    """Objects that a model finds in a slide."""
    ran = overtile.segment(slide, out, "tissue=null", model=model)
    assert ran.code == 0, ran.transcript
    objects = zarr.open_array(out / slide.stem / "slide.ome.zarr" / "labels" / "objects" / "0", mode="r")
    return np.asarray(objects[:])


def save_slide(path: Path, image: NDArray[np.uint8], mpp: float) -> Path:
    """Write a tiled pyramid of two levels with a resolution."""
    with tifffile.TiffWriter(path) as writer:
        for level in range(2):
            options = {"subfiletype": level, "resolution": (1e4 / mpp / 2**level,) * 2, "resolutionunit": "CENTIMETER"}
            writer.write(
                image[:: 2**level, :: 2**level], tile=(64, 64), compression="zlib", photometric="rgb", **options
            )
    return path


@pytest.mark.long
def test_network_is_trained_on_a_qupath_annotated_slide(overtile: Command, tmp_path: Path) -> None:
    """Two rectangles are annotated; objects outside of them are not used for training."""
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
    assert ran.code == 0, ran.transcript
    header = describe(out / "best.safetensors")
    assert header.spec.class_names == ("nucleus",)
    assert header.provenance["trained_on"] == ["slide#1", "slide#2"]
    objects = segmented(overtile, slide, out / "best.safetensors", tmp_path / "out")
    found, true = objects > 0, np.zeros((400, 500), bool)
    for x, y in corners:
        true[y : y + 14, x : x + 18] = True
    assert 2 * (found & true).sum() / (found.sum() + true.sum()) > 0.8


# ---- larger than memory ----------------------------------------------------------------------------------------------

SIDE_PX, TILE_PX = 20_480, 1024


def tiles(marked: NDArray[Any], bare: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Tiles of an image that is never held in memory: three with objects, the others without."""
    yield from (marked if number < 3 else bare for number in range((SIDE_PX // TILE_PX) ** 2))


@pytest.mark.long
def test_network_is_trained_on_an_image_larger_than_its_memory_limit(overtile: Command, tmp_path: Path) -> None:
    """1.3 GB of pixels with data.memory_gb 0.1; the peak memory of the process stays below the size of the pixels."""
    images, masks = folders(tmp_path)
    (image, labels), bare = drawn(1, (TILE_PX, TILE_PX)), np.full((TILE_PX, TILE_PX, 3), (230, 170, 200), np.uint8)
    mask = (labels > 0).astype(np.uint8)
    shape = (SIDE_PX, SIDE_PX)
    kind = {"tile": (TILE_PX, TILE_PX), "compression": "zlib", "dtype": np.uint8}
    with tifffile.TiffWriter(images / "a.tif") as writer:
        writer.write(tiles(image, bare), shape=(*shape, 3), photometric="rgb", **kind)
    with tifffile.TiffWriter(masks / "a.tif") as writer:
        writer.write(tiles(mask, np.zeros_like(mask)), shape=shape, **kind)
    learnt = "data.memory_gb=0.1", "sampling.foreground=0.5", "optimiser.rate=0.01"
    line = words(images, masks, tmp_path / "run", "--steps", "100", "--fold", "none", *learnt)
    with (tmp_path / "output").open("wb") as output:
        process = subprocess.Popen(
            [*installed_command(), *line],
            env=dict(overtile.environment),
            cwd=overtile.folder,
            stdout=output,
            stderr=output,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    text = (tmp_path / "output").read_text()
    assert process.returncode == 0, text
    assert "1 images do not fit into data.memory_gb" in text
    pixels = SIDE_PX * SIDE_PX * 3
    print(f"peak {usage.ru_maxrss * 1024 / 1e6:.0f} MB for {pixels / 1e6:.0f} MB of pixels")
    assert usage.ru_maxrss * 1024 < pixels
    small = save_slide(tmp_path / "small.tif", image[:200, :200], 0.5)
    assert segmented(overtile, small, tmp_path / "run" / "best.safetensors", tmp_path / "out").shape == (200, 200)


# ---- other networks --------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("preset", ["attention", "unet++"])
def test_other_architectures_are_trained_and_run(overtile: Command, tmp_path: Path, preset: str) -> None:
    discs = write_discs(tmp_path, 3)
    depth = "network.depth=null" if preset == "unet++" else "network.depth=2"
    more = (f"network.preset={preset}", "network.width=2", "network.growth=1", depth, "data.mask=labels")
    out = tmp_path / "run"
    ran = overtile.run(*words(discs.images, discs.masks, out, *more, "--steps", "3", "--fold", "none"))
    assert ran.code == 0, ran.transcript
    assert describe(out / "best.safetensors").spec.architecture == preset
    image, _ = drawn(5, (96, 96))
    slide = save_slide(tmp_path / "slide.tif", image, 0.5)
    assert segmented(overtile, slide, out / "best.safetensors", tmp_path / "out").shape == (96, 96)
