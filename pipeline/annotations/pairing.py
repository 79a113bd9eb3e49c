"""Images and masks found by name, and compared before a pixel is read.

The one decision made here: the name is the pair. An image and its mask have one path below their folders, but for the
extension; nothing is matched by order or likeness, and a size that differs is never made to fit.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
PICTURES = (".png", ".tif", ".tiff", ".btf")
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Pair:
    """An image, its mask, and what the image's file says of it; ``mpp`` is in um, where it says so.

    A resolution that no microscope has is none.
    """

    key: str
    image: Path
    mask: Path
    shape_yx: tuple[int, int]
    channels: int
    dtype: np.dtype[Any]
    mpp: float | None

    @property
    def drawn(self) -> bool:
        """Whether the mask is drawn in QuPath."""
        return self.mask.name.casefold().endswith(DRAWN)


def find_images(images: Path, masks: Path) -> list[Candidate]:
    """Every image or slide below a folder, by key: its path without extension. Raises ConfigError."""
    if not images.is_dir():
        raise ConfigError(f"{images} is no folder: expected annotated images in it, and their masks in another")
    if images.resolve() == masks.resolve():
        raise ConfigError(f"{images} is named for images and for masks: expected two folders, files paired by name")
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
    """Each image with its mask; images of one kind. ``strict``: every mask has an image.

    Raises ConfigError for a missing partner, another size, other channels or another number of bits; SlideError for
    what cannot be read.
    """
    of_key = _masks(masks)
    lone = [image for image in images if image.key not in of_key]
    keys = {image.key for image in images}
    extra = {key: path for key, path in of_key.items() if key not in keys}
    if lone:
        raise ConfigError(_without_mask(lone, masks, extra))
    if strict and extra:
        raise ConfigError(
            f"{len(extra)} masks without an image of the same name: {_some([str(path) for path in extra.values()])}. "
            f"Add the images, or take these masks out of {masks}"
        )
    pairs = [_pair(image, of_key[image.key]) for image in images]
    _demand_alike(pairs)
    return pairs


def _masks(folder: Path) -> dict[str, Path]:
    """Masks by key: the path below the folder without what tells the kind of file."""
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder: expected the masks, one for each image, by the same name")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.name.startswith(".") or not path.name.casefold().endswith((*DRAWN, *PICTURES)):
            continue
        key = _key(path.relative_to(folder))
        if key in found:
            raise ConfigError(f"two masks of one image: {found[key]} and {path}. Keep one")
        found[key] = path
    return found


def _key(relative: Path) -> str:
    for extension in DRAWN:
        if relative.name.casefold().endswith(extension):
            return (relative.parent / relative.name[: -len(extension)]).as_posix()
    return key_of(relative)


def _without_mask(lone: Sequence[Candidate], masks: Path, extra: Mapping[str, Path]) -> str:
    first = lone[0]
    near = difflib.get_close_matches(first.key, list(extra), n=1, cutoff=0.6)
    folder = (masks / first.key).parent
    beside = [path for path in folder.iterdir() if path.stem == Path(first.key).name] if folder.is_dir() else []
    hint = f" There is {extra[near[0]]}: is it the one? Rename it." if near else ""
    if beside:
        hint = f" There is {beside[0]}, which cannot hold labels: save it as PNG or TIFF."
    return (
        f"{len(lone)} images without a mask: {_some([str(image.path) for image in lone])}. Expected "
        f"{masks / first.key}.png, .tif or .geojson.{hint} Add the masks, or take these images out"
    )


def _pair(image: Candidate, mask: Path) -> Pair:
    reader = open_slide(image.path)
    shape_yx = reader.levels[0].shape_yx
    low, high = MPP_RANGE_UM
    mpp = math.sqrt(reader.mpp_yx[0] * reader.mpp_yx[1]) if reader.mpp_yx else None
    mpp = mpp if mpp and low <= mpp <= high else None  # nobody's microscope: none is stated
    pair = Pair(image.key, image.path, mask, shape_yx, reader.channels, reader.dtype, mpp)
    if not pair.drawn and (found := open_labels(mask).shape_yx) != shape_yx:
        turned = " It is turned by 90 degrees." if found == shape_yx[::-1] else ""
        raise ConfigError(
            f"{mask}: expected {_size(shape_yx)} px as {image.path}, found {_size(found)}.{turned} It is of another "
            f"image, or of a reduced copy: save it at the full size of its image, without resampling"
        )
    return pair


def _demand_alike(pairs: Sequence[Pair]) -> None:
    """One network has one number of channels, and one range of pixels."""
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
