"""Atomic writes: a file has its complete content or does not exist.

Content goes to a temporary neighbour, is fsynced, and the neighbour is renamed, so neither a reader nor a kill finds
half a file.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

PARTIAL = ".partial"
"""Suffix of temporary neighbours."""


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write ``path`` through a temporary neighbour: call ``write(file)``, fsync, rename.

    A failure removes the neighbour and leaves the previous ``path`` untouched; kill -9 leaves at most a neighbour. The
    folder is not fsynced.
    """
    partial = path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` and fsync the folder, so that the name survives a power loss too."""
    replace_file(path, lambda file: file.write(content))
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
