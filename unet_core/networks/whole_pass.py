"""Input, output and one whole forward pass of a network.

Training, evaluation and segmentation use the same functions, so training chooses its threshold on the bytes that
segmentation stores (equal to the bit in fp32 on one thread and one kind of CPU).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unet_core.mirror import ArrayLike, Square, read_mirrored
from unet_core.networks.unet import SegmentationNetwork
from unet_core.shapes import ValidShape
from unet_core.spec import UNetSpec


def to_input(pixels_CYX: Tensor, spec: UNetSpec, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normalise stored pixels by the model's own constants: (pixels / dtype max - mean) / std.

    Args:
        pixels_CYX: Unsigned integers (c, h, w). One channel is repeated for a network that takes several.
        spec: Mean and standard deviation of each channel, for a range of 0..1.
        dtype: Number type of the result; the arithmetic is in fp32.

    Returns:
        The network's input (1, C, h, w), channels last.
    """
    limit = float(torch.iinfo(pixels_CYX.dtype).max)
    scale, offset = (
        torch.tensor(values, dtype=torch.float32, device=pixels_CYX.device)[:, None, None]
        for values in (
            [1 / (limit * std) for std in spec.std],
            [-mean / std for mean, std in zip(spec.mean, spec.std, strict=True)],
        )
    )
    x = torch.addcmul(offset, pixels_CYX.float(), scale)
    return x[None].to(dtype=dtype, memory_format=torch.channels_last)


def to_outputs(logits_CYX: Tensor, spec: UNetSpec) -> Tensor:
    """Return the foreground probabilities and maps in 0..1 (k + m, h, w) of fp32 logits (c, h, w)."""
    if not spec.maps:
        return _foreground(logits_CYX, spec)
    classes, maps = logits_CYX[: spec.class_channels], logits_CYX[spec.class_channels :]
    return torch.cat((_foreground(classes, spec), torch.sigmoid(maps)))


def _foreground(logits_CYX: Tensor, spec: UNetSpec) -> Tensor:
    if spec.head == "sigmoid":
        probability = torch.sigmoid(logits_CYX)
    elif spec.classes == 2:
        probability = torch.sigmoid(logits_CYX[1:] - logits_CYX[:1])  # equals softmax, five times faster
    else:
        probability = torch.softmax(logits_CYX, dim=0)[1:]
    return probability


def to_bytes(probability_KYX: Tensor) -> Tensor:
    """Return probabilities and maps as bytes: p * 255, rounded."""
    return (probability_KYX * 255).round_().to(torch.uint8)


def whole_pass(model: SegmentationNetwork, image_CYX: ArrayLike) -> NDArray[np.uint8]:
    """Return the foreground probabilities (k, y, x) of a small image as bytes; see `whole_outputs`."""
    return whole_outputs(model, image_CYX)[: model.spec.foreground]


def whole_outputs(model: SegmentationNetwork, image_CYX: ArrayLike) -> NDArray[np.uint8]:
    """Run a network over a small image by one forward pass in fp32.

    Args:
        model: Network in eval mode.
        image_CYX: Unsigned integers (c, y, x), already brought to the network's colours where its spec requires it.

    Returns:
        Foreground probabilities, then maps, (k + m, y, x) as bytes.
    """
    height, width = image_CYX.shape[-2:]
    shape = ValidShape.of(model.spec)
    box = Square(-shape.halo, -shape.halo, shape.read_px(height) - shape.halo, shape.read_px(width) - shape.halo)
    start = shape.crop_px
    with torch.inference_mode():
        pixels_CYX = torch.from_numpy(np.ascontiguousarray(read_mirrored(image_CYX, box)))
        logits_NCHW = model(to_input(pixels_CYX.to(next(model.parameters()).device), model.spec))
        logits_CYX = logits_NCHW[0, :, start : start + height, start : start + width].float()
        return to_bytes(to_outputs(logits_CYX, model.spec)).cpu().numpy()
