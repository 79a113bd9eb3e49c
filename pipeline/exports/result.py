"""Open a complete result for reading: arrays as dask arrays, objects as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.errors import ConfigError
from pipeline.exports.vector_formats import CompleteResult
from pipeline.objects.table_reader import read_groups
from pipeline.storage.layout import IMAGE, MAPS, OBJECTS, PROBABILITY, TABLE
from pipeline.storage.slide_store import SlideStore

if TYPE_CHECKING:  # dask.array takes half a second to import
    import dask.array


@dataclass(frozen=True, slots=True)
class Result:
    """The complete result of one slide. Reading raises DamagedError for a missing or corrupt shard.

    Attributes:
        path: Folder of the slide.
        manifest: What was run, on what, with what: the content of ``manifest.json``.
    """

    path: Path
    manifest: Mapping[str, Any]

    @property
    def image(self) -> dask.array.Array:
        """Pixels (channel, y, x) at the model's resolution. Raises ConfigError when they were dropped."""
        return self._array(IMAGE)

    @property
    def probability(self) -> dask.array.Array:
        """Probability of each foreground class (class, y, x), uint8 with 255 for 1. Raises ConfigError if dropped."""
        return self._array(PROBABILITY)

    @property
    def maps(self) -> dict[str, dask.array.Array]:
        """Maps of the network by name (y, x), uint8 with 255 for 1; empty without any.

        Raises ConfigError when they were dropped.
        """
        names = CompleteResult(SlideStore(self.path), self.manifest).map_names
        return {name: self._array(MAPS[name]) for name in names}

    @property
    def labels(self) -> dask.array.Array:
        """Object ids (y, x), uint32; 0 is background. Raises ConfigError when the run made no objects."""
        return self._array(OBJECTS)

    @property
    def objects(self) -> pa.Table:
        """One row an object, in the order of ids. Raises ConfigError when the run made no objects."""
        table = self.path / TABLE
        if not table.exists():
            raise ConfigError(f"{table}: expected a table of objects, found none: the run was configured without it")
        return pa.concat_tables(list(read_groups(table)))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the foreground classes, in the order of the probability's first axis."""
        return tuple(self.manifest["plan"]["model"]["spec"]["class_names"])

    @property
    def mpp(self) -> float:
        """Micrometres per pixel of the arrays."""
        return float(self.manifest["plan"]["image"]["mpp"])

    def _array(self, path: str) -> dask.array.Array:
        import dask.array

        store = SlideStore(self.path)
        if not (store.zarr / path / "zarr.json").exists():
            raise ConfigError(
                f"{store.zarr / path}: expected an array, found none: the run dropped it or did not make it. Run "
                "segment again with outputs that keep it"
            )
        stored = store.read(path)
        block = stored.block_px
        chunks = (*stored.shape[:-2], block, block)
        name = f"{path}-{stored.plan}"
        array: dask.array.Array = dask.array.from_array(stored, chunks=chunks, name=name, asarray=False)  # type: ignore[no-untyped-call]  # dask types it in part
        return array


def open_result(path: str | Path) -> Result:
    """Open the folder of one slide in the output of ``overtile segment``.

    Args:
        path: Folder with ``manifest.json`` and ``slide.ome.zarr``.

    Returns:
        The result, whose arrays are read when they are computed.

    Raises:
        ConfigError: When the result is not complete.
        DamagedError: When its manifest is not the one that was written.
    """
    store = SlideStore(Path(path))
    return Result(store.root, CompleteResult.open(store).manifest)
