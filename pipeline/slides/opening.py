"""Open a slide and read any box of any of its levels: the only door to a slide's pixels.

The one decision made here: who reads a slide follows from what it is, never from a setting. TIFF is read by our own
reader, which checks more than any library does; OpenSlide has what only it knows (MRXS, DICOM and TIFF with
overlapping tiles); an OME-Zarr and a photo have readers of their own. All answer to SlideReader.
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
    """The slide at ``path``, checked but not decoded; one reader per slide and process.

    Raises SlideError when it is no slide, is damaged, or is of a kind that cannot be read exactly.
    """
    found = detect_format(Path(path))
    return _open(Path(path), found, tuple(_state(file) for file in found.files))


def _state(file: Path) -> tuple[int, int, int, int]:
    found = stat_file(file)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


@lru_cache(maxsize=_OPEN_SLIDES)
def _open(path: Path, found: DetectedSlide, _states: tuple[tuple[int, int, int, int], ...]) -> SlideReader:
    """Cached by path and the state of all its files: workers come back to the same slide for every block."""
    if found.kind == "tiff" and (slide := load_tiff(open_file(path))) is not None:
        return slide
    if found.kind == "photo":
        from pipeline.slides.photo import load_photo  # each format's library costs time; most runs need one

        return load_photo(path)
    if found.kind == "zarr":
        from pipeline.slides.ome_zarr import load_zarr

        return load_zarr(path)
    from pipeline.slides.openslide_reader import load_openslide

    return load_openslide(path, found)
