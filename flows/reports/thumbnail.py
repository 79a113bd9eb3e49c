"""Thumbnails of slides: the coarsest pyramid level in colour, with objects tinted.

Only the coarsest level is read, so the cost does not depend on the size of the slide.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.rendering.contrast import Rgb, compose, windows
from pipeline.storage.slide_store import SlideStore

TINT: Rgb = (0, 190, 60)
OPACITY = 0.55


def thumbnail(
    store: SlideStore, channel_names: Sequence[str], image: str, objects: str | None, max_yx: tuple[int, int]
) -> NDArray[np.uint8]:
    """Render a thumbnail.

    Args:
        store: The slide.
        channel_names: Names of the image channels.
        image: Path of the image level.
        objects: Path of the label level used for the tint; None for no tint.
        max_yx: Maximum height and width in px.

    Returns:
        RGB array (y, x, 3).

    Raises:
        DamagedError: If a level is missing or damaged.
    """
    pixels_CYX = store.read(image)[:]
    rgb = compose(pixels_CYX, channel_names, windows(pixels_CYX, channel_names))
    if objects is not None:
        labels = store.read(objects)
        rows, cols = (
            np.arange(side) * labels_side // side
            for side, labels_side in zip(rgb.shape[:2], labels.shape[-2:], strict=True)
        )
        rgb = tint(rgb, labels[:][np.ix_(rows, cols)] > 0)
    picture = Image.fromarray(rgb)
    height, width = rgb.shape[:2]
    scale = min(1.0, max_yx[0] / height, max_yx[1] / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(picture.resize(size, Image.Resampling.BOX))


def tint(rgb: NDArray[np.uint8], inside: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return a copy (y, x, 3) with the pixels of objects (y, x) tinted."""
    tinted = rgb.astype(np.float32)
    tinted[inside] = (1 - OPACITY) * tinted[inside] + OPACITY * np.array(TINT, np.float32)
    return np.asarray(tinted.round(), np.uint8)


def jpeg(picture: Image.Image, quality: int) -> bytes:
    """Encode as JPEG, which for tissue is many times smaller than a lossless format."""
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=quality)
    return content.getvalue()
