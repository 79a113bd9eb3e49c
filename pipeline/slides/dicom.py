"""DICOM series, and the integrity of their JPEG frames.

OpenSlide decodes DICOM, but its libjpeg continues after a damaged scan and returns wrong pixels without an error. So
the JPEG frames under a box are checked by pipeline.slides.checks.jpeg before OpenSlide reads the box. This is possible
where the position of a frame follows from its number: TILED_FULL, one focal plane, one optical path and one fragment a
frame. Other DICOM files get only OpenSlide's own checks.

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
"""Bytes before the frames: tag, type and undefined length of the pixel data."""


@dataclass(frozen=True, slots=True)
class FrameTable:
    """Byte offsets of the JPEG frames of an instance: tiles of ``tile_yx`` over ``shape_yx``, row by row."""

    path: Path
    shape_yx: tuple[int, int]
    tile_yx: tuple[int, int]
    offsets: tuple[int, ...]

    def problem(self, box: Box) -> tuple[tuple[int, int], Box, str] | None:
        """Check the frames under a box.

        Returns:
            (row, col), box and problem of the first damaged frame; None when all are complete.
        """
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
    """Frame tables by the (y, x) shape of their level, for the instances that have one."""
    tables = (table for file in files if (table := _table(file)) is not None)
    return {table.shape_yx: table for table in tables}


def _table(path: Path) -> FrameTable | None:
    import pydicom  # takes half a second to import; only DICOM needs it
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
            return None  # OpenSlide reports the problem
    shape_yx = int(header.TotalPixelMatrixRows), int(header.TotalPixelMatrixColumns)
    tile_yx = int(header.Rows), int(header.Columns)
    frames = -(-shape_yx[0] // tile_yx[0]) * -(-shape_yx[1] // tile_yx[1])
    return FrameTable(path, shape_yx, tile_yx, tuple(offsets)) if count == frames else None


def _is_plain_grid(header: Any) -> bool:
    """Whether the instance is a level of JPEG tiles in row-major order."""
    return (
        str(header.file_meta.TransferSyntaxUID) in _JPEG
        and "VOLUME" in header.get("ImageType", ())
        and header.get("DimensionOrganizationType") == "TILED_FULL"
        and min(int(header.Rows), int(header.Columns)) > 0
    )


def series_of(instance: Path) -> list[Path]:
    """The DICOM instances of the same series in the folder of ``instance``, including itself."""
    neighbours = {file for file in instance.parent.iterdir() if file.suffix.casefold() == DICOM and file.is_file()}
    return next(series for series in group_by_series(neighbours | {instance}) if instance in series)


def group_by_series(instances: Iterable[Path]) -> list[list[Path]]:
    """DICOM files grouped by series, each group sorted. A file without a series is a group of its own."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for instance in sorted(instances):
        groups[_series_uid(instance, _mtime_ns(instance)) or str(instance)].append(instance)
    return list(groups.values())


def _mtime_ns(path: Path) -> int:
    return path.stat().st_mtime_ns


@lru_cache(maxsize=4096)
def _series_uid(instance: Path, _mtime: int) -> str | None:
    """Series Instance UID. Cached, because workers open the slide again for every block."""
    import pydicom  # takes half a second to import; only DICOM needs it

    try:
        header = pydicom.dcmread(instance, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"])
    except (pydicom.errors.InvalidDicomError, ValueError, OSError, EOFError, AttributeError, NotImplementedError):
        return None
    return str(uid) if (uid := header.get("SeriesInstanceUID")) else None
