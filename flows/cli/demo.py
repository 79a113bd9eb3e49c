"""The demo command: segment tissue that ships with scikit-image and verify the result.

The demo fails unless there are enough objects, every file matches the manifest, and one large window equals a single
forward pass of the network.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from flows.batch.batch import BatchRequest
from flows.batch.result_records import figures
from pipeline.config import load_config
from pipeline.errors import OvertileError
from pipeline.geometry import Box
from pipeline.inference.ensemble import load_model
from pipeline.runs.verify import verify_slide
from pipeline.storage.layout import IMAGE, MAPS, PROBABILITY, TISSUE
from pipeline.storage.manifest import read_manifest
from pipeline.storage.slide_store import SlideStore

SIDE_PX = 4096
PERIOD_PX = (509, 505)
"""Size of the repeated tissue (y, x): odd, so that no two tiles have the same content at the same phase."""
WINDOW = Box(1040, 1296, 1040 + 1500, 1296 + 1500)
MPP = 0.5
LEAST_OBJECTS = 500


def run_demo(folder: Path, segment: Callable[[BatchRequest], int]) -> int:
    """Write the slide, segment it, check the result and print its paths; return the exit code."""
    console = Console()
    slide = folder / "slides" / "tissue.tif"
    if not slide.exists():
        write_slide(slide)
    out = folder / "results"
    code = segment(BatchRequest(inputs=(slide.parent,), out=out, config=load_config(None)))
    if code:
        return code
    store = SlideStore(out / "tissue")
    for line in check(store):
        console.print(f"[green]verified[/] {line}", soft_wrap=True, highlight=False)
    console.print(f"overview: {store.root / 'overview.png'}", soft_wrap=True, highlight=False)
    console.print(f"arrays:   {store.zarr}", soft_wrap=True, highlight=False)
    console.print(f"objects:  {store.root / 'objects.parquet'}", soft_wrap=True, highlight=False)
    return 0


def write_slide(path: Path) -> None:
    """A pyramidal tiled TIFF of immunohistochemically stained colon (skimage.data.immunohistochemistry), repeated."""
    from skimage.data import immunohistochemistry
    from tifffile import TiffWriter

    tissue = immunohistochemistry()[: PERIOD_PX[0], : PERIOD_PX[1]]
    repeats = [-(-SIDE_PX // period) for period in PERIOD_PX]
    level = np.tile(tissue, (*repeats, 1))[:SIDE_PX, :SIDE_PX]
    path.parent.mkdir(parents=True, exist_ok=True)
    with TiffWriter(path) as tiff:
        for reduction in range(4):
            pixels_per_cm = 1e4 / (MPP * 2**reduction)
            tiff.write(
                level,
                tile=(256, 256),
                photometric="rgb",
                compression="deflate",
                resolution=(pixels_per_cm, pixels_per_cm),
                resolutionunit="CENTIMETER",
                subfiletype=1 if reduction else 0,
                metadata=None,
            )
            level = halve(level)


def halve(level_YXC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Mean of 2 x 2 pixels (y, x, c); sides must be even."""
    height, width, channels = level_YXC.shape
    squares = level_YXC.reshape(height // 2, 2, width // 2, 2, channels)
    return np.asarray(squares.mean(axis=(1, 3)).round(), dtype=np.uint8)


def check(store: SlideStore) -> list[str]:
    """Check the result.

    Returns:
        One line for each check.

    Raises:
        OvertileError: A check failed.
    """
    manifest = read_manifest(store)
    if manifest is None:
        raise OvertileError(f"{store.root}: there is no manifest, so the demo's slide is not complete")
    found = figures(manifest)["objects"]
    if found <= LEAST_OBJECTS:
        raise OvertileError(f"expected more than {LEAST_OBJECTS} objects, found {found}")
    damaged = verify_slide(store)
    if damaged:
        raise OvertileError(f"verify: {damaged[0].path}: {damaged[0].reason}")
    different = _different_from_one_pass(store, manifest)
    if different:
        raise OvertileError(f"{different} pixels of {WINDOW} differ from a single forward pass")
    files = len(manifest["files"])
    return [
        f"{found} objects found",
        f"{files} files match the manifest",
        f"window {WINDOW} of {WINDOW.shape[0]} px equals a single forward pass, pixel for pixel",
    ]


def _different_from_one_pass(store: SlideStore, manifest: dict[str, Any]) -> int:
    """Number of pixels of the window that differ from a single forward pass, in cells with tissue."""
    from pipeline.inference.predictor import load_networks, single_pass
    from pipeline.stages.predict import cell_pixels, colours_of, tissue_cells

    model, compute = load_model(load_config(None).model), manifest["plan"]["compute"]
    facts = manifest["stages"]["tissue"]["facts"]
    factor = facts["factor"]
    network = load_networks(model.weights, compute["device"], compute["precision"], model.tta)
    expected = single_pass(network, store.read(IMAGE), WINDOW, colours_of(facts))
    tissue = cell_pixels(tissue_cells(store.read(TISSUE), WINDOW, factor), WINDOW)
    maps = [store.read(MAPS[name]).read(WINDOW)[None] for name in network.spec.maps]
    stored = np.concatenate((store.read(PROBABILITY).read(WINDOW), *maps))
    return int((stored != np.where(tissue, expected, 0)).any(axis=0).sum())
