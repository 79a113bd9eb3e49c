"""Pair images with masks or tables of dots by name, and compare their sizes before pixels are read.

An image and its mask have the same path below their folders, except for the extension. Nothing is matched by order or
similarity, and masks of another size are rejected.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.annotations.label_image import open_labels
from pipeline.config import SLIDE_PATTERNS
from pipeline.errors import ConfigError
from pipeline.inputs.discovery import Candidate, find_slides, key_of
from pipeline.slides.opening import open_slide
from pipeline.slides.resample import MPP_RANGE_UM

DRAWN = (".geojson", ".geojson.gz")
DOTTED = (".csv",)
PICTURES = (".png", ".tif", ".tiff", ".btf")
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Pair:
    """An image and its mask, with the properties of the image file.

    ``mpp`` is in um, None where the file states none or one outside the range of microscopes. ``override`` is that of
    the table of cases, which replaces the file's.
    """

    key: str
    image: Path
    mask: Path
    shape_yx: tuple[int, int]
    channels: int
    dtype: np.dtype[Any]
    mpp: float | None
    override: float | None = None

    @property
    def drawn(self) -> bool:
        """Whether the mask is a QuPath GeoJSON."""
        return self.mask.name.casefold().endswith(DRAWN)

    @property
    def dotted(self) -> bool:
        """Whether the mask is a table of dots."""
        return self.mask.name.casefold().endswith(DOTTED)

    def with_mpp(self, mpp: float | None) -> Pair:
        """The same with another resolution than the file's; unchanged with None."""
        return self if mpp is None else replace(self, mpp=mpp, override=mpp)


def find_images(images: Path, masks: Path) -> list[Candidate]:
    """Find every image or slide below a folder.

    Returns:
        Images with their keys: the path without extension.

    Raises:
        ConfigError: A folder is missing, both are the same, or there is no image.
    """
    if not images.is_dir():
        raise ConfigError(f"{images} is no folder: expected annotated images in it, and their masks in another")
    if images.resolve() == masks.resolve():
        raise ConfigError(
            f"--images and --masks are the same folder ({images}): expected two folders with matching file names"
        )
    try:
        found = find_slides([images], SLIDE_PATTERNS, masks.resolve())
    except ConfigError as error:
        raise ConfigError(
            f"{images}: no image found: tried {', '.join(SLIDE_PATTERNS)}. Name another folder"
        ) from error
    for image in found:
        if image.refused is not None:
            raise ConfigError(str(image.refused)) from image.refused
    return found


def find_pairs(images: Sequence[Candidate], masks: Path, *, strict: bool) -> list[Pair]:
    """Pair each image with its mask.

    Args:
        images: The images.
        masks: Folder of masks.
        strict: Whether a mask without an image is an error.

    Raises:
        ConfigError: A partner is missing, or sizes, channels or bit depths differ.
        SlideError: A file cannot be read.
    """
    keys = {image.key for image in images}
    of_key = _masks(masks, keys)
    unpaired = [image for image in images if image.key not in of_key]
    unused = {key: path for key, path in of_key.items() if key not in keys}
    if unpaired:
        raise ConfigError(_without_mask(unpaired, masks, unused))
    if strict and unused:
        raise ConfigError(
            f"{len(unused)} masks without an image of the same name: {_some([str(path) for path in unused.values()])}. "
            f"Add the images, or take these masks out of {masks}"
        )
    pairs = [_pair(image, of_key[image.key]) for image in images]
    _demand_alike(pairs)
    return pairs


def _masks(folder: Path, keys: set[str]) -> dict[str, Path]:
    """Masks by key: the path below the folder without the extension. Tables count for the keys of images only."""
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder: expected the masks, one for each image, by the same name")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        key = _key(path.relative_to(folder))
        kinds = (*DRAWN, *PICTURES, *(DOTTED if key in keys else ()))  # other tables may lie in the folder too
        if path.name.startswith(".") or not path.name.casefold().endswith(kinds):
            continue
        if key in found:
            raise ConfigError(f"two masks of one image: {found[key]} and {path}. Keep one")
        found[key] = path
    return found


def _key(relative: Path) -> str:
    for extension in DRAWN:
        if relative.name.casefold().endswith(extension):
            return (relative.parent / relative.name[: -len(extension)]).as_posix()
    return key_of(relative)


def _without_mask(unpaired: Sequence[Candidate], masks: Path, unused: Mapping[str, Path]) -> str:
    first = unpaired[0]
    near = difflib.get_close_matches(first.key, list(unused), n=1, cutoff=0.6)
    folder = (masks / first.key).parent
    beside = [path for path in folder.iterdir() if path.stem == Path(first.key).name] if folder.is_dir() else []
    hint = f" There is {unused[near[0]]}: is it the one? Rename it." if near else ""
    if beside:
        hint = f" There is {beside[0]}, which cannot hold labels: save it as PNG or TIFF."
    return (
        f"{len(unpaired)} images without a mask: {_some([str(image.path) for image in unpaired])}. Expected "
        f"{masks / first.key}.png, .tif, .geojson or .csv (dots).{hint} Add the masks, or take these images out"
    )


def _pair(image: Candidate, mask: Path) -> Pair:
    reader = open_slide(image.path)
    shape_yx = reader.levels[0].shape_yx
    low, high = MPP_RANGE_UM
    mpp = math.sqrt(reader.mpp_yx[0] * reader.mpp_yx[1]) if reader.mpp_yx else None
    mpp = mpp if mpp and low <= mpp <= high else None  # outside the range of microscopes: not a resolution
    pair = Pair(image.key, image.path, mask, shape_yx, reader.channels, reader.dtype, mpp)
    if not (pair.drawn or pair.dotted) and (found := open_labels(mask).shape_yx) != shape_yx:
        turned = " It is turned by 90 degrees." if found == shape_yx[::-1] else ""
        raise ConfigError(
            f"{mask}: expected {_size(shape_yx)} px as {image.path}, found {_size(found)}.{turned} It belongs to "
            f"another image or to a reduced copy: save it at the full size of its image, without resampling"
        )
    return pair


def _demand_alike(pairs: Sequence[Pair]) -> None:
    """Require the same channels and dtype of all images."""
    for what, cure in (
        ("channels", "Save all images with the same channels"),
        ("dtype", "Save all images with the same number of bits"),
    ):
        first = pairs[0]
        for pair in pairs:
            if getattr(pair, what) != getattr(first, what):
                raise ConfigError(
                    f"{pair.image}: {what} {getattr(pair, what)}, where {first.image} has {getattr(first, what)}: "
                    f"expected images of one kind. {cure}, or train on them separately"
                )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _size(shape_yx: tuple[int, int]) -> str:
    return f"{shape_yx[1]} x {shape_yx[0]}"
