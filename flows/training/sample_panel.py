"""Pictures of augmented training samples with targets and weights.

The samples are drawn by the same function as in training, so a mask that does not match its image, or wrong weights,
are visible before training starts.

    | tile, target area framed | tile with outlines of the targets | weight of each pixel | maps |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.rendering.contrast import class_colours, compose, windows
from pipeline.rendering.drawing import INK, WHITE, Palette, outline_objects
from pipeline.rendering.text import draw_text, shorten
from pipeline.slide_reader import name_channels
from unet_core.data.sampler import SampleBatch

GAP_PX, TEXT_PX = 12, 15
UNKNOWN = (128, 0, 0)
MIN_SIDE_PX = 200
"""Smaller tiles are enlarged by an integer factor."""


def save_panel(path: Path, batch: SampleBatch, class_names: Sequence[str], maps: Sequence[str] = ()) -> None:
    """Write the panel as a PNG."""
    draw_panel(batch, class_names, maps).save(path)


def draw_panel(batch: SampleBatch, class_names: Sequence[str], maps: Sequence[str] = ()) -> Image.Image:
    """Draw a row for each sample of the batch. The columns after the first show what the loss uses."""
    images, targets, weights = (np.asarray(part) for part in (batch.image_NCHW, batch.target_NHW, batch.weight_NHW))
    low, high = float(weights.min()), float(weights.max())
    shades = ((weights - low) / max(high - low, 1e-6) * 255).round().astype(np.uint8)
    rows = [_row(*sample, len(class_names)) for sample in zip(images, targets, shades, strict=True)]
    rows = [(*cells, *_maps(batch, number)) for number, cells in enumerate(rows)]
    heads = "augmented tile", f"target: {', '.join(class_names)}", f"weight, black {low:.3g} to white {high:.3g}", *maps
    side = rows[0][0].shape[0]
    step, top = side + GAP_PX, 2 * GAP_PX + TEXT_PX
    picture = Image.new("RGB", (len(heads) * step + GAP_PX, top + len(rows) * step), WHITE)
    draw = ImageDraw.Draw(picture)
    for col, head in enumerate(heads):
        draw_text(draw, (GAP_PX + col * step, GAP_PX + TEXT_PX), shorten(head, TEXT_PX, side), TEXT_PX, INK)
    for row, cells in enumerate(rows):
        for col, cell in enumerate(cells):
            picture.paste(Image.fromarray(cell), (GAP_PX + col * step, top + row * step))
    return picture


def _row(
    image_CHW: NDArray[Any], target_HW: NDArray[Any], shade_HW: NDArray[np.uint8], classes: int
) -> tuple[NDArray[np.uint8], ...]:
    """Three squares (side, side, 3): tile, outlines, weights. Pixels outside the target are grey in the last."""
    stored_CHW = (image_CHW * 255).round().clip(0, 255).astype(np.uint8)
    names = name_channels((), len(stored_CHW))
    rgb = np.ascontiguousarray(compose(stored_CHW, names, windows(stored_CHW, names)))
    trim = (image_CHW.shape[1] - target_HW.shape[0]) // 2
    inside = slice(trim, trim + target_HW.shape[0]), slice(trim, trim + target_HW.shape[1])
    outlined, weights = rgb.copy(), np.full_like(rgb, 128)
    palette = Palette(np.arange(classes, dtype=np.uint8), np.array(class_colours(classes), np.uint8))
    target_area = np.ascontiguousarray(outlined[inside])
    outline_objects(target_area, target_HW.astype(np.uint32), palette, 1)
    outlined[inside] = target_area
    _frame(rgb, inside)
    weights[inside] = shade_HW[..., None]
    return tuple(_enlarged(cell) for cell in (rgb, outlined, weights))


def _maps(batch: SampleBatch, number: int) -> Iterator[NDArray[np.uint8]]:
    """A square (side, side, 3) for each map of a sample; red where its target is unknown, grey outside the target."""
    if batch.maps_NMHW is None or batch.known_NMHW is None:
        return
    tile_px = batch.image_NCHW.shape[-1]
    for map_HW, known_HW in zip(np.asarray(batch.maps_NMHW[number]), np.asarray(batch.known_NMHW[number]), strict=True):
        trim = (tile_px - len(map_HW)) // 2
        cell = np.full((tile_px, tile_px, 3), 128, np.uint8)
        target = cell[trim : trim + len(map_HW), trim : trim + len(map_HW)]
        target[:] = (map_HW * 255).round().astype(np.uint8)[..., None]
        target[known_HW == 0] = UNKNOWN
        yield _enlarged(cell)


def _frame(rgb_YXC: NDArray[np.uint8], inside: tuple[slice, slice]) -> None:
    """Draw a dark frame just outside the target area; none if it covers the whole tile."""
    (y0, y1), (x0, x1) = ((span.start - 1, span.stop) for span in inside)
    if y0 < 0 or x0 < 0:
        return
    rgb_YXC[[y0, y1], x0 : x1 + 1] = INK
    rgb_YXC[y0 : y1 + 1, [x0, x1]] = INK


def _enlarged(rgb_YXC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    factor = max(1, -(-MIN_SIDE_PX // len(rgb_YXC)))
    return rgb_YXC.repeat(factor, axis=0).repeat(factor, axis=1)
