"""An OME-Zarr image, version 0.4 or 0.5, as a slide.

A missing chunk is read as the fill value of the array, as the format defines, but never silently. Writers omit empty
chunks, and an interrupted copy lacks chunks; the two cases look the same. So missing chunks are counted and named in a
warning in the manifest, a level without any chunk is refused, and the list of chunks is part of the fingerprint: a
chunk that arrives later changes the slide. A chunk file that is empty or cannot be decoded is damage.

OME-NGFF 0.4 and 0.5: ngff.openmicroscopy.org. A tree of bioformats2raw (layout 3) is read at its largest image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import zarr
from ome_zarr_models.v05.multiscales import Multiscale
from pydantic import ValidationError
from zarr.codecs import BloscCodec
from zarr.storage import LocalStore

from pipeline.errors import SlideError
from pipeline.geometry import Box
from pipeline.slide_reader import Level, Pixels, TileError, TileIndex, downsample_yx, is_reduction, name_channels
from pipeline.slides.checks.file import sampled_digest
from pipeline.slides.checks.image import MAX_PIXELS, MAX_SEGMENT_BYTES, MAX_SIDE_PX
from pipeline.slides.format_detection import is_own_result, zarr_attributes

DAMAGE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError)
"""Exceptions of zarr and its codecs for changed bytes. OSError is not one: read errors may pass, and are retried."""

_UM = {
    "angstrom": 1e-4, "picometer": 1e-6, "nanometer": 1e-3, "micrometer": 1.0, "millimeter": 1e3, "centimeter": 1e4,
    "meter": 1e6, "inch": 25400.0, "µm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3,
}  # fmt: skip
_BLOSC_HEADER = 16
_FAULT = "Copy the OME-Zarr again from its source, or write it again."


@dataclass(frozen=True, slots=True)
class StoredLevel:
    """One array of the pyramid: its folder, the array, and its axes by name, such as "tczyx"."""

    folder: Path
    array: zarr.Array[Any]
    axes: str

    @property
    def shape_yx(self) -> tuple[int, int]:
        """Lengths of the last two axes."""
        height, width = self.array.shape[-2:]
        return int(height), int(width)

    @property
    def channels(self) -> int:
        """Length of the channel axis; 1 without one."""
        return int(self.array.shape[self.axes.index("c")]) if "c" in self.axes else 1

    @property
    def stored_yx(self) -> tuple[int, int]:
        """(y, x) side of one file: a chunk, or a shard of chunks."""
        height, width = (self.array.shards or self.array.chunks)[-2:]
        return int(height), int(width)

    def read(self, box: Box) -> Pixels:
        """Pixels of a box as (c, y, x) in native byte order."""
        index = tuple(slice(None) if axis == "c" else 0 for axis in self.axes[:-2])
        pixels = np.asarray(self.array[(*index, *box.slices)])
        planes = pixels if "c" in self.axes else pixels[None]
        return np.array(planes, planes.dtype.newbyteorder("="), order="C")

    def files(self, box: Box) -> Iterator[tuple[tuple[int, int], Path]]:
        """(row, col) and path of every chunk under a box, existing or not."""
        side_y, side_x = self.stored_yx
        leading = [range(-(-n // s)) for n, s in zip(self.array.shape, self._stored_shape, strict=True)][:-2]
        for row, col in product(
            range(box.y0 // side_y, -(-box.y1 // side_y)), range(box.x0 // side_x, -(-box.x1 // side_x))
        ):
            for before in product(*leading):
                yield (row, col), self.folder / self.array.metadata.encode_chunk_key((*before, row, col))

    def size_problem(self, file: Path) -> str | None:
        """Describe a wrong size of a chunk file; None when it is right.

        A Blosc header states the length of its stream, but the decoder does not compare it with the size of the file: a
        chunk that was cut short would be decoded from adjacent memory.
        """
        size = file.stat().st_size
        if size == 0 or not self.ends_in_blosc:
            return None if size else "it is empty"
        with file.open("rb") as opened:
            stated = int.from_bytes(opened.read(_BLOSC_HEADER)[12:16], "little")
        return None if stated == size else f"it has {size} bytes, its header says {stated}"

    @property
    def ends_in_blosc(self) -> bool:
        """Whether a chunk file is one Blosc stream."""
        metadata = self.array.metadata
        if metadata.zarr_format == 2:
            return getattr(metadata.compressor, "codec_id", None) == "blosc"
        return isinstance(metadata.codecs[-1], BloscCodec)

    @property
    def _stored_shape(self) -> tuple[int, ...]:
        return tuple(self.array.shards or self.array.chunks)


@dataclass(frozen=True, slots=True, eq=False)
class ZarrSlide:
    """An OME-Zarr image as a SlideReader."""

    path: Path
    format: str
    stored: tuple[StoredLevel, ...]
    levels: tuple[Level, ...]
    mpp_yx: tuple[float, float] | None
    channel_names: tuple[str, ...]

    @property
    def channels(self) -> int:
        """Length of the channel axis; 1 without one."""
        return self.stored[0].channels

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8 or uint16, in native byte order."""
        return np.dtype(self.stored[0].array.dtype).newbyteorder("=")

    @property
    def warnings(self) -> tuple[str, ...]:
        """One warning for each level with missing chunks, naming the first of them."""
        return tuple(self._missing_warnings())

    def _missing_warnings(self) -> Iterator[str]:
        for number, level in enumerate(self.stored):
            files = [file for _, file in level.files(Box.of_shape(level.shape_yx))]
            missing = [file for file in files if not file.exists()]
            if missing:
                fill = level.array.metadata.fill_value
                yield (
                    f"{self.path}: level {number}: {len(missing)} of {len(files)} chunks have no file and are read as "
                    f"the fill value {fill!r}, as the format says; first {missing[0].relative_to(self.path)}. If the "
                    "copy was cut short, copy it again"
                )

    def read(self, level: int, box: Box) -> Pixels:
        """Read a box of a level.

        Args:
            level: Level to read.
            box: Box inside the level, in its pixels.

        Returns:
            A new (c, y, x) array in native byte order.

        Raises:
            ValueError: If the box is not inside the level.
            TileError: If a chunk is damaged.
        """
        stored = self.stored[level]
        if Box.of_shape(stored.shape_yx).intersect(box) != box:
            raise ValueError(f"{self.path}: box {box} is not inside level {level}, {stored.shape_yx}")
        for place, file in stored.files(box):
            if file.exists() and (problem := stored.size_problem(file)):
                raise self._damage(level, place, file, problem)
        try:
            return stored.read(box)
        except DAMAGE as error:
            raise self._first_damage(level, box, error) from None  # a codec's error may not pickle

    def _first_damage(self, level: int, box: Box, error: Exception) -> TileError:
        stored = self.stored[level]
        side_y, side_x = stored.stored_yx
        for (row, col), file in stored.files(box):
            part = Box(row * side_y, col * side_x, (row + 1) * side_y, (col + 1) * side_x).intersect(box)
            assert part is not None
            try:
                stored.read(part)
            except DAMAGE as part_error:
                return self._damage(level, (row, col), file, f"{type(part_error).__name__}: {part_error}")
        return self._damage(level, (0, 0), stored.folder, f"{type(error).__name__}: {error}")

    def _damage(self, level: int, place: tuple[int, int], file: Path, what: str) -> TileError:
        stored, (row, col) = self.stored[level], place
        side_y, side_x = stored.stored_yx
        box = Box(row * side_y, col * side_x, (row + 1) * side_y, (col + 1) * side_x)
        where = TileIndex(level, row, col, box.intersect(Box.of_shape(stored.shape_yx)) or box)
        return TileError(f"{self.path}: {where} ({file.relative_to(self.path)}) is damaged: {what}. {_FAULT}", where)

    def fingerprint(self) -> str:
        """SHA-256 of the levels, the path and size of every chunk, and 256 samples of 4 KiB of them.

        Raises:
            SlideError: If a level has no chunk at all: it was not copied.
        """
        chunks: list[Path] = []
        for number, level in enumerate(self.stored):
            files = [file for _, file in level.files(Box.of_shape(level.shape_yx)) if file.exists()]
            if not files:
                raise SlideError(f"{self.path}: level {number} ({level.folder.name}) has no chunks. {_FAULT}")
            chunks += files
        described = [(level.array.shape, str(level.array.dtype), level.array.chunks) for level in self.stored]
        names = [file.relative_to(self.path).as_posix() for file in sorted(chunks)]
        return sampled_digest(sorted(chunks), f"zarr 1 {described} {self.mpp_yx} {names}")

    def describe(self) -> dict[str, Any]:
        """Format, channels and levels. No other free text of the metadata is included."""
        return {
            "format": self.format,
            "vendor": None,
            "channels": self.channels,
            "dtype": str(self.dtype),
            "mpp_yx": list(self.mpp_yx) if self.mpp_yx else None,
            "levels": [
                {
                    "shape_yx": list(stored.shape_yx),
                    "downsample_yx": list(level.downsample_yx),
                    "tile_yx": [int(side) for side in stored.array.chunks[-2:]],
                }
                for stored, level in zip(self.stored, self.levels, strict=True)
            ],
        }


