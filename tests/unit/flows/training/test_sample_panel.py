"""The sample panel shows what the loss uses: targets in place on the tile, and weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from flows.training.sample_panel import GAP_PX, TEXT_PX, save_panel
from pipeline.rendering.contrast import class_colours
from pipeline.rendering.drawing import INK
from unet_core.data.augmentation import Augmentation
from unet_core.data.sampler import AnnotatedImage, SampleBatch, Sampler, Sampling

TOP = 2 * GAP_PX + TEXT_PX


def cells(path: Path, side: int) -> np.ndarray:
    """The squares (row, col, side, side, 3) of a panel."""
    pixels = np.asarray(Image.open(path))
    step = side + GAP_PX
    rows, cols = (pixels.shape[0] - TOP) // step, (pixels.shape[1] - GAP_PX) // step
    return np.array(
        [[pixels[TOP + r * step :, GAP_PX + c * step :][:side, :side] for c in range(cols)] for r in range(rows)]
    )


def test_tile_outlines_and_weights_are_aligned(tmp_path: Path) -> None:
    image = torch.full((2, 3, 210, 210), 0.5)
    target, weight = torch.zeros(2, 190, 190, dtype=torch.long), torch.ones(2, 190, 190)
    target[0, 20:40, 50:90] = 1
    target[1, 100:110, 100:120] = 2
    weight[0, 60:70, 60:70] = 11.0
    weight[1] = 6.0
    save_panel(tmp_path / "panel.png", SampleBatch(image, target, weight), ("tumour", "stroma"))
    found = cells(tmp_path / "panel.png", 210)
    assert found.shape[:2] == (2, 3)
    first, second = class_colours(2)
    framed = found[0, 0] != 128
    assert np.array_equal(np.argwhere(framed.any(axis=2)).min(axis=0), (9, 9))
    assert tuple(found[0, 0][9, 100]) == INK
    for row, colour, box in ((0, first, (30, 60, 50, 100)), (1, second, (110, 110, 120, 130))):
        drawn = (found[row, 1] == np.array(colour)).all(axis=2)
        y0, x0, y1, x1 = box
        assert np.array_equal(np.argwhere(drawn).min(axis=0), (y0, x0))
        assert np.array_equal(np.argwhere(drawn).max(axis=0), (y1 - 1, x1 - 1))
        assert drawn.sum() == 2 * (y1 - y0) + 2 * (x1 - x0) - 4, "an outline, not an area"
    assert np.array_equal(np.argwhere(found[0, 2][..., 0] == 255), np.argwhere(np.pad(weight[0] == 11, 10)))
    assert (found[1, 2][10:200, 10:200] == 128).all(), "midway between the lowest and the highest weight of the panel"
    assert (found[1, 2][:10] == 128).all()


def test_panel_of_sampled_tiles(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.zeros((80, 90), np.int32)
    labels[20:40, 20:40], labels[44:60, 22:50] = 1, 2
    pixels = rng.integers(100, 255, (1, 80, 90)).astype(np.uint8)
    case = AnnotatedImage("a", pixels, labels)
    batch = Sampler([case], (92, 52), Sampling(batch=3), Augmentation()).draw(torch.Generator().manual_seed(1))
    save_panel(tmp_path / "panel.png", batch, ("nucleus",))
    found = cells(tmp_path / "panel.png", 3 * 92)
    assert found.shape[:2] == (3, 3), "small tiles are enlarged by an integer factor"
    assert np.array_equal(found[:, :, ::3, ::3].repeat(3, axis=2).repeat(3, axis=3), found)
