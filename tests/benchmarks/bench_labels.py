"""Speed of label and measure compared with scikit-image and dask-image.

The unit is MPx per CPU second. overtile reads and writes zarr block by block; scikit-image has everything in memory and
writes nothing. Rounds are interleaved and medians reported. Each side has a process of its own, and overtile runs three
times in a row per round, since a worker does not idle for the 20 s that scikit-image takes. dask-image needs over a
minute and 3 GB for the whole slide, so it gets one round on a crop of 4096 x 4096 px, labels only.

    python tests/benchmarks/bench_labels.py
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import dask.array
import numpy as np
from dask_image.ndmeasure import label as dask_label
from numpy.typing import NDArray
from skimage.measure import label, regionprops_table

from pipeline.config import ObjectsSection
from pipeline.execution.blocks import StageContext, serial
from pipeline.image_info import ImageInfo
from pipeline.objects.table_writer import MeasureInputs
from pipeline.stages.label import LabelInputs, label_slide
from pipeline.stages.measure import measure_slide
from pipeline.storage.slide_store import ArraySpec
from unet_core.spec import ObjectSettings

SIDE_PX, GRID, BLOCK_PX, CROP_PX = 10_000, 300, 2048, 4096
ROUNDS, IN_A_ROW = 5, 3
MPP = 0.25
PROPERTIES = (
    "label",
    "area",
    "centroid",
    "bbox",
    "axis_major_length",
    "axis_minor_length",
    "orientation",
    "eccentricity",
    "intensity_mean",
)
Array = NDArray[Any]


def make_slide() -> tuple[Array, Array]:
    """Return probability and image (uint8) of 90,000 soft-edged discs, with noise in a fifth of the other pixels."""
    rng = np.random.default_rng(7)
    probability = np.maximum(rng.integers(0, 10, (SIDE_PX, SIDE_PX), dtype=np.uint8), 7) - np.uint8(7)
    pitch = SIDE_PX / GRID
    offset_y, offset_x = np.mgrid[-13:14, -13:14]
    for row, col in np.ndindex(GRID, GRID):
        y, x = ((np.array((row, col)) + 0.5) * pitch + rng.uniform(-2.5, 2.5, 2)).astype(int)
        disc = np.clip((rng.uniform(8, 12) - np.hypot(offset_y, offset_x)) * 60 + 128, 0, 255).astype(np.uint8)
        window = probability[y - 13 : y + 14, x - 13 : x + 14]
        np.maximum(window, disc, out=window)
    image = 230 - probability // 2 + rng.integers(0, 20, (3, SIDE_PX, SIDE_PX), dtype=np.uint8)
    return probability[None], image


def put(work: StageContext, path: str, pixels: Array) -> None:
    """Store an array as an earlier stage would have."""
    codec: Literal["lz4", "zstd"] = "lz4" if path == "0" else "zstd"
    work.store.create(ArraySpec(path, pixels.shape, str(pixels.dtype), BLOCK_PX, work.plan_hash, codec))
    for tile in work.grid:
        work.store.write_block(path, work.plan_hash, tile.core, np.ascontiguousarray(pixels[:, *tile.core.slices]))
    work.store.commit(path, work.plan_hash)


def ours(root: Path, number: int) -> int:
    """Run both stages under a fresh plan; return the number of objects."""
    label_work, measure_work = (
        StageContext(root, (SIDE_PX, SIDE_PX), BLOCK_PX, f"{number:08d}{stage}") for stage in "lm"
    )
    info = ImageInfo(MPP, (1.0, 1.0), ("red", "green", "blue"))
    report = label_slide(label_work, LabelInputs(ObjectsSection(), info, 0.5, 0.0, (), None, ObjectSettings()), serial)
    measure_slide(measure_work, MeasureInputs(info, ("nucleus",), None), serial)
    return int(report.facts["objects"])


def in_memory(probability: Array, image: Array) -> int:
    """Compute the same columns with scikit-image; return the number of objects."""
    labels = label(probability[0] >= 128)
    grey = np.moveaxis(np.concatenate((probability, image)), 0, -1)
    return len(regionprops_table(labels, grey, properties=PROPERTIES)["label"])


def by_dask_image(probability: Array) -> int:
    """Label a crop with dask-image in one thread; return the number of objects."""
    mask = dask.array.from_array(probability[0, :CROP_PX, :CROP_PX] >= 128, chunks=BLOCK_PX)
    labels, count = dask_label(mask, structure=np.ones((3, 3)))
    with dask.config.set(scheduler="synchronous"):
        return int(dask.compute(labels, count)[1])


def cpu_seconds(function: Callable[[], int]) -> tuple[float, int]:
    """Return the CPU seconds of a call in this process, all threads, and its result."""
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


_HELD: list[Array] = []
"""Probability and image in the other process."""


@contextmanager
def other_process(probability: Array, image: Array) -> Iterator[ProcessPoolExecutor]:
    """Run a process that holds the same slide in memory, for scikit-image and dask-image."""
    with ProcessPoolExecutor(1, get_context("fork"), _HELD.extend, ([probability, image],)) as pool:
        yield pool


def timed_in_memory() -> tuple[float, int]:
    """Time ``in_memory`` in the other process."""
    return cpu_seconds(lambda: in_memory(*_HELD))


def timed_by_dask_image() -> tuple[float, int]:
    """Time ``by_dask_image`` in the other process."""
    return cpu_seconds(lambda: by_dask_image(_HELD[0]))


def measure_labels(rounds: int = ROUNDS) -> dict[str, float]:
    """Measure medians over interleaved rounds in MPx per CPU second, and ratios of overtile to the others."""
    probability, image = make_slide()
    seconds: dict[str, list[float]] = {"ours": [], "skimage": []}
    with tempfile.TemporaryDirectory() as folder, other_process(probability, image) as others:
        root = Path(folder)
        put(StageContext(root, (SIDE_PX, SIDE_PX), BLOCK_PX, "p"), "probability/0", probability)
        put(StageContext(root, (SIDE_PX, SIDE_PX), BLOCK_PX, "i"), "0", image)
        for number in range(rounds):
            for turn in range(IN_A_ROW):
                spent, objects = cpu_seconds(partial(ours, root, number * IN_A_ROW + turn))
                seconds["ours"].append(spent)
            spent, expected = others.submit(timed_in_memory).result()
            seconds["skimage"].append(spent)
            assert objects == expected, f"expected {expected} objects, found {objects}"
        dask_seconds, _ = others.submit(timed_by_dask_image).result()
    rate = {name: SIDE_PX**2 / 1e6 / statistics.median(spent) for name, spent in seconds.items()}
    rate["dask_image"] = CROP_PX**2 / 1e6 / dask_seconds
    return {
        "objects": float(objects),
        "rounds": float(rounds),
        "ours_mpx_per_cpu_s": rate["ours"],
        "skimage_mpx_per_cpu_s": rate["skimage"],
        "dask_image_label_only_crop_mpx_per_cpu_s": rate["dask_image"],
        "ours_over_skimage": rate["ours"] / rate["skimage"],
        "ours_over_dask_image": rate["ours"] / rate["dask_image"],
    }


if __name__ == "__main__":
    print(json.dumps(measure_labels(), indent=1))
