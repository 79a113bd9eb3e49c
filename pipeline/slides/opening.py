"""Open a slide with the reader for its format.

The reader follows from the content of the file, never from a setting. TIFF is read by pipeline.slides.tiff, which
checks more than any library does. OpenSlide reads the formats that only it supports: MRXS, DICOM and TIFF with
overlapping tiles. OME-Zarr and photos have their own readers. All readers implement SlideReader.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from pipeline.slide_reader import SlideReader
from pipeline.slides.checks.file import open_file, stat_file
from pipeline.slides.format_detection import DetectedSlide, detect_format
from pipeline.slides.tiff.reader import load_tiff

_OPEN_SLIDES = 8


def open_slide(path: str | Path) -> SlideReader:
    """Open a slide and check its structure; no pixel is decoded.

    Readers are cached by path and by device, inode, size and modification time of every file of the slide: repeated
    calls in a process return the same reader until a file changes.

    Args:
        path: A file, or the folder of an OME-Zarr or of a DICOM series.

    Returns:
        A reader of (c, y, x) pixels, usable from several threads.

    Raises:
        SlideError: If the path is not a slide, is damaged, or has a format that cannot be read exactly.
    """
    found = detect_format(Path(path))
    return _open(Path(path), found, tuple(_state(file) for file in found.files))


def _state(file: Path) -> tuple[int, int, int, int]:
    status = stat_file(file)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@lru_cache(maxsize=_OPEN_SLIDES)
def _open(path: Path, detected: DetectedSlide, _states: tuple[tuple[int, int, int, int], ...]) -> SlideReader:
    """Cached by path and the state of all its files: workers open the same slide for every block."""
    if detected.kind == "tiff" and (slide := load_tiff(open_file(path))) is not None:
        return slide
    if detected.kind == "photo":
        from pipeline.slides.photo import load_photo  # imported when needed: each format's library takes time to import

        return load_photo(path)
    if detected.kind == "zarr":
        from pipeline.slides.ome_zarr import load_zarr

        return load_zarr(path)
    from pipeline.slides.openslide_reader import load_openslide

    return load_openslide(path, detected)
