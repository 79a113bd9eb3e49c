"""The folder of one slide: arrays, small results of blocks, and stamps. Stages exchange data only here.

A block is done when its shard exists. Every shard is written whole, also those of empty blocks, and an array belongs to
one plan.

    <slide>/slide.ome.zarr/<array>/zarr.json, c/..     attributes: {"overtile": {"plan": hash}}
    <slide>/.work/new/<array>/..                       the next array, while that of the previous plan is kept
    <slide>/.work/<stage>/<row>.<col>.<plan8>.npz      a block's small result
    <slide>/.work/<stage>.stamp                        the stage is complete under this plan
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.config import CELL_PX
from pipeline.errors import DamagedError, StoreError
from pipeline.geometry import Box
from pipeline.storage.array_metadata import DAMAGE, array_metadata, damaged_metadata, shard_layout, stored_plan
from pipeline.storage.atomic_files import (
    fsync_dir,
    fsync_tree,
    read_json,
    remove,
    write_atomic,
    write_bytes,
    write_json,
)
from pipeline.storage.layout import MANIFEST, ZARR

if TYPE_CHECKING:  # zarr takes a third of a second to import
    import zarr
    from zarr.abc.codec import BytesBytesCodec
    from zarr.core.buffer import Buffer

Index = tuple[int, int]
Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """An array to be written: ``path`` in ``slide.ome.zarr``, shape ((c,) y, x), side of a shard, and plan hash."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    block_px: int
    plan: str
    codec: Literal["zstd", "lz4"] = "zstd"


