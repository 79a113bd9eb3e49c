"""Detect the format of a slide, and list every file that belongs to it.

A slide may consist of many files: an MRXS is a file and a folder, a DICOM slide the instances of one series, an
OME-Zarr a tree. Discovery, opening and change detection all use this module. Formats that cannot be read are known by
name, each with the command that converts it, so that an archive of CZI files fails with an error instead of being
skipped.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import SlideError
from pipeline.slides.checks.file import read_head, stat_file
from pipeline.slides.dicom import DICOM, series_of

Kind = Literal["tiff", "photo", "openslide", "zarr"]

_OPENSLIDE = (".mrxs", ".vms", ".vmu", ".svslide")
_PHOTO_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
_ZARR_DOCUMENTS = ("zarr.json", ".zattrs", ".zgroup", ".zarray")
_TO_ZARR, _ISYNTAX = "bioformats2raw", "isyntax2raw write_tiles"
UNREADABLE = {
    ".czi": ("Zeiss CZI", _TO_ZARR),
    ".vsi": ("Olympus VSI", _TO_ZARR),
    ".lif": ("Leica LIF", _TO_ZARR),
    ".nd2": ("Nikon ND2", _TO_ZARR),
    ".isyntax": ("Philips iSyntax", _ISYNTAX),
    ".i2syntax": ("Philips iSyntax", _ISYNTAX),
}


@dataclass(frozen=True, slots=True)
class DetectedSlide:
    """A slide on disk: the kind of its reader, the path for that reader, and its files, sorted.

    ``files`` of an OME-Zarr are its metadata documents only; its chunks are looked up when they are needed.
    """

    kind: Kind
    path: Path
    files: tuple[Path, ...]


def detect_format(path: Path) -> DetectedSlide:
    """Detect the format of a file or folder from its name and first bytes.

    Args:
        path: A file, or the folder of an OME-Zarr or of a DICOM series.

    Returns:
        The kind of reader, the path to open, and all files of the slide.

    Raises:
        SlideError: If the path is not a slide, does not exist, or must be converted first.
    """
    if path.is_dir():
        return _detect_folder(path)
    stat_file(path)
    suffix = path.suffix.casefold()
    if suffix in UNREADABLE:
        raise SlideError(_conversion(path))
    if suffix in _OPENSLIDE:
        return DetectedSlide("openslide", path, (path, *companions(path)))
    head = read_head(path)
    if head[128:132] == b"DICM":
        return DetectedSlide("openslide", path, tuple(series_of(path)))
    return DetectedSlide("photo" if head.startswith(_PHOTO_MAGIC) else "tiff", path, (path,))


def _detect_folder(path: Path) -> DetectedSlide:
    if documents := _zarr_documents(path):
        return DetectedSlide("zarr", path, documents)
    instances = sorted(file for file in path.iterdir() if file.suffix.casefold() == DICOM and file.is_file())
    if instances:
        return DetectedSlide("openslide", instances[0], tuple(series_of(instances[0])))
    raise SlideError(
        f"{path}: a folder without an OME-Zarr or DICOM instances; expected a slide. Name the file itself."
    )


def _conversion(path: Path) -> str:
    name, command = UNREADABLE[path.suffix.casefold()]
    command_line = shlex.join([*command.split(), path.name, f"{path.stem}.zarr"])
    return f"{path}: {name} is not supported. Convert it with this command and segment its output: {command_line}"


def companions(path: Path) -> list[Path]:
    """The other files of an MRXS (all of its folder), VMS or VMU (those it lists); empty for other formats."""
    suffix = path.suffix.casefold()
    if suffix == ".mrxs":
        return sorted(file for file in path.with_suffix("").rglob("*") if file.is_file())
    if suffix in (".vms", ".vmu"):
        listed = {line.partition("=")[2].strip() for line in _text(path).splitlines()}
        return sorted(file for name in listed if name and (file := path.parent / Path(name).name).is_file())
    return []


def owned_names(folder: Path, names: Iterable[str]) -> set[str]:
    """The names in a folder that are part of another slide in it, and are no slides themselves."""
    owned: set[str] = set()
    for name in names:
        if name.casefold().endswith(".mrxs"):
            owned.add(Path(name).stem)
        elif name.casefold().endswith((".vms", ".vmu")):
            owned |= {file.name for file in companions(folder / name)}
    return owned


# ---- OME-Zarr --------------------------------------------------------------------------------------------------------


def is_ome_zarr(folder: Path) -> bool:
    """Whether a folder is the root of an OME-Zarr image, plate or bioformats2raw tree; False for own results."""
    attributes = zarr_attributes(folder)
    if not any(name in attributes for name in ("multiscales", "plate", "bioformats2raw.layout")):
        return False
    return not is_own_result(folder)


def is_own_result(folder: Path) -> bool:
    """Whether overtile wrote the OME-Zarr: its arrays carry a plan hash."""
    return any("overtile" in _raw_attributes(document.parent) for document in folder.glob("*/zarr.json"))


def zarr_attributes(folder: Path) -> dict[str, Any]:
    """OME metadata of a group, version 0.5 (below ``ome``) or 0.4; empty when absent or unreadable."""
    attributes = _raw_attributes(folder)
    inner = attributes.get("ome")
    return inner if isinstance(inner, dict) else attributes


def _raw_attributes(folder: Path) -> dict[str, Any]:
    document = _json(folder / "zarr.json")
    attributes = document.get("attributes") if document else _json(folder / ".zattrs")
    return attributes if isinstance(attributes, dict) else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _zarr_documents(folder: Path) -> tuple[Path, ...]:
    """Metadata of the group, of its arrays and, in a bioformats2raw tree, of the arrays of its images."""
    top = _documents(folder)
    below = [child for child in folder.iterdir() if child.is_dir()] if top else []
    if "bioformats2raw.layout" in zarr_attributes(folder):
        below += [inner for child in below if _documents(child) for inner in child.iterdir() if inner.is_dir()]
    return tuple(sorted([*top, *(document for child in below for document in _documents(child))]))


def _documents(folder: Path) -> list[Path]:
    """Metadata files of one group or array. Chunks are not listed: there may be very many."""
    return [file for name in _ZARR_DOCUMENTS if (file := folder / name).is_file()]


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")[: 1 << 20]
    except OSError:
        return ""
