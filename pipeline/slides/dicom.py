"""DICOM beside OpenSlide: which files are one series, and whether the JPEG frames a box needs are whole.

The one decision made here: OpenSlide decodes, but its libjpeg goes on after a damaged scan and returns wrong pixels
without a word. So the frames of a box are looked at as the tiles of a TIFF are (see slide_jpeg), before OpenSlide is
asked for it. Only where a frame's place follows from its number (TILED_FULL, one focal plane, one optical path, one
fragment a frame); other DICOM is as strict as OpenSlide.

DICOM PS3.3 C.8.12 (whole slide microscopy), PS3.5 A.4 (encapsulated frames).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.geometry import Box
from pipeline.slides.checks.jpeg import scan_problem

DICOM = ".dcm"
_JPEG = frozenset({"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"})
_ITEM_BYTES = 8
_START_BYTES = 12
"""Before the frames: tag, type and undefined length of the pixel data."""


@dataclass(frozen=True, slots=True)
class FrameTable:
    """Where the JPEG frames of an instance lie: tiles of ``tile_yx`` over ``shape_yx``, row by row."""

    path: Path
    shape_yx: tuple[int, int]
    tile_yx: tuple[int, int]
    offsets: tuple[int, ...]

    def problem(self, box: Box) -> tuple[tuple[int, int], Box, str] | None:
        """(row, col), place and fault of the first frame with pixels of the box that is not whole; None without."""
        with self.path.open("rb") as file:
            for row, col in self._touched(box):
                file.seek(self.offsets[row * -(-self.shape_yx[1] // self.tile_yx[1]) + col])
                length = int.from_bytes(file.read(_ITEM_BYTES)[4:], "little")
                if fault := scan_problem(file.read(length)):
                    return (row, col), self._place(row, col), fault
        return None

    def _touched(self, box: Box) -> Iterator[tuple[int, int]]:
        side_y, side_x = self.tile_yx
        for row in range(box.y0 // side_y, -(-box.y1 // side_y)):
            yield from ((row, col) for col in range(box.x0 // side_x, -(-box.x1 // side_x)))

    def _place(self, row: int, col: int) -> Box:
        side_y, side_x = self.tile_yx
        tile = Box(row * side_y, col * side_x, (row + 1) * side_y, (col + 1) * side_x)
        place = tile.intersect(Box.of_shape(self.shape_yx))
        assert place is not None, "frames beyond the image are never touched"
        return place


def frame_tables(files: Iterable[Path]) -> Mapping[tuple[int, int], FrameTable]:
    """The tables of all instances that have one, by the (y, x) shape of the level they hold."""
    tables = (table for file in files if (table := _table(file)) is not None)
    return {table.shape_yx: table for table in tables}


def _table(path: Path) -> FrameTable | None:
    import pydicom  # half a second, for those who have DICOM
    from pydicom.encaps import parse_basic_offsets, parse_fragments

    with path.open("rb") as file:
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True)
            if not _is_plain_grid(header):
                return None
            file.seek(_START_BYTES, 1)
            parse_basic_offsets(file)
            count, offsets = parse_fragments(file)
        except (pydicom.errors.InvalidDicomError, ValueError, EOFError, AttributeError, NotImplementedError):
            return None  # OpenSlide says what is wrong with it
    shape_yx = int(header.TotalPixelMatrixRows), int(header.TotalPixelMatrixColumns)
    tile_yx = int(header.Rows), int(header.Columns)
    frames = -(-shape_yx[0] // tile_yx[0]) * -(-shape_yx[1] // tile_yx[1])
    return FrameTable(path, shape_yx, tile_yx, tuple(offsets)) if count == frames else None


def _is_plain_grid(header: Any) -> bool:
    """Whether the instance is a level of JPEG tiles, one after the other."""
    return (
        str(header.file_meta.TransferSyntaxUID) in _JPEG
        and "VOLUME" in header.get("ImageType", ())
        and header.get("DimensionOrganizationType") == "TILED_FULL"
        and min(int(header.Rows), int(header.Columns)) > 0
    )


def series_of(instance: Path) -> list[Path]:
    """The DICOM instances beside ``instance`` that are of its series, itself included."""
    beside = {file for file in instance.parent.iterdir() if file.suffix.casefold() == DICOM and file.is_file()}
    return next(series for series in group_by_series(beside | {instance}) if instance in series)


def group_by_series(instances: Iterable[Path]) -> list[list[Path]]:
    """DICOM files by their series, each sorted; a file that names no series is one by itself."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for instance in sorted(instances):
        groups[_series_uid(instance, _mtime_ns(instance)) or str(instance)].append(instance)
    return list(groups.values())


def _mtime_ns(path: Path) -> int:
    return path.stat().st_mtime_ns


@lru_cache(maxsize=4096)
def _series_uid(instance: Path, _mtime: int) -> str | None:
    """Series Instance UID; cached, because workers come back to a slide for every block."""
    import pydicom  # half a second, for those who have DICOM

    try:
        header = pydicom.dcmread(instance, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"])
    except (pydicom.errors.InvalidDicomError, ValueError, OSError, EOFError, AttributeError, NotImplementedError):
        return None
    return str(uid) if (uid := header.get("SeriesInstanceUID")) else None
