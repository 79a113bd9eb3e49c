"""Seam-exact and label-exact: stored results equal one pass over the whole slide.

The network used here has learnt context. A control test shows that a stride off its step grid changes the output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flows.batch.batch import BatchRequest, plan_batch
from pipeline.config import load_config
from pipeline.execution.blocks import MapBlocks, serial
from pipeline.execution.local_cluster import local_cluster
from pipeline.inference.seam_check import Cut, seam_check
from pipeline.runs.slide_run import SlideRun, slide_root
from pipeline.storage.slide_store import SlideStore
from tests.support import oracle
from tests.support.make_dicom import write_dicom
from tests.support.make_photos import write_png, write_zarr
from unet_core.networks.unet import UNet

CONTEXT = Path(__file__).parent / "golden" / "context.safetensors"
CROP = (slice(100, 1437), slice(33, 1810))
STAGES = ("ingest", "tissue", "predict", "label")

SHORT = [(256, 512, "serial"), (384, 1024, "dask"), (1024, 2048, "serial"), (384, 512, "dask")]
LONG = [
    (tile, block, how)
    for tile in (256, 384, 1024)
    for block in (512, 1024, 2048)
    for how in ("serial", "dask")
    if tile <= block and (tile, block, how) not in SHORT
]
THRESHOLDS = (0.1, 0.17, 0.2, 0.5)
"""Thresholds from dense to sparse masks; together, enough objects cross every kind of seam."""


@pytest.fixture(scope="module")
def crop(shared_data: Path) -> NDArray[np.uint8]:
    """Real tissue (c, y, x) with odd height and width."""
    return np.ascontiguousarray(tifffile.imread(shared_data / "mosaics" / "he_mosaic.tif")[CROP].transpose(2, 0, 1))


@pytest.fixture(scope="module")
def whole(crop: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """One pass over the whole crop."""
    return oracle.whole_pass(oracle.network(CONTEXT), crop)


@pytest.fixture(scope="module")
def mappers() -> Iterator[Callable[[str], MapBlocks]]:
    """``MapBlocks`` implementations by name; the two dask workers are started once."""
    with local_cluster(2) as dask:
        yield lambda how: serial if how == "serial" else dask


def write_tiff(path: Path, image_CYX: NDArray[Any]) -> Path:
    """Write a tiled TIFF without a resolution."""
    tifffile.imwrite(path, np.moveaxis(image_CYX, 0, -1), tile=(256, 256), photometric="rgb", compression="deflate")
    return path


FORMATS: dict[str, Callable[[Path, NDArray[Any]], Path]] = {
    "PNG": lambda path, image: write_png(path.with_suffix(".png"), np.moveaxis(image, 0, -1), None),
    "OME-Zarr": lambda path, image: write_zarr(path.with_suffix(".zarr"), image, "0.5", mpp=None, levels=1, chunk=300),
    "DICOM": lambda path, image: write_dicom(path.with_suffix(""), np.moveaxis(image, 0, -1), None, levels=1),
}


def segmented(slide: Path, out: Path, settings: list[str], map_blocks: MapBlocks) -> SlideStore:
    """Run the stages up to ``label`` on the slide."""
    common = ["input.mpp=0.25", "compute.precision=fp32", f"model.weights={CONTEXT}"]
    request = BatchRequest(inputs=(slide,), out=out, config=load_config(None, [*common, *settings]))
    batch = plan_batch(request)
    assert [outcome.cause for outcome in batch.outcomes] == [""]
    (plan,) = batch.plans.values()
    run = SlideRun(plan, SlideStore(slide_root(out, plan.key)))
    assert run.prepare() == "todo"
    for stage in STAGES:
        run.step(stage, map_blocks)
    return run.store


def assert_equal(stored: NDArray[np.uint8], expected: NDArray[np.uint8]) -> None:
    """Assert that at least 99.99 % of the stored bytes are equal and none differs by more than 1."""
    assert stored.shape == expected.shape
    difference = np.abs(stored.astype(np.int16) - expected)
    assert difference.max(initial=0) <= 1
    assert (difference == 0).mean() >= 0.9999


@pytest.fixture(scope="module")
def off_grid(crop: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The crop tiled as in the U-Net paper, whose stride is no multiple of the step."""
    return oracle.tiled(oracle.network(CONTEXT), crop, tile=572, stride=388)


