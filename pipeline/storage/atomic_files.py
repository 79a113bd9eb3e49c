"""Atomic writes, durable directories, digests.

Every file is written to a temporary file beside it, fsynced and renamed into place. So a reader never sees half a file,
and once the directory is fsynced too, a power loss never leaves a name without its bytes. A full or read-only disk
raises a DiskError that names the path.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import RawIOBase
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.errors import DamagedError, DiskError
from unet_core.atomic_write import PARTIAL as PARTIAL
from unet_core.atomic_write import replace_file

PARTIAL_AGE_S = 600
_DISK_ERRNOS = {errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG}


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn 'disk full', 'read-only' and 'quota exceeded' into a DiskError that names ``path`` and the free space."""
    try:
        yield
    except DiskError:
        raise
    except OSError as error:
        if error.errno not in _DISK_ERRNOS:
            raise
        raise DiskError(
            error.errno, f"cannot write {path}: {os.strerror(error.errno or 0)}{_free_space(path)}"
        ) from error


def _free_space(path: Path) -> str:
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    return f"; {shutil.disk_usage(existing).free / 2**30:.1f} GiB free on its file system. Free some and rerun"


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write ``path`` through a temporary neighbour: call ``write(file)``, fsync, rename. Makes parent folders.

    A failure leaves no temporary file and the previous ``path`` untouched; kill -9 leaves at most a ``.partial``.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, write)


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Atomically write ``data``."""
    write_atomic(path, lambda file: file.write(data))


def write_json(path: Path, content: object) -> None:
    """Atomically write ``content`` as sorted, indented JSON."""
    write_bytes(path, json.dumps(content, indent=1, sort_keys=True, ensure_ascii=True).encode() + b"\n")


def read_json(path: Path) -> Any:
    """Read the JSON in ``path``.

    Raises:
        DamagedError: The file is empty, cut or not JSON. Names the file.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DamagedError(
            f"{path} is not the JSON that was written ({error}): it is damaged. Delete it and rerun"
        ) from error


def append_json(path: Path, content: object) -> None:
    """Append one line of JSON in one write, so that lines of several writers never mix.

    A torn line, left by a killed writer or a full disk, stays a line of its own.
    """
    with disk_errors(path), path.open("a+b", buffering=0) as file:
        start = b"\n" if _ends_torn(file) else b""
        line = start + json.dumps(content, sort_keys=True).encode() + b"\n"
        if file.write(line) != len(line):  # the rest is not written: it could end up inside another writer's line
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _ends_torn(file: RawIOBase) -> bool:
    if file.seek(0, os.SEEK_END) == 0:
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


def read_json_lines(path: Path) -> list[Any]:
    """The lines that ``append_json`` wrote, without torn ones. Empty when there is no such file."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [content for line in lines if (content := _parsed(line)) is not None]


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def fsync_dir(folder: Path) -> bool:
    """Make the names in ``folder`` durable; return False where the file system does not support it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return True
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
        return False
    finally:
        os.close(descriptor)
    return True


def fsync_tree(folder: Path) -> None:
    """Make every name below ``folder`` durable, deepest first, and ``folder``'s own name in its parent."""
    for current, _, _ in os.walk(folder, topdown=False):
        fsync_dir(Path(current))
    fsync_dir(folder.parent)


def remove(path: Path) -> None:
    """Remove a file or a folder durably, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    fsync_dir(path.parent)


def sweep_partials(folder: Path, age_s: float = PARTIAL_AGE_S) -> int:
    """Remove temporary files of killed writers that are older than ``age_s``; return their number."""
    return sum(_unlink_older(path, age_s) for path in list(folder.rglob(f".*{PARTIAL}")))


def _unlink_older(path: Path, age_s: float) -> bool:
    try:
        old = time.time() - path.stat().st_mtime > age_s
        if old:
            path.unlink()
    except FileNotFoundError:  # its writer has just renamed it
        return False
    return old


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(content: object) -> str:
    """Hex SHA-256 of ``content`` as canonical JSON: the hash of a plan."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