@dataclass(frozen=True, slots=True)
class StoredArray:
    """A finished array, read strictly.

    Indexing takes slices or integers, one per axis, within the array. A missing, empty or corrupt shard raises a
    DamagedError that names the file; it never reads as zeros.
    """

    location: Path
    array: zarr.Array[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """((c,) y, x)."""
        return tuple(self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Sample type."""
        return np.dtype(self.array.dtype)

    @property
    def ndim(self) -> int:
        """Number of axes; dask requires it of an array."""
        return len(self.shape)

    @property
    def plan(self) -> str:
        """Hash of the plan that wrote the array."""
        return str(self.array.attrs["overtile"]["plan"])  # type: ignore[index,call-overload]  # a mapping that this package writes

    @property
    def block_px(self) -> int:
        """Side of a shard."""
        return int((self.array.shards or self.array.chunks)[-1])

    def __getitem__(self, key: Any) -> Array:
        items = key if isinstance(key, tuple) else (key,)
        items = items + (slice(None),) * (len(self.shape) - len(items))
        self._require_shards(items[-2], items[-1])
        try:
            return np.asarray(self.array[items])
        except DAMAGE as error:
            damaged = next(self._undecodable(items[-2], items[-1]), self.location)
            raise DamagedError(
                f"{damaged} cannot be decoded ({error}): it was changed after it was written. Run 'overtile verify', "
                f"then segment again"
            ) from error

    def read(self, box: Box) -> Array:
        """Read the pixels of a box inside the array, all leading axes: ((c,) h, w)."""
        return self[(..., *box.slices)] if len(self.shape) == 2 else self[(slice(None), *box.slices)]

    def _require_shards(self, rows: slice | int, cols: slice | int) -> None:
        for index in self._touched_shards(rows, cols):
            if not _has_bytes(shard := self._shard(index)):
                raise DamagedError(
                    f"{shard} is missing or empty: the array is incomplete or was damaged. Run segment again"
                )

    def _undecodable(self, rows: slice | int, cols: slice | int) -> Iterator[Path]:
        for index in self._touched_shards(rows, cols):
            y0, x0 = (position * self.block_px for position in index)
            try:
                self.array[..., y0 : y0 + self.block_px, x0 : x0 + self.block_px]
            except DAMAGE:
                yield self._shard(index)

    def _touched_shards(self, rows: slice | int, cols: slice | int) -> Iterator[Index]:
        height, width = self.shape[-2:]
        return product(_touched(rows, height, self.block_px), _touched(cols, width, self.block_px))

    def _shard(self, index: Index) -> Path:
        return shard_path(self.location, index, ndim=len(self.shape))


def _touched(key: slice | int, length: int, block: int) -> range:
    start, stop, step = key.indices(length) if isinstance(key, slice) else (int(key), int(key) + 1, 1)
    assert step > 0, "only forward slices are read"
    return range(start // block, -(-stop // block) if stop > start else start // block)


def _has_bytes(path: Path) -> bool:
    try:
        return os.stat(path).st_size > 0
    except FileNotFoundError:
        return False


def shard_path(location: Path, index: Index, ndim: int) -> Path:
    """File of the shard at (row, col): ``c/0/row/col`` with a leading axis, ``c/row/col`` without."""
    return location.joinpath("c", *("0",) * (ndim - 2), *map(str, index))


@dataclass(frozen=True, slots=True)
class SlideStore:
    """The folder of one slide's output.

    Cheap to make, holds nothing open, and is sent to workers as a path. All writes are atomic.
    """

    root: Path

    @property
    def zarr(self) -> Path:
        """The OME-Zarr."""
        return self.root / ZARR

    @property
    def work(self) -> Path:
        """Folder of plans, stamps, locks and blocks' small results; removable once the slide is complete."""
        return self.root / ".work"

    @property
    def manifest(self) -> Path:
        """The manifest, which exists only when everything else is complete."""
        return self.root / MANIFEST

    # ---- arrays -----------------------------------------------------------------------------------------------

    def create(self, spec: ArraySpec) -> None:
        """Create the array, unless one of the same plan was begun. An array of another plan stays until ``commit``."""
        final, staged = self.zarr / spec.path, self.work / "new" / spec.path
        if stored_plan(final) == spec.plan:
            return
        if stored_plan(final) is None and stored_plan(staged) != spec.plan:
            remove(final / "c")
            _create(final, spec)
        elif stored_plan(staged) != spec.plan:
            if staged.exists():
                remove(staged)
            _create(staged, spec)

    def holds(self, path: str, plan: str) -> bool:
        """Whether the array at ``path`` belongs to this plan, complete or begun."""
        return stored_plan(self.zarr / path) == plan

    def write_block(self, path: str, plan: str, core: Box, pixels: Array) -> None:
        """Write one whole shard.

        Args:
            path: Path of the array in ``slide.ome.zarr``.
            plan: Plan hash that the array must have.
            core: Pixels of the shard.
            pixels: ((c,) h, w) of ``core``.

        Raises:
            StoreError: ``core`` is not exactly one shard, or the array belongs to another plan.
        """
        location = self._locate(path, plan)
        metadata = array_metadata(location)
        layout = shard_layout(location, metadata)
        block, shape, dtype = layout.block_px, tuple(metadata["shape"]), metadata["data_type"]
        aligned = all(
            start % block == 0 and stop == min(start + block, length)
            for start, stop, length in zip((core.y0, core.x0), (core.y1, core.x1), shape[-2:], strict=True)
        )
        if not aligned or pixels.shape != (*shape[:-2], *core.shape) or pixels.dtype != dtype:
            raise StoreError(
                f"{location}: expected one whole shard of {block} px, {dtype}; found {pixels.shape} "
                f"{pixels.dtype} for {core}. A partial write would lose its neighbours' pixels"
            )
        shard = shard_path(location, (core.y0 // block, core.x0 // block), len(shape))
        write_atomic(shard, lambda file: file.writelines(layout.parts(pixels)))

    def done(self, path: str, plan: str) -> set[Index]:
        """(row, col) of the blocks of this plan whose shard exists and is not empty."""
        location = self._locate(path, plan)
        base = location.joinpath("c", *("0",) * (len(array_metadata(location)["shape"]) - 2))
        if not base.is_dir():
            return set()
        rows = [entry for entry in os.scandir(base) if entry.is_dir()]
        return {
            (int(row.name), int(col.name))
            for row in rows
            for col in os.scandir(row.path)
            if col.name.isdigit() and col.stat().st_size > 0
        }

    def commit(self, path: str, plan: str) -> None:
        """Make a complete array durable and move it to its final path, replacing that of the previous plan."""
        location, final = self._locate(path, plan), self.zarr / path
        fsync_tree(location)
        if location != final:
            self._replace(location, path)
        remove(self.work / "old" / path)  # also left by a replacement that was killed after its last rename
        for folder in (final.parent, *final.parent.parents):
            fsync_dir(folder)  # a stamp must not outlive the name of the array
            if folder == self.root:
                break

    def _replace(self, location: Path, path: str) -> None:
        """Move the array of the previous plan aside, and a finished array to its path."""
        final, old = self.zarr / path, self.work / "old" / path
        if final.exists():
            remove(old)
            old.parent.mkdir(parents=True, exist_ok=True)
            final.replace(old)
        final.parent.mkdir(parents=True, exist_ok=True)
        location.replace(final)
        fsync_dir(final.parent)

    def read(self, path: str) -> StoredArray:
        """The committed array at ``path``.

        Raises:
            DamagedError: Its metadata are missing or damaged.
        """
        self.plan_of(path)
        return StoredArray(self.zarr / path, _open(self.zarr / path))

    def plan_of(self, path: str) -> str:
        """Plan hash of the committed array at ``path``; raises DamagedError when there is no array."""
        plan = stored_plan(self.zarr / path)
        if plan is None:
            raise DamagedError(f"{self.zarr / path / 'zarr.json'} is missing: there is no array here yet. Run segment")
        return plan

    def _locate(self, path: str, plan: str) -> Path:
        for location in (self.zarr / path, self.work / "new" / path):
            if stored_plan(location) == plan:
                return location
        found = (stored_plan(self.zarr / path) or "none")[:8]
        raise StoreError(
            f"{self.zarr / path}: expected an array of plan {plan[:8]}, found {found}. Another run changed the plan "
            "meanwhile; run segment again"
        )

    # ---- blocks' small results ---------------------------------------------------------------------------------

    def save_result(self, stage: str, plan: str, index: Index, arrays: Mapping[str, Array]) -> None:
        """Write a block's small result atomically."""
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        write_bytes(self.result_path(stage, plan, index), buffer.getbuffer())

    def load_result(
        self, stage: str, plan: str, index: Index, names: Collection[str] | None = None
    ) -> dict[str, Array]:
        """Read a block's small result.

        Args:
            stage: Name of the stage.
            plan: Plan hash of the stage.
            index: (row, col) of the block.
            names: Arrays to read; None for all.

        Raises:
            DamagedError: The file cannot be read. Names the file.
        """
        path = self.result_path(stage, plan, index)
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
                return {name: archive[name] for name in (names or archive.files)}
        except (FileNotFoundError, EOFError, zipfile.BadZipFile, zlib.error, struct.error, *DAMAGE) as error:
            raise DamagedError(
                f"{path} cannot be read ({error}). Delete {path.parent} and run segment again"
            ) from error

    def results(self, stage: str, plan: str) -> set[Index]:
        """(row, col) of the blocks that have a small result of this plan."""
        names = (path.name.split(".") for path in (self.work / stage).glob(f"*.{plan[:8]}.npz"))
        return {(int(name[0]), int(name[1])) for name in names if name[0].isdigit()}

    def result_path(self, stage: str, plan: str, index: Index) -> Path:
        """Path of a block's small result."""
        return self.work / stage / f"{index[0]}.{index[1]}.{plan[:8]}.npz"

    def sweep_results(self, stage: str, plan: str) -> None:
        """Remove small results of other plans."""
        for path in (self.work / stage).glob("*"):
            if f".{plan[:8]}." not in path.name and not path.name.endswith(".partial"):
                path.unlink(missing_ok=True)

    # ---- stamps -------------------------------------------------------------------------------------------------

    def stamp(self, stage: str, plan: str, facts: Mapping[str, Any]) -> None:
        """Declare a stage complete under ``plan``. Its files must be durable before this is called."""
        fsync_tree(self.work / stage)
        write_json(self.work / f"{stage}.stamp", {"plan": plan, "facts": dict(facts)})
        fsync_dir(self.work)

    def stamped(self, stage: str) -> str | None:
        """Plan hash under which the stage was completed, or None."""
        return str(self._stamp(stage)["plan"]) if (self.work / f"{stage}.stamp").exists() else None

    def facts(self, stage: str) -> dict[str, Any]:
        """Facts that the stage recorded when it was completed."""
        return dict(self._stamp(stage)["facts"])

    def _stamp(self, stage: str) -> dict[str, Any]:
        path = self.work / f"{stage}.stamp"
        match content := read_json(path):
            case {"plan": str(), "facts": dict()}:
                return dict(content)
        raise DamagedError(f"{path} is not the stamp that was written: it is damaged. Delete it and rerun")

    def unstamp(self, stages: Iterable[str]) -> None:
        """Remove the stamps of stages."""
        for stage in stages:
            (self.work / f"{stage}.stamp").unlink(missing_ok=True)
        fsync_dir(self.work)


def _open(location: Path) -> zarr.Array[Any]:
    import zarr

    try:
        return zarr.open_array(zarr.storage.LocalStore(location, read_only=True), mode="r")
    except DAMAGE as error:
        raise damaged_metadata(location, error) from error


def _create(location: Path, spec: ArraySpec) -> None:
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

    compress: BytesBytesCodec = (
        ZstdCodec(level=1) if spec.codec == "zstd" else BloscCodec(cname="lz4", clevel=5, shuffle="shuffle")
    )
    described: dict[str, Buffer] = {}
    zarr.create_array(
        zarr.storage.MemoryStore(described),
        shape=spec.shape,
        dtype=spec.dtype,
        chunks=(*spec.shape[:-2], CELL_PX, CELL_PX),
        shards=(*spec.shape[:-2], spec.block_px, spec.block_px),
        compressors=(compress, Crc32cCodec()),
        fill_value=0,
        dimension_names=("c", "y", "x")[-len(spec.shape) :],
        attributes={"overtile": {"plan": spec.plan}},
        config={"write_empty_chunks": True},
    )
    write_bytes(location / "zarr.json", described["zarr.json"].to_bytes())
