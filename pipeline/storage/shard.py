"""Write the file of one shard chunk by chunk, with the same bytes as zarr.

zarr's own writer keeps the whole shard in memory twice and spends more time on passing chunks between its tasks than on
compressing them. A block is always one whole shard, so its file is its compressed chunks one after the other, then an
index.

Layout: zarr specification 3, codec ``sharding_indexed``, index at the end; chunks in zarr-python's Morton order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numcodecs.blosc
import numpy as np
from numcodecs.blosc import Blosc
from numcodecs.zstd import Zstd
from numpy.typing import NDArray

ABSENT = 2**64 - 1
"""Offset and length of a chunk that lies outside the array."""

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """Layout of an array's shards: sides of a chunk and of the shard in pixels, and the compressor."""

    chunk_px: int
    block_px: int
    compress: Callable[[Array], bytes]

    @classmethod
    def read(cls, metadata: dict[str, Any]) -> ShardLayout:
        """Read the layout from an array's metadata.

        Raises:
            LookupError, ValueError: The array was not written by this package.
        """
        (sharding,) = metadata["codecs"]
        inside = sharding["configuration"]
        _bytes, compressor, _crc = inside["codecs"]
        block = metadata["chunk_grid"]["configuration"]["chunk_shape"][-1]
        return cls(int(inside["chunk_shape"][-1]), int(block), _compressor(compressor))

    def parts(self, pixels: Array) -> Iterator[bytes]:
        """Yield the bytes of the file in order, for the pixels ((c,) h, w) of one block of at most a shard."""
        numcodecs.blosc.use_threads = False  # else the order of bytes depends on the order in which threads finish
        side = -(-self.block_px // self.chunk_px)
        index, offset = np.full((side, side, 2), ABSENT, "<u8"), 0
        for row, col in morton(side):
            top, left = row * self.chunk_px, col * self.chunk_px
            part = pixels[..., top : top + self.chunk_px, left : left + self.chunk_px]
            if not part.size:
                continue
            data = self.compress(self._whole(part).view(np.uint8))
            index[row, col] = offset, len(data) + 4
            offset += len(data) + 4
            yield data
            yield _crc32c(data)
        yield index.tobytes()
        yield _crc32c(index.tobytes())

    def _whole(self, part: Array) -> Array:
        """A whole chunk, zero outside the array."""
        shape = (*part.shape[:-2], self.chunk_px, self.chunk_px)
        if part.shape == shape:
            return np.ascontiguousarray(part)
        whole = np.zeros(shape, part.dtype)
        whole[..., : part.shape[-2], : part.shape[-1]] = part
        return whole


def _compressor(codec: dict[str, Any]) -> Callable[[Array], bytes]:
    settings = codec["configuration"]
    if codec["name"] == "zstd":
        encode = Zstd(level=settings["level"], checksum=settings["checksum"]).encode
    else:
        shuffle = ("noshuffle", "shuffle", "bitshuffle").index(settings["shuffle"])
        names = ("cname", "clevel", "blocksize", "typesize")
        encode = Blosc(shuffle=shuffle, **{name: settings[name] for name in names}).encode
    return lambda chunk: bytes(encode(chunk.reshape(-1)))


def _crc32c(data: bytes) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(4, "little")


def morton(side: int) -> list[tuple[int, int]]:
    """(row, col) of a square grid along the Z-order curve, rows first."""
    return sorted(np.ndindex(side, side), key=lambda cell: _spread(cell[0]) | _spread(cell[1]) << 1)


def _spread(number: int) -> int:
    """Insert a zero between each two binary digits: read them in base 4."""
    return int(f"{number:b}", 4)
