"""Block functions for tests of mappers, in a module that worker processes can import."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.errors import DiskError, SlideError
from pipeline.execution.blocks import Counts
from pipeline.geometry import Box
from pipeline.slide_reader import TileError, TileIndex
from pipeline.storage.slide_store import Index


def count(index: Index) -> Counts:
    """Return counts that identify the block."""
    return {"blocks": 1, "sum": 1000 * index[0] + index[1]}


def heaps(index: Index) -> Counts:
    """Number of heaps of glibc in this process while four threads allocate memory; -1 for another C library."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_info"):
        return {"heaps": -1}
    with ThreadPoolExecutor(4) as pool, tempfile.NamedTemporaryFile() as file:
        barrier = threading.Barrier(4)
        list(pool.map(lambda size: (barrier.wait(), len(bytes(size)))[1], [100_000] * 4))
        libc.fopen.restype = ctypes.c_void_p
        stream = ctypes.c_void_p(libc.fopen(file.name.encode(), b"w"))
        libc.malloc_info(0, stream)
        libc.fclose(stream)
        return {"heaps": Path(file.name).read_text().count("<heap nr=")}


def noted(folder: Path, index: Index) -> Counts:
    """Leave a file for every attempt in ``folder``."""
    name = f"{index[0]}.{index[1]}"
    attempts = len(list(folder.glob(f"{name}.*")))
    (folder / f"{name}.{attempts}.{os.getpid()}").touch()
    return {"attempt": attempts}


def fails_first(folder: Path, times: int, number: int, index: Index) -> Counts:
    """Raise an OSError ``number`` the first ``times`` times that block (1, 1) is run."""
    attempts = noted(folder, index)["attempt"]
    if index == (1, 1) and attempts < times:
        raise OSError(number, os.strerror(number))
    return count(index)


def disk_full(folder: Path, index: Index) -> Counts:
    """The disk is full at block (0, 3)."""
    noted(folder, index)
    if index == (0, 3):
        raise DiskError(errno.ENOSPC, "cannot write there: No space left on device")
    return count(index)


def bad_slide(folder: Path, bad: tuple[Index, ...], index: Index) -> Counts:
    """The slide is damaged in the blocks ``bad``."""
    noted(folder, index)
    if index in bad:
        raise SlideError(f"slide.svs: tile {index} is damaged")
    return count(index)


def bad_tile(folder: Path, bad: tuple[Index, ...], index: Index) -> Counts:
    """A tile of the slide is damaged in the blocks ``bad``."""
    noted(folder, index)
    if index in bad:
        row, col = index
        box = Box(256 * row, 256 * col, 256 * row + 256, 256 * col + 256)
        raise TileError(f"slide.svs: tile {index} is damaged", TileIndex(0, row, col, box))
    return count(index)


def bug(folder: Path, bad: tuple[Index, ...], index: Index) -> Counts:
    """Raise an unexpected error in the blocks ``bad``."""
    noted(folder, index)
    if index in bad:
        raise ZeroDivisionError("division by zero")
    return count(index)


def poison(folder: Path, bad: tuple[Index, ...], times: int, index: Index) -> Counts:
    """Kill the process at the blocks ``bad``, the first ``times`` times each is run."""
    attempts = noted(folder, index)["attempt"]
    if index in bad and attempts < times:
        os.kill(os.getpid(), signal.SIGKILL)
    return count(index)


def ordered(folder: Path, slide: int, index: Index) -> Counts:
    """Append the slide of the block to a file that all workers share."""
    with (folder / "order").open("a") as file:
        file.write(f"{slide}\n")
    return {"blocks": 1, "work": sum(range(1_000_000))}  # long beside what it takes to send the next one


DEVICES = "CUDA_VISIBLE_DEVICES"


def seen(folder: Path, stage: str, index: Index) -> Counts:
    """Leave a file named after the visible devices, the process and the block."""
    (folder / f"{stage}@{os.environ.get(DEVICES)} {os.getpid()} {index}").touch()
    return count(index)


def hoard(wanted_bytes: int, index: Index) -> Counts:
    """Allocate memory without touching it: the system grants as much as the process may allocate."""
    return {"got": len(bytearray(wanted_bytes)) if index == (0, 0) else 0}