def load_zarr(path: Path) -> ZarrSlide:
    """Read and check the metadata of an OME-Zarr.

    Raises:
        SlideError: If the folder is a result of overtile, a plate, no OME-Zarr image, or cannot be read exactly.
    """
    if is_own_result(path):
        raise SlideError(f"{path}: a result of overtile, not a slide. Name the slide it was made from.")
    attributes = zarr_attributes(path)
    if "plate" in attributes:
        raise SlideError(f"{path}: a plate of many images; expected one image. Name the images in its wells.")
    if "bioformats2raw.layout" in attributes and "multiscales" not in attributes:
        images = [_load(path, folder) for folder in sorted(path.iterdir()) if "multiscales" in zarr_attributes(folder)]
        if not images:
            raise SlideError(f"{path}: a bioformats2raw tree without an image. {_FAULT}")
        return max(images, key=lambda image: math.prod(image.levels[0].shape_yx))
    return _load(path, path)


def _load(path: Path, group: Path) -> ZarrSlide:
    attributes = zarr_attributes(group)
    multiscale = _multiscale(path, attributes)
    axes = "".join(str(axis.name) for axis in multiscale.axes)
    if not axes.endswith("yx") or set(axes) - set("tczyx") or len(set(axes)) != len(axes):
        raise SlideError(f"{path}: axes {axes}; expected some of t, c, z and then y, x. Write it with those axes.")
    stored = [_level(path, group, dataset.path, axes) for dataset in multiscale.datasets]
    base = stored[0]
    used = [
        base,
        *(level for level in stored[1:] if is_reduction(base.shape_yx, level.shape_yx) and _alike(base, level)),
    ]
    levels = tuple(Level(level.shape_yx, downsample_yx(base.shape_yx, level.shape_yx)) for level in used)
    version = "0.5" if (group / "zarr.json").is_file() else "0.4"
    names = name_channels(_stated_names(attributes), base.channels)
    return ZarrSlide(path, f"OME-Zarr {version}", tuple(used), levels, _mpp_yx(multiscale), names)


