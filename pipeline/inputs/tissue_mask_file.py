"""A tissue mask from a file: an image of the whole slide at any size.

A tissue pixel is set when any mask pixel over any part of it is set. So the mask may be finer or coarser than the
tissue image, nothing is interpolated, and thin pieces are kept.

Nonzero is tissue: in any colour channel, unless the pixel is fully transparent; of a palette the index counts.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import SlideError

EXTENSIONS = (".png", ".tif", ".tiff")
LARGEST_PX = 1 << 27
"""Limit of a mask: it is decoded as a whole, outside the memory bound of slides."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class MaskFile:
    """A mask file, and its SHA-256 when the run was planned."""

    path: Path
    sha256: str

    def read(self, slide_yx: tuple[int, int]) -> Mask:
        """Read the mask as ``read_mask`` does.

        Raises:
            SlideError: Also if the file changed since the run was planned.
        """
        mask = read_mask(self.path, slide_yx)
        if hash_mask(self.path) != self.sha256:
            raise SlideError(f"{self.path}: the mask changed during the run. Run segment again")
        return mask


def find_mask(source: Path, key: str) -> MaskFile:
    """Find the mask of a slide.

    Args:
        source: A mask file, or a folder of ``<key>.png`` (``.tif``, ``.tiff``).
        key: Key of the slide.

    Raises:
        SlideError: If there is none; the message lists the paths tried.
    """
    if source.is_file():
        return MaskFile(source, hash_mask(source))
    tried = [source / f"{key}{extension}" for extension in EXTENSIONS]
    for path in tried:
        if path.is_file():
            return MaskFile(path, hash_mask(path))
    expected = ", ".join(map(str, tried)) if source.is_dir() else "otsu, a mask (PNG or TIFF), or a folder of masks"
    raise SlideError(f"{key}: tissue.method={source}: expected {expected}; found no such file")


def hash_mask(path: Path) -> str:
    """Hex SHA-256 of the file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_mask(path: Path, slide_yx: tuple[int, int]) -> Mask:
    """Read a mask at its own size.

    Args:
        path: PNG or TIFF file.
        slide_yx: Any (height, width) in the proportions of the slide.

    Returns:
        Boolean (y, x) array.

    Raises:
        SlideError: If it cannot be read, is above LARGEST_PX, or has other proportions than the slide.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # LARGEST_PX is the limit
            image = Image.open(path, formats=("PNG", "TIFF"))
        with image:
            _check_size(path, (image.height, image.width), slide_yx)
            pixels = np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, SlideError):
            raise
        raise SlideError(f"{path}: expected a mask, PNG or TIFF, found something else ({error})") from error
    return _nonzero(pixels)


def tissue_from_mask(mask: Mask, image_yx: tuple[int, int], factor: int) -> Mask:
    """Reduce a mask to squares of the image.

    Args:
        mask: (y, x) mask of the whole image, at any size.
        image_yx: (y, x) shape of the image in pixels.
        factor: Side of a square in image pixels.

    Returns:
        Boolean (y, x) array, one value a square: True where any mask pixel over any part of the square is set.
    """
    for axis, length in enumerate(image_yx):
        starts = np.arange(0, length, factor)
        stops = np.minimum(starts + factor, length)
        first, last = starts * mask.shape[axis] // length, -(-stops * mask.shape[axis] // length)
        ends = np.stack([first, last], axis=1).ravel()  # first, last of each square; reduceat: keep every other
        padded = np.concatenate([mask, np.zeros_like(mask.take([0], axis))], axis)
        mask = np.logical_or.reduceat(padded, ends, axis=axis).take(np.arange(0, len(ends), 2), axis)
    return mask


def _check_size(path: Path, mask_yx: tuple[int, int], slide_yx: tuple[int, int]) -> None:
    """Refuse a mask whose sides do not fit the slide at one scale, to within a pixel of rounding."""
    if mask_yx[0] * mask_yx[1] > LARGEST_PX:
        raise SlideError(
            f"{path}: expected at most {LARGEST_PX >> 20} million pixels, found {mask_yx[1]} x {mask_yx[0]}. Reduce "
            f"it: tissue is decided at about 8 um"
        )
    low = max((found - 1) / side for found, side in zip(mask_yx, slide_yx, strict=True))
    high = min((found + 1) / side for found, side in zip(mask_yx, slide_yx, strict=True))
    if low > high:
        raise SlideError(
            f"{path}: expected a mask of the whole slide, in proportions of {slide_yx[1]} x {slide_yx[0]}, found "
            f"{mask_yx[1]} x {mask_yx[0]}: it is of another slide, or of a part of this one"
        )


def _nonzero(pixels: NDArray[np.generic]) -> Mask:
    if pixels.ndim == 2:
        return np.asarray(pixels != 0)
    colours, alpha = (pixels[..., :-1], pixels[..., -1]) if pixels.shape[2] in (2, 4) else (pixels, None)
    nonzero: Mask = (colours != 0).any(axis=2)
    return nonzero if alpha is None else nonzero & (alpha != 0)
