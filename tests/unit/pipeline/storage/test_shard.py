"""The file of a shard has the same bytes as that of zarr."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numcodecs.blosc
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from pipeline.geometry import Box
from pipeline.storage.shard import ShardLayout, morton
from pipeline.storage.slide_store import ArraySpec, SlideStore, shard_path

CELL_PX = 512


def written_by_zarr(folder: Path, pixels: np.ndarray[Any, Any], block_px: int, codec: str) -> Path:
    """A whole array written by zarr, one block at a time."""
    compress = ZstdCodec(level=1) if codec == "zstd" else BloscCodec(cname="lz4", clevel=5, shuffle="shuffle")
    leading = pixels.shape[:-2]
    array = zarr.create_array(
        folder,
        shape=pixels.shape,
        dtype=pixels.dtype,
        chunks=(*leading, CELL_PX, CELL_PX),
        shards=(*leading, block_px, block_px),
        compressors=(compress, Crc32cCodec()),
        fill_value=0,
    ).with_config({"write_empty_chunks": True})
    numcodecs.blosc.use_threads = False
    for y in range(0, pixels.shape[-2], block_px):
        for x in range(0, pixels.shape[-1], block_px):
            place = (..., slice(y, y + block_px), slice(x, x + block_px))
            array[place] = pixels[place]
    return folder


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 1600),
    width=st.integers(1, 1600),
    leading=st.sampled_from([(), (1,), (3,)]),
    dtype=st.sampled_from(["uint8", "uint16", "uint32", "bool"]),
    cells=st.integers(1, 3),
    codec=st.sampled_from(["zstd", "lz4"]),
    seed=st.integers(0, 2**16),
)
def test_the_same_bytes_as_zarr(
    height: int, width: int, leading: tuple[int, ...], dtype: str, cells: int, codec: Any, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    pixels = (rng.integers(0, 2 + seed % 99, (*leading, height, width)) // 2).astype(dtype)
    block_px = cells * CELL_PX
    with TemporaryDirectory() as name:
        theirs = written_by_zarr(Path(name, "zarr"), pixels, block_px, codec)
        store = SlideStore(Path(name, "ours"))
        store.create(ArraySpec("0", pixels.shape, dtype, block_px, "plan", codec))
        for y in range(0, height, block_px):
            for x in range(0, width, block_px):
                core = Box(y, x, min(y + block_px, height), min(x + block_px, width))
                store.write_block("0", "plan", core, pixels[(..., *core.slices)])
                index = (y // block_px, x // block_px)
                ours = shard_path(store.zarr / "0", index, pixels.ndim)
                assert ours.read_bytes() == shard_path(theirs, index, pixels.ndim).read_bytes()
        np.testing.assert_array_equal(store.read("0")[()], pixels)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 7, 8])
def test_chunks_lie_along_the_z_order_curve(side: int) -> None:
    """Brute force: rows and columns are the even and odd binary digits of a counter."""
    cells = []
    for number in range(4**4):
        digits = [number >> bit & 1 for bit in range(8)]
        row, col = (sum(bit << place for place, bit in enumerate(digits[start::2])) for start in (0, 1))
        if row < side and col < side:
            cells.append((row, col))
    assert morton(side) == cells


def test_other_metadata_than_ours_is_refused() -> None:
    with pytest.raises((LookupError, ValueError)):
        ShardLayout.read({"codecs": [{"name": "bytes", "configuration": {"endian": "little"}}]})