def test_control_stride_off_the_step_grid_changes_pixels(
    crop: NDArray[np.uint8], whole: NDArray[np.uint8], off_grid: NDArray[np.uint8]
) -> None:
    wrong = np.abs(off_grid.astype(np.int16) - whole)
    on = np.abs(oracle.tiled(oracle.network(CONTEXT), crop, tile=572, stride=384).astype(np.int16) - whole)
    print(f"stride 388 changes {(wrong > 1).mean():.1%} of pixels by more than 1 grey level, up to {wrong.max()}")
    assert (wrong > 1).mean() >= 0.01
    assert on.max() == 0


def seam(probability: NDArray[np.uint8], tile: int, block: int = 1 << 20) -> Any:
    """Seam statistics along the lines between tiles of this size."""
    height, width = probability.shape[1:]
    computed = np.ones((-(-height // 512), -(-width // 512)), bool)
    cut = Cut((height, width), block, tile, oracle.STEP_4)
    return seam_check(lambda box: probability[(slice(None), *box.slices)], computed, cut)


def test_seam_check_separates_exact_from_inexact_tiling(
    crop: NDArray[np.uint8], whole: NDArray[np.uint8], off_grid: NDArray[np.uint8]
) -> None:
    exact = [seam(whole, tile)["ratio"] for tile in range(64, 272, 32)]  # pixels are exact for any tile size
    wrong = seam(off_grid, 388)["ratio"]
    blended = seam(blended_tiles(oracle.network(CONTEXT), crop), 320)["ratio"]
    print(f"seams: exact {exact}, stride 388 {wrong}, tiles without context blended over 64 px {blended}")
    assert fmean(exact) == pytest.approx(1, abs=0.02)
    assert wrong > 1.2
    assert blended > 1.2


def blended_tiles(model: UNet, crop: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Tiles of 384 px without context, averaged where they overlap by 64 px."""
    total, count = np.zeros((1, *crop.shape[1:])), np.zeros(crop.shape[1:])
    for y, x in np.ndindex(*(-(-side // 320) for side in crop.shape[1:])):
        window = slice(320 * y, 320 * y + 384), slice(320 * x, 320 * x + 384)
        if min(crop[(slice(None), *window)].shape[1:]) > oracle.HALO_4:
            total[(slice(None), *window)] += oracle.whole_pass(model, crop[(slice(None), *window)])
            count[window] += 1
    return np.rint(total / np.maximum(count, 1)).astype(np.uint8)


def prove(slide: Path, whole: NDArray[np.uint8], case: tuple[int, int, str], mapper: MapBlocks) -> None:
    """Compare bytes and labels for one tile size, block size and way of mapping."""
    tile, block, _ = case
    settings = [f"tiles.tile={tile}", f"tiles.block={block}", "tissue=null"]
    store = segmented(slide, slide.parent / "out", settings, mapper)
    stored = store.read("probability/0")[:]
    assert_equal(stored, whole)
    assert store.facts("predict")["seam"] == seam(stored, tile, block)
    assert np.array_equal(store.read("labels/objects/0")[:], oracle.objects(stored, 0.5))


@pytest.mark.parametrize("case", SHORT, ids=str)
def test_tiled_equals_whole(
    crop: NDArray[np.uint8], whole: NDArray[np.uint8], tmp_path: Path, mappers: Callable[[str], MapBlocks], case: Any
) -> None:
    prove(write_tiff(tmp_path / "crop.tif", crop), whole, case, mappers(case[2]))


@pytest.mark.parametrize(("name", "how"), [("PNG", "dask"), ("OME-Zarr", "dask"), ("DICOM", "serial")])
def test_tiled_equals_whole_of_slides_that_are_no_tiff(
    crop: NDArray[np.uint8],
    whole: NDArray[np.uint8],
    tmp_path: Path,
    mappers: Callable[[str], MapBlocks],
    name: str,
    how: str,
) -> None:
    prove(FORMATS[name](tmp_path / "crop", crop), whole, (384, 512, how), mappers(how))


@pytest.mark.long
@pytest.mark.parametrize("case", LONG, ids=str)
def test_tiled_equals_whole_at_every_size(
    crop: NDArray[np.uint8], whole: NDArray[np.uint8], tmp_path: Path, mappers: Callable[[str], MapBlocks], case: Any
) -> None:
    prove(write_tiff(tmp_path / "crop.tif", crop), whole, case, mappers(case[2]))


def test_objects_across_seams_equal_skimage(crop: NDArray[np.uint8], tmp_path: Path) -> None:
    slide = write_tiff(tmp_path / "crop.tif", crop)
    crossing = {}
    for threshold in THRESHOLDS:  # one network output: only labels are computed again
        settings = ["tiles.block=512", "tiles.tile=512", "tissue=null", f"objects.threshold={threshold}"]
        store = segmented(slide, tmp_path / "out", settings, serial)
        labels = store.read("labels/objects/0")[:]
        assert np.array_equal(labels, oracle.objects(store.read("probability/0")[:], threshold))
        crossing[threshold] = seams_crossed(labels, 512)
    print("objects across vertical seams, horizontal seams and corners, by threshold:", crossing)
    vertical, horizontal, corner = (max(counts) for counts in zip(*crossing.values(), strict=True))
    assert vertical >= 50
    assert horizontal >= 50
    assert corner >= 5


def seams_crossed(labels: NDArray[Any], block: int) -> tuple[int, int, int]:
    """Count objects that cross a vertical seam, a horizontal seam, and all four blocks around a corner."""
    height, width = labels.shape
    columns, rows = range(block, width, block), range(block, height, block)
    vertical = [set(labels[:, x - 1][labels[:, x - 1] == labels[:, x]]) - {0} for x in columns]
    horizontal = [set(labels[y - 1][labels[y - 1] == labels[y]]) - {0} for y in rows]
    corners = 0
    for y in rows:
        for x in columns:
            around = [
                labels[ys, xs]
                for ys in (slice(y - block, y), slice(y, y + block))
                for xs in (slice(x - block, x), slice(x, x + block))
            ]
            corners += len(set.intersection(*(set(np.unique(quarter)) for quarter in around)) - {0})
    return len(set().union(*vertical)), len(set().union(*horizontal)), corners


SIDES = st.sampled_from([1, 7, 91, 92, 93, 511, 512, 513]) | st.integers(1, 700).map(lambda half: 2 * half + 1)
"""Odd sides, sides thinner than the halo, and a block plus or minus one."""


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(height=SIDES, width=SIDES)
def test_slides_of_any_size_equal_whole_pass(
    crop: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory, height: int, width: int
) -> None:
    print(f"{height} x {width}")
    folder = tmp_path_factory.mktemp("size")
    image = np.ascontiguousarray(crop[:, :height, :width])
    slide = write_tiff(folder / "piece.tif", image)
    store = segmented(slide, folder / "out", ["tiles.tile=256", "tiles.block=512", "tissue=null"], serial)
    stored = store.read("probability/0")[:]
    assert_equal(stored, oracle.whole_pass(oracle.network(CONTEXT), image))
    assert np.array_equal(store.read("labels/objects/0")[:], oracle.objects(stored, 0.5))


def test_cells_without_tissue_are_zero_and_the_rest_is_the_whole_pass(tmp_path: Path, crop: NDArray[np.uint8]) -> None:
    image = np.full((3, 2300, 2200), 244, np.uint8)
    image[:, 300:900, 200:1000] = crop[:, :600, :800]
    slide = write_tiff(tmp_path / "glass.tif", image)
    store = segmented(slide, tmp_path / "out", ["tiles.tile=256", "tiles.block=1024"], serial)
    facts = store.facts("predict")
    assert 0 < facts["skipped_pixels"] < facts["pixels"]
    factor = store.facts("tissue")["factor"]
    mask = store.read("tissue")[:]
    cells = np.add.reduceat(
        np.add.reduceat(mask, np.arange(0, mask.shape[0], 512 // factor), 0),
        np.arange(0, mask.shape[1], 512 // factor),
        1,
    )
    alive = np.kron(cells > 0, np.ones((512, 512), bool))[:2300, :2200]
    expected = np.where(alive, oracle.whole_pass(oracle.network(CONTEXT), image), 0)
    assert_equal(store.read("probability/0")[:], expected.astype(np.uint8))
