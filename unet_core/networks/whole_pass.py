"""One forward pass over a whole image."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from unet_core.mirror import ArrayLike, Square, read_mirrored
from unet_core.networks.unet import SegmentationNetwork, foreground_probability
from unet_core.shapes import ValidShape
from unet_core.spec import UNetSpec


def normalised(spec: UNetSpec, image_CYX: NDArray[np.unsignedinteger]) -> torch.Tensor:
    """Return the network's input (1, c, y, x) for stored pixels: (image / dtype max - mean) / std, fp32."""
    x = torch.from_numpy(np.ascontiguousarray(image_CYX)).float() / float(np.iinfo(image_CYX.dtype).max)
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))
    return ((x - mean) / std)[None]


def whole_pass(model: SegmentationNetwork, image_CYX: ArrayLike) -> NDArray[np.uint8]:
    """Return the foreground probabilities of a small image, (k, y, x), as rounded bytes, by one forward pass.

    The image is as the network is shown it: whoever has the whole of it has brought it to the network's colours.
    """
    height, width = image_CYX.shape[-2:]
    shape = ValidShape.of(model.spec)
    box = Square(-shape.halo, -shape.halo, shape.read_px(height) - shape.halo, shape.read_px(width) - shape.halo)
    with torch.inference_mode():
        logits = model(normalised(model.spec, read_mirrored(image_CYX, box)).to(next(model.parameters()).device))
    start = shape.crop_px
    probability = foreground_probability(model.spec, logits[..., start : start + height, start : start + width])
    return (probability[0] * 255).round().to(torch.uint8).cpu().numpy()
