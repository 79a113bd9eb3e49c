"""Slide folders as left by earlier stages, for tests of later stages.

They are made from arrays in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.execution.blocks import Counts
from pipeline.geometry import Box, TileGrid
from pipeline.storage.slide_store import ArraySpec, Index, SlideStore

SEED = 20261120
PLAN, OTHER = "a" * 64, "b" * 64
"""Plan hashes under which arrays of these tests are written."""


def put_array(store: SlideStore, path: str, pixels: NDArray[Any], plan: str, block_px: int = 512) -> None:
    """Write ``pixels`` ((c,) y, x) as a finished array of ``plan``."""
    store.create(ArraySpec(path, pixels.shape, str(pixels.dtype), block_px, plan))
    for tile in TileGrid(Box(0, 0, *pixels.shape[-2:]), block_px):
        store.write_block(path, plan, tile.core, pixels[(..., *tile.core.slices)])
    store.commit(path, plan)


class StoppedError(RuntimeError):
    """The run was stopped on purpose."""


@dataclass(slots=True)
class StopAfter:
    """Maps blocks in this process and stops after ``blocks`` of them over all calls, as a kill would."""

    blocks: int

    def __call__(self, function: Callable[[Index], Counts], indices: Iterable[Index]) -> Iterator[Counts]:
        for index in indices:
            if self.blocks == 0:
                raise StoppedError
            self.blocks -= 1
            yield function(index)


def backwards(function: Callable[[Index], Counts], indices: Iterable[Index]) -> Iterator[Counts]:
    """Map blocks in this process in reverse order."""
    return (function(index) for index in reversed(list(indices)))


def tree_bytes(folder: Path, *, without: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Return every file below ``folder`` by its relative path, except below folders named in ``without``."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not set(path.relative_to(folder).parts) & set(without)
    }


def put_objects(
    store: SlideStore,
    labels_YX: NDArray[np.uint32],
    classes: Mapping[str, Sequence[int]],
    mpp: float,
    level0_from_image: float = 1.0,
) -> None:
    """Write the columns of ``objects.parquet`` that later stages read; ``classes`` gives each class's object ids."""
    count = int(labels_YX.max(initial=0))
    name_of = {identity: name for name, ids in classes.items() for identity in ids}
    area = np.bincount(labels_YX.ravel(), minlength=count + 1)[1:]
    y, x = (
        (np.bincount(labels_YX.ravel(), weights=axis.ravel(), minlength=count + 1)[1:] / area + 0.5) * mpp
        for axis in np.indices(labels_YX.shape)
    )
    box = np.array([[at[0].start, at[1].start, at[0].stop, at[1].stop] for at in ndimage.find_objects(labels_YX)])
    y0, x0, y1, x1 = box.reshape(-1, 4).T * level0_from_image
    codes = pa.array([list(classes).index(name_of[identity]) for identity in range(1, count + 1)], pa.int16())
    table = pa.table(
        {
            "id": pa.array(np.arange(1, count + 1), pa.uint32()),
            "class": pa.DictionaryArray.from_arrays(codes, pa.array(list(classes), pa.string())),
            "area_px": area,
            "area_um2": area * mpp**2,
            "centroid_y_um": y,
            "centroid_x_um": x,
            **{"bbox_y0_px": y0, "bbox_x0_px": x0, "bbox_y1_px": y1, "bbox_x1_px": x1},
            "mean_probability": np.linspace(0.5, 1, count),
        }
    )
    store.root.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, store.root / "objects.parquet", row_group_size=100)


def picture(shape: tuple[int, ...], dtype: str = "uint8", seed: int = SEED) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype)


def spec_of(pixels: NDArray[Any], plan: str = PLAN, path: str = "0", codec: str = "zstd") -> ArraySpec:
    return ArraySpec(path, pixels.shape, str(pixels.dtype), 512, plan, codec)  # type: ignore[arg-type]  # one of two literals


def blocks_of(pixels: NDArray[Any]) -> TileGrid:
    return TileGrid(Box.of_shape(pixels.shape[-2:]), 512)