def _multiscale(path: Path, attributes: Mapping[str, Any]) -> Multiscale:
    multiscales = attributes.get("multiscales")
    if not isinstance(multiscales, list) or not multiscales:
        raise SlideError(f"{path}: its OME-Zarr metadata describes no image (multiscales). {_FAULT}")
    try:
        return Multiscale.model_validate(multiscales[0])
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise SlideError(f"{path}: its OME-Zarr metadata is not valid: {where}: {problem['msg']}. {_FAULT}") from None


def _level(path: Path, group: Path, name: str, axes: str) -> StoredLevel:
    inside = PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts or not inside.parts:
        raise SlideError(f"{path}: a level lies at {name!r}; expected a path inside the OME-Zarr. Do not trust it.")
    try:
        array = zarr.open_array(LocalStore(group / inside, read_only=True), mode="r")
    except (*DAMAGE, OSError) as error:
        raise SlideError(f"{path}: level {name} cannot be opened ({type(error).__name__}: {error}). {_FAULT}") from None
    level = StoredLevel(group / inside, array, axes)
    for problem in _problems(level):
        raise SlideError(f"{path}: level {name}: {problem}")
    return level


def _problems(level: StoredLevel) -> Iterator[str]:
    array, axes = level.array, level.axes
    shape = [int(length) for length in array.shape]
    if len(shape) != len(axes):
        yield f"{len(shape)} axes; its metadata names {len(axes)} ({axes}). {_FAULT}"
    for axis, what in (("z", "focal planes"), ("t", "time points")):
        if axis in axes and (length := shape[axes.index(axis)]) != 1:
            yield f"{length} {what}; expected 1. Write the one to segment, or a projection."
    if str(np.dtype(array.dtype).newbyteorder("=")) not in ("uint8", "uint16"):
        yield f"pixels of {array.dtype}; expected uint8 or uint16. Write it again with those."
    height, width = level.shape_yx
    if not 0 < height <= MAX_SIDE_PX or not 0 < width <= MAX_SIDE_PX or height * width > MAX_PIXELS:
        yield f"{width} x {height} px; the budget is {MAX_SIDE_PX} px a side and {MAX_PIXELS} px in all. {_FAULT}"
    if (size := math.prod(array.chunks) * np.dtype(array.dtype).itemsize) > MAX_SEGMENT_BYTES:
        yield f"one chunk holds {size} bytes; expected at most {MAX_SEGMENT_BYTES}. Write it with smaller chunks."


def _alike(base: StoredLevel, other: StoredLevel) -> bool:
    return (base.channels, base.array.dtype) == (other.channels, other.array.dtype)


def _mpp_yx(multiscale: Multiscale) -> tuple[float, float] | None:
    """(y, x) micrometres per pixel of level 0, the product of its scales; None without a unit of length."""
    units = [_UM.get(str(axis.unit)) for axis in multiscale.axes][-2:]
    scale = np.ones(2)
    for transforms in (multiscale.datasets[0].coordinateTransformations, multiscale.coordinateTransformations or ()):
        for transform in transforms:
            stated: Sequence[float] | None = getattr(transform, "scale", None)
            scale = scale if stated is None else scale * np.array(stated[-2:], float)
    if units[0] is None or units[1] is None:
        return None
    y, x = float(scale[0] * units[0]), float(scale[1] * units[1])
    return (y, x) if min(y, x) > 0 else None


def _stated_names(attributes: Mapping[str, Any]) -> tuple[str, ...]:
    """Channel labels of the OMERO metadata; empty when it is absent or malformed."""
    omero = attributes.get("omero")
    channels = omero.get("channels") if isinstance(omero, dict) else None
    if not isinstance(channels, list):
        return ()
    return tuple(str(channel.get("label") or "") if isinstance(channel, dict) else "" for channel in channels)
