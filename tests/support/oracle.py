"""Reference results of the pipeline: one forward pass over the whole image, labels of the whole mask.

Imports nothing from ``pipeline``: only numpy, torch, scikit-image and the network itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.measure import label

from unet_core.model_file.checkpoint import load
from unet_core.networks.unet import UNet

HALO_4, STEP_4 = 92, 16
"""Halo and step of a valid U-Net of depth 4, from the paper: 572 - 388 = 2 * 92."""


def network(weights: Path) -> UNet:
    """Load a network on one thread; two threads never give bitwise equal results."""
    torch.set_num_threads(1)
    return load(weights)


def forward(model: UNet, pixels_CYX: NDArray[Any], dtype: torch.dtype = torch.float32) -> NDArray[np.uint8]:
    """Probability bytes (k, y, x) of one forward pass over exactly these pixels (c, y, x)."""
    spec = model.spec
    mean, std = (np.asarray(values, np.float32)[:, None, None] for values in (spec.mean, spec.std))
    x = (pixels_CYX.astype(np.float32) / np.float32(np.iinfo(pixels_CYX.dtype).max) - mean) / std
    with torch.inference_mode():
        x_NCHW = torch.from_numpy(x)[None].to(dtype=dtype, memory_format=torch.channels_last)
        logits = model.to(dtype=dtype, memory_format=torch.channels_last)(x_NCHW)[0].float()
        p = torch.softmax(logits, 0)[1:] if spec.head == "softmax" else torch.sigmoid(logits)
    return np.asarray(np.rint(p.numpy().astype(np.float64) * 255), np.uint8)


def whole_pass(model: UNet, image_CYX: NDArray[Any], dtype: torch.dtype = torch.float32) -> NDArray[np.uint8]:
    """Forward pass over the whole image: mirrored by the halo and up to a legal size, then cropped."""
    height, width = image_CYX.shape[1:]
    extra = [(4 - length) % STEP_4 for length in (height, width)]  # outputs of a depth-4 network are 4 (mod 16)
    pad = [(0, 0), *((HALO_4, HALO_4 + more) for more in extra)]
    return forward(model, np.pad(image_CYX, pad, mode="reflect"), dtype)[:, :height, :width]


def tiled(model: UNet, image_CYX: NDArray[Any], tile: int, stride: int) -> NDArray[np.uint8]:
    """Forward passes over tiles of ``tile`` input pixels, ``stride`` apart, each output cropped to the stride."""
    height, width = image_CYX.shape[1:]
    padded = np.pad(image_CYX, [(0, 0), (HALO_4, tile), (HALO_4, tile)], mode="reflect")
    answer = np.zeros((model.spec.classes - 1, height + tile, width + tile), np.uint8)
    for y in range(0, height, stride):
        for x in range(0, width, stride):
            core = forward(model, padded[:, y : y + tile, x : x + tile])[:, :stride, :stride]
            answer[:, y : y + core.shape[1], x : x + core.shape[2]] = core
    return answer[:, :height, :width]


def objects(probability_KYX: NDArray[np.uint8], threshold: float, connectivity: int = 8) -> NDArray[Any]:
    """Labels of stored bytes: one class by threshold, several by the largest; background is the remainder."""
    if len(probability_KYX) == 1:
        classes = (probability_KYX[0] >= np.ceil(255 * threshold)).astype(np.int16)
    else:
        foreground = probability_KYX.astype(np.int16)
        background = np.maximum(0, 255 - foreground.sum(axis=0, dtype=np.int16))
        classes = np.argmax(np.concatenate([background[None], foreground]), axis=0)
    return np.asarray(label(classes, background=0, connectivity=2 if connectivity == 8 else 1))
