"""A slide as a small picture: its coarsest level in colour, with the objects tinted.

The one decision made here: nothing finer than the coarsest level is read, so it costs the same for any slide.
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
SHARE = 0.55


def thumbnail(
    store: SlideStore, channel_names: Sequence[str], image: str, objects: str | None, most_yx: tuple[int, int]
) -> NDArray[np.uint8]:
    """RGB (y, x, 3) of at most ``most_yx`` from the level ``image``, tinted where the level ``objects`` has one.

    Raises DamagedError when a level is missing or damaged.
    """
    pixels_CYX = store.read(image)[:]
    rgb = compose(pixels_CYX, channel_names, windows(pixels_CYX, channel_names))
    if objects is not None:
        labels = store.read(objects)
        rows, cols = (
            np.arange(here) * there // here for here, there in zip(rgb.shape[:2], labels.shape[-2:], strict=True)
        )
        rgb = tint(rgb, labels[:][np.ix_(rows, cols)] > 0)
    picture = Image.fromarray(rgb)
    height, width = rgb.shape[:2]
    scale = min(1.0, most_yx[0] / height, most_yx[1] / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(picture.resize(size, Image.Resampling.BOX))


def tint(rgb: NDArray[np.uint8], inside: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """A copy (y, x, 3) with the pixels of objects (y, x) in another colour."""
    tinted = rgb.astype(np.float32)
    tinted[inside] = (1 - SHARE) * tinted[inside] + SHARE * np.array(TINT, np.float32)
    return np.asarray(tinted.round(), np.uint8)


def jpeg(picture: Image.Image, quality: int) -> bytes:
    """A picture as the file of a page: of tissue, many times smaller than without loss."""
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=quality)
    return content.getvalue()
