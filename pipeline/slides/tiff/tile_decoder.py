"""Decode the tiles of one stored image, with an error that names the tile and the cause.

A decoded tile counts only when its stream agrees with the directory. A JPEG of another size, a shorter deflate result
or a scan that libjpeg would repair is damage and raises TileError.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tifffile import TiffFile, TiffPage

from pipeline.errors import SlideError
from pipeline.geometry import Box
from pipeline.slide_reader import Pixels, TileError, TileIndex
from pipeline.slides.checks.file import RawFile
from pipeline.slides.checks.image import (
    COMPRESSIONS,
    JPEG,
    JPEG_2000,
    JPEG_2000_YCC,
    YCBCR,
    ImageFacts,
    Segments,
    check_image,
    check_segment_size,
    split_strips,
)
from pipeline.slides.checks.jpeg import (
    Frame,
    codestream_problem,
    complete_stream,
    decode_rgb,
    read_frame,
    read_frame_2000,
    scan_problem,
)
from pipeline.slides.checks.pixels import rgb_from_ycbcr
from pipeline.slides.tiff.ifd import Layout
from pipeline.slides.tiff.tags import ImageTags

_PARSER_ERRORS = (ValueError, TypeError, IndexError, KeyError, OverflowError, struct.error, OSError)
"""Exceptions of tifffile for malformed tags; EINVAL comes from a seek to an impossible offset."""
_ADVICE = "Copy the slide again from its source; if the source is damaged too, this tile is lost."


@dataclass(frozen=True, slots=True)
class StoredImage:
    """One image of the file. Any number of threads may read it."""

    file: RawFile
    level: int
    facts: ImageFacts
    page: TiffPage
    dtype: np.dtype[Any]

    def fill(self, out_CYX: Pixels, box: Box) -> None:
        """Write the pixels of a box into an array.

        Args:
            out_CYX: (samples, y, x) array of the shape of the box.
            box: Box inside the image, in pixels.

        Raises:
            TileError: If a tile is damaged.
        """
        rows, cols = self.facts.grid_yx
        side_y, side_x = self.facts.segments.side_yx
        for plane in range(self.facts.planes):
            target = out_CYX[plane : plane + self.facts.samples_per_plane]
            for row in range(box.y0 // side_y, -(-box.y1 // side_y)):
                for col in range(box.x0 // side_x, -(-box.x1 // side_x)):
                    self._paste(target, box, (plane * rows + row) * cols + col)

    def _paste(self, target_CYX: Pixels, box: Box, index: int) -> None:
        place = self.facts.place(self.level, index)
        common = place.box.intersect(box)
        assert common is not None
        tile_YXS = self._decode(index, place)
        inside = common.shift(-place.box.y0, -place.box.x0).slices
        target_CYX[:, *common.shift(-box.y0, -box.x0).slices] = tile_YXS[inside].transpose(2, 0, 1)

    def _decode(self, index: int, place: TileIndex) -> Pixels:
        """One tile as (y, x, samples), at least as large as the pixels it covers."""
        segments = self.facts.segments
        data = self.file.read(int(segments.offsets[index]), int(segments.counts[index]), str(place))
        if self.facts.compression == 1:
            return self._plain(data, place)
        if problem := self._stream_problem(data, place):
            raise self._error(place, problem)
        try:
            tile = self._library_decode(data, index)
        except (RuntimeError, ValueError) as error:
            cause = f"{type(error).__name__}: {error}"
            raise self._error(place, cause) from None  # a codec's error does not pickle
        height, width = place.box.shape
        samples = self.facts.samples_per_plane
        if tile.ndim != 3 or tile.shape[0] < height or tile.shape[1] < width or tile.shape[2] != samples:
            raise self._error(place, f"{height} x {width} px of {samples} samples expected, {tile.shape} found")
        if tile.dtype != self.dtype:
            raise self._error(place, f"pixels of {self.dtype} expected, {tile.dtype} found")
        return rgb_from_ycbcr(tile) if self.facts.compression == JPEG_2000_YCC else tile

    @property
    def _strict(self) -> bool:
        """Whether libjpeg makes RGB from the stream alone: then one strict decoding also checks the scan."""
        facts = self.facts
        return (
            facts.compression == JPEG and facts.photometric == YCBCR and (facts.samples_per_plane, facts.bits) == (3, 8)
        )

    def _library_decode(self, data: bytes, index: int) -> Pixels:
        if self._strict:
            return decode_rgb(complete_stream(data, self.page.jpegtables, self.page.jpegheader))
        tables: dict[str, bytes | None] = {}
        if self.facts.compression == JPEG:
            tables = {"jpegtables": self.page.jpegtables, "jpegheader": self.page.jpegheader}
        tile: Pixels = np.asarray(self.page.decode(data, index, **tables)[0])[0]
        return tile

    def _plain(self, data: bytes, place: TileIndex) -> Pixels:
        """Uncompressed pixels; only the last strip of an image may be shorter than the others."""
        side_y, side_x = self.facts.segments.side_yx
        rows = side_y if self.facts.segments.tiled else place.box.shape[0]
        stored = self.dtype.newbyteorder(self.page.parent.byteorder)
        flat = np.frombuffer(data, stored, count=rows * side_x * self.facts.samples_per_plane)
        return flat.reshape(rows, side_x, self.facts.samples_per_plane)

    def _stream_problem(self, data: bytes, place: TileIndex) -> str | None:
        """Describe the problem in a JPEG or JPEG 2000 stream before it is decoded; None without."""
        if self.facts.compression in JPEG_2000:
            return self._frame_problem(read_frame_2000(data), place) or codestream_problem(data)
        if self.facts.compression != JPEG:
            return None
        header = self.page.jpegheader
        problem = self._frame_problem(read_frame(data if header is None else header), place)
        if problem or self._strict:
            return problem
        return scan_problem(complete_stream(data, self.page.jpegtables, header))

    def _frame_problem(self, frame: Frame | str, place: TileIndex) -> str | None:
        if isinstance(frame, str):
            return frame
        allowed = [{side, seen} for side, seen in zip(self.facts.segments.side_yx, place.box.shape, strict=True)]
        samples = self.facts.samples_per_plane
        if frame.height in allowed[0] and frame.width in allowed[1] and frame.components == samples:
            return None
        side_y, side_x = self.facts.segments.side_yx
        return f"{Frame(side_y, side_x, samples)} expected, the stream holds {frame}"

    def _error(self, place: TileIndex, problem: str) -> TileError:
        where = int(self.facts.segments.offsets[_index(self.facts, place)])
        coding = COMPRESSIONS[self.facts.compression]
        return TileError(
            f"{self.file.name}: {place} ({coding}, at byte {where}) is damaged: {problem}. {_ADVICE}", place
        )


@contextmanager
def tiff_of(file: RawFile, layout: Layout) -> Iterator[TiffFile]:
    """Open a file with tifffile, on a descriptor of its own; needed only while images are created.

    Raises:
        SlideError: If tifffile cannot parse the file.
    """
    with os.fdopen(os.dup(file.fd), "rb") as handle:
        try:
            yield TiffFile(handle, name=Path(file.name).name, _multifile=False, is_ndpi=layout.ndpi)
        except _PARSER_ERRORS as error:
            if isinstance(error, SlideError) or (isinstance(error, OSError) and error.errno != errno.EINVAL):
                raise
            raise SlideError(f"{file.name}: its structure cannot be read ({error}). {_ADVICE}") from error


def stored_image(tiff: TiffFile, tags: ImageTags, facts: ImageFacts, level: int) -> StoredImage:
    """Create a readable image from its checked facts.

    Raises:
        SlideError: If a segment is too large, or the restart markers of an NDPI are damaged.
    """
    tiff.filehandle.seek(tags.directory.offset)
    page = TiffPage(tiff, tags.directory.index)
    if page.jpegheader is not None:
        facts = replace(facts, segments=_restart_pieces(page))
        check_image(facts, level, tags.file.size_bytes)
    facts = split_strips(facts)
    check_segment_size(facts, level)
    page.init_decode()
    return StoredImage(tags.file, level, facts, page, np.dtype(f"u{facts.bits // 8}"))


def _restart_pieces(page: TiffPage) -> Segments:
    """Segments of an NDPI level: one JPEG, cut at its restart markers."""
    side_yx = int(page.tilelength), int(page.tilewidth)
    offsets, counts = (np.array(table, np.int64) for table in (page.dataoffsets, page.databytecounts))
    return Segments(side_yx, offsets, counts, tiled=False)


def _index(facts: ImageFacts, place: TileIndex) -> int:
    return place.row * facts.grid_yx[1] + place.col
