"""Search everything below a folder for words and colours.

Files are searched as they are and, for gzip, parquet, zarr and PNG, also decoded: compression hides words.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import zarr
from numpy.typing import NDArray
from PIL import Image


def files_below(folder: Path) -> Iterator[Path]:
    """Return every file below a folder."""
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())


def words_held(folder: Path, words: Iterable[str]) -> set[tuple[str, str]]:
    """Return (file, word) for every word in a file's content or name, in UTF-8 or UTF-16."""
    wanted = {word: (word.encode(), word.encode("utf-16-le")) for word in words}
    found = set()
    for path in files_below(folder):
        name = path.relative_to(folder).as_posix()
        texts = [name.encode(errors="surrogateescape"), *_contents(path)]
        found |= {(name, word) for word, forms in wanted.items() for form in forms for text in texts if form in text}
    return found


def _contents(path: Path) -> Iterator[bytes]:
    raw = path.read_bytes()
    yield raw
    if raw[:2] == b"\x1f\x8b":
        yield gzip.decompress(raw)
    elif raw[:4] == b"PAR1":
        table = pq.read_table(io.BytesIO(raw))
        yield repr((table.schema.metadata, table.schema, table.to_pydict())).encode()


def colour_held(folder: Path, colour: tuple[int, int, int]) -> list[str]:
    """Return every file or array with bytes or pixels of exactly that colour."""
    run = bytes(colour) * 8
    found = [path.name for path in files_below(folder) if run in path.read_bytes()]
    found += [
        str(path) for path in folder.rglob("*.png") if _shows(np.asarray(Image.open(path).convert("RGB")), colour)
    ]
    for path in folder.rglob("zarr.json"):
        node: Any = zarr.open(path.parent, mode="r")
        if isinstance(node, zarr.Array) and node.ndim == 3 and node.shape[0] == 3 and node.dtype == np.uint8:
            found += [str(path)] * _shows(np.moveaxis(np.asarray(node[:]), 0, -1), colour)
    return found


def _shows(image_YXC: NDArray[Any], colour: tuple[int, int, int]) -> bool:
    return bool((image_YXC == np.array(colour)).all(axis=-1).any())
