"""Open TIFF files, name other files by their type, and sample bytes of files.

A file is opened only after a check that it is an ordinary file: opening a FIFO blocks, and opening a device may have
side effects.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import SlideError

_TIFF = (b"II\x2a\x00", b"MM\x00\x2a", b"II\x2b\x00", b"MM\x00\x2b")
_KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a FIFO",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a character device",
    stat.S_ISBLK: "a block device",
}
_MAGIC = {
    b"\x1f\x8b": "gzip-compressed", b"PK\x03\x04": "a zip archive", b"PK\x05\x06": "an empty zip archive",
    b"%PDF": "a PDF document", b"\x89PNG": "a PNG image", b"\xff\xd8\xff": "a bare JPEG image",
    b"\x89HDF": "an HDF5 file", b"ZISRAWFILE": "a Zeiss CZI file", b"BZh": "bzip2-compressed",
    b"\xfd7zXZ": "xz-compressed", b"7z\xbc\xaf": "a 7z archive", b"Rar!": "a RAR archive", b"GIF8": "a GIF image",
    b"BM": "a BMP image", b"\x00\x00\x00\x0cjP": "a JPEG 2000 image", b"\xff\x4f\xff\x51": "a JPEG 2000 codestream",
    b"version https://git-lfs": "a Git LFS pointer; its content was not fetched",
    b"II\xbc\x01": "a JPEG XR image",
}  # fmt: skip
_HEAD_BYTES = 512
SAMPLES, SAMPLE_BYTES = 256, 4096
DAMAGED = "The file is damaged or its copy did not finish: copy it again from its source."


@dataclass(frozen=True, slots=True)
class RawFile:
    """An open file with its name. Reads use ``pread``, share no file position, and never return fewer bytes."""

    fd: int
    name: str
    size_bytes: int

    def read(self, offset: int, length: int, what: str) -> bytes:
        """Read ``length`` bytes at ``offset``.

        Raises:
            SlideError: If the file ends before; ``what`` names the part in the message.
        """
        if offset < 0 or offset + length > self.size_bytes:
            raise SlideError(
                f"{self.name}: {what} should lie at bytes {offset} to {offset + length}, but the file has "
                f"{self.size_bytes} bytes. {DAMAGED}"
            )
        data = os.pread(self.fd, length, offset)
        if len(data) != length:
            raise SlideError(f"{self.name}: {what}: {length} bytes expected, {len(data)} read: the file is changing.")
        return data

    def number(self, order: str, offset: int, width: int, what: str) -> int:
        """The unsigned integer of ``width`` bytes at ``offset``; ``order`` is ``<`` or ``>``."""
        return int.from_bytes(self.read(offset, width, what), "little" if order == "<" else "big")


def stat_file(path: Path) -> os.stat_result:
    """State of a file, without opening it. Raises SlideError when it is missing or not an ordinary file."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        what = "a link to nothing" if path.is_symlink() else "no such file"
        raise SlideError(f"{path}: {what}; expected a slide file. Check the path.") from error
    except OSError as error:
        raise SlideError(f"{path}: cannot be looked at ({error.strerror}); expected a slide file. Check it.") from error
    for is_kind, name in _KINDS.items():
        if is_kind(status.st_mode):
            raise SlideError(f"{path}: {name}; expected a slide file. Name the file itself.")
    return status


def read_head(path: Path) -> bytes:
    """The first 512 bytes of an ordinary file. Raises SlideError when it cannot be opened."""
    fd = _open(path)
    try:
        return os.pread(fd, _HEAD_BYTES, 0)
    finally:
        os.close(fd)


def sampled_digest(files: Sequence[Path], facts: str) -> str:
    """SHA-256 of ``facts``, of the file sizes in their order, and of 256 samples of 4 KiB of all files."""
    sizes = np.array([file.stat().st_size for file in files], np.int64)
    ends, digest = np.cumsum(sizes), hashlib.sha256(facts.encode() + sizes.tobytes())
    for offset in np.unique(np.linspace(0, max(0, int(ends[-1]) - SAMPLE_BYTES), SAMPLES).astype(np.int64)):
        index = int(np.searchsorted(ends, offset, side="right"))
        with files[index].open("rb") as opened:
            opened.seek(int(offset - ends[index] + sizes[index]))
            digest.update(opened.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (PermissionError, FileNotFoundError) as error:
        raise SlideError(f"{path}: cannot be opened ({error.strerror}); expected a readable file. Check it.") from error


def open_file(path: Path) -> RawFile:
    """Open a file that begins as a TIFF. Raises SlideError, naming the type found, for any other file."""
    stat_file(path)
    fd = _open(path)
    try:
        return _checked(fd, path)
    except BaseException:
        os.close(fd)
        raise


def _checked(fd: int, path: Path) -> RawFile:
    size = os.fstat(fd).st_size
    head = os.pread(fd, _HEAD_BYTES, 0)
    if head[:4] not in _TIFF:
        raise SlideError(
            f"{path}: {_type_name(head, size)}, {size} bytes; expected a slide (TIFF, SVS, NDPI, MRXS, DICOM, ..). "
            "Fetch the slide again, or convert it."
        )
    if size < 8:
        raise SlideError(f"{path}: {size} bytes of a TIFF header; the file is cut short. Copy it again.")
    return RawFile(fd, str(path), size)


def _type_name(head: bytes, size: int) -> str:
    """Name of the type of a file that is no TIFF, from its first bytes."""
    if size == 0:
        return "an empty file"
    if not head.strip(b"\0"):
        return "a file that begins with zeros (an unfinished copy?)"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:32].lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head")):
        return "a web page (a failed download?)"
    if start.startswith(b"<?xml"):
        return "an XML document"
    if head[128:132] == b"DICM":
        return "a DICOM file"
    if head[257:262] == b"ustar":
        return "a tar archive"
    return next(
        (name for magic, name in _MAGIC.items() if head.startswith(magic)), f"not a TIFF (begins {head[:8].hex(' ')})"
    )
