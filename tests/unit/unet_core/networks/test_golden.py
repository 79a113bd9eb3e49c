"""The golden networks have the properties on which other tests rely."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage import data

from unet_core.mirror import Square, read_mirrored
from unet_core.model_file.checkpoint import load
from unet_core.networks.unet import UNet
from unet_core.networks.whole_pass import to_bytes, to_input, to_outputs, whole_pass

GOLDEN = Path(__file__).parents[3] / "exactness" / "golden"


pytestmark = pytest.mark.usefixtures("one_thread")


def tiled(model: UNet, image: NDArray[np.uint8], stride: int, read: int) -> NDArray[np.uint8]:
    """Probabilities of tiles at any stride, also off the step."""
    height, width = image.shape[1:]
    halo = model.shape.halo
    found = np.zeros((1, height, width), np.uint8)
    for y in range(0, height, stride):
        for x in range(0, width, stride):
            box = Square(y - halo, x - halo, y - halo + read, x - halo + read)
            with torch.inference_mode():
                logits = model(to_input(torch.from_numpy(read_mirrored(image, box)), model.spec))
                probability = to_bytes(to_outputs(logits[0], model.spec)).numpy()
            target = found[:, y : y + stride, x : x + stride]
            target[:] = probability[:, : target.shape[1], : target.shape[2]]
    return found


def test_the_context_network_has_seams_off_the_step_only() -> None:
    model = load(GOLDEN / "context.safetensors")
    image = data.immunohistochemistry()[:420, :500].transpose(2, 0, 1)
    whole = whole_pass(model, image)
    on_step, off_step = (tiled(model, image, stride, read) for stride, read in ((192, 380), (196, 380)))
    assert np.abs(on_step.astype(int) - whole.astype(int)).max() <= 1  # sums in another order, at most
    assert (on_step == whole).mean() > 0.9999
    changed = np.abs(off_step.astype(int) - whole.astype(int)) > 1
    print(f"off the step {100 * changed.mean():.1f} % of pixels change")
    assert changed.mean() > 0.01
    assert ((whole > 2) & (whole < 253)).mean() > 0.2  # graded, not saturated
    assert model.spec.threshold == 0.5


def test_the_class_network_distinguishes_red_and_blue() -> None:
    model = load(GOLDEN / "classes.safetensors")
    assert model.spec.class_names == ("red cell", "blue cell")
    image = np.full((3, 90, 120), 255, np.uint8)
    y, x = np.indices((90, 120))
    red, blue = (y - 30) ** 2 + (x - 40) ** 2 < 400, (y - 60) ** 2 + (x - 90) ** 2 < 500
    image[:, red] = np.array([[255], [0], [0]])
    image[:, blue] = np.array([[0], [0], [255]])
    image[:, (y < 20) & (x > 100)] = np.array([[60], [180], [60]])  # green is nothing
    np.testing.assert_array_equal(whole_pass(model, image), 255 * np.stack([red, blue]).astype(np.uint8))
