"""The U-Net of Ronneberger, Fischer and Brox (2015, arXiv:1505.04597).

One class builds every variant of UNetSpec, and its forward pass follows the paper's figure. Sizes at line ends are
those of the figure: preset "paper" and a 572 px tile. shapes.py computes the sizes of other variants.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from unet_core.shapes import ValidShape
from unet_core.spec import UNetSpec


class SegmentationNetwork(nn.Module):
    """Base class: (n, in_channels, h, w) -> logits (n, out_channels, h', w'), sizes given by `shape`."""

    spec: UNetSpec
    shape: ValidShape

    def require_legal(self, x_NCHW: Tensor) -> None:
        """Raise SizeError for an illegal size, which torch would silently round down."""
        for side_px in x_NCHW.shape[2:]:
            self.shape.output_px(side_px)


class UNet(SegmentationNetwork):
    """U-Net: (n, in_channels, h, w) -> logits (n, out_channels, h', w'), h' from ValidShape.

    Weights get the He initialisation of the paper. In eval mode an output pixel depends only on its receptive field.

    Args:
        spec: Description of the network.
    """

    def __init__(self, spec: UNetSpec) -> None:
        super().__init__()
        self.spec = spec
        self.shape = ValidShape.of(spec)
        channels = spec.channels  # 64, 128, 256, 512, 1024
        levels = range(spec.depth)
        self.down = nn.ModuleList(
            double_convolution(spec, channels[i - 1] if i else spec.in_channels, channels[i]) for i in levels
        )
        self.pool = nn.MaxPool2d(2)
        self.bottom = double_convolution(spec, channels[-2], channels[-1])
        self.dropout = nn.Dropout(spec.dropout)
        self.up = nn.ModuleList(upsampling(spec, channels[i + 1], channels[i]) for i in reversed(levels))
        joined = 2 if spec.skip == "concat" else 1
        self.join = nn.ModuleList(double_convolution(spec, joined * channels[i], channels[i]) for i in reversed(levels))
        self.head = nn.Conv2d(channels[0], spec.out_channels, 1)
        self.apply(initialise_he)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the logits; raise SizeError for an illegal size."""
        self.require_legal(x_NCHW)
        skipped: list[Tensor] = []
        x = x_NCHW  #                                      1 x 572
        for convolve in self.down:
            x = convolve(x)  #                            64 x 568, 128 x 280, 256 x 136, 512 x 64
            skipped.append(x)
            x = self.pool(x)  #                           64 x 284, 128 x 140, 256 x  68, 512 x 32
        x = self.dropout(self.bottom(x))  #             1024 x  28
        for upsample, convolve in zip(self.up, self.join, strict=True):
            x = upsample(x)  #                           512 x  56, 256 x 104, 128 x 200,  64 x 392
            x = merge(self.spec, skipped.pop(), x)  #   1024 x  56, 512 x 104, 256 x 200, 128 x 392
            x = convolve(x)  #                           512 x  52, 256 x 100, 128 x 196,  64 x 388
        logits: Tensor = self.head(x)  #                   2 x 388
        return logits


def double_convolution(spec: UNetSpec, into: int, out: int) -> nn.Sequential:
    """Return two 3x3 convolutions, each with (batch norm and) ReLU: (n, into, h, w) -> (n, out, h - 4, w - 4)."""
    padding = 1 if spec.padding == "same" else 0
    layers: list[nn.Module] = []
    for source in (into, out):
        layers.append(nn.Conv2d(source, out, 3, padding=padding, bias=spec.norm == "none"))
        if spec.norm == "batch":
            layers.append(nn.BatchNorm2d(out))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def upsampling(spec: UNetSpec, into: int, out: int) -> nn.Module:
    """Return a module that doubles the resolution and reduces channels: (n, into, h, w) -> (n, out, 2h, 2w).

    Interpolating variants first reduce channels by a 1x1 convolution, which commutes with interpolation and is cheaper
    there. Valid bilinear cuts the outermost pixels (2h - 2), which would need a neighbour beyond the tile.
    """
    if spec.up == "transposed":
        return nn.ConvTranspose2d(into, out, 2, stride=2)
    narrow = nn.Conv2d(into, out, 1)
    if spec.up == "nearest":
        return nn.Sequential(narrow, nn.Upsample(scale_factor=2, mode="nearest"))
    enlarge = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
    cut = (nn.ZeroPad2d(-1),) if spec.padding == "valid" else ()
    return nn.Sequential(narrow, enlarge, *cut)


def merge(spec: UNetSpec, skipped: Tensor, x: Tensor) -> Tensor:
    """Join features of the contracting path, cropped about their centre, to those of the expanding path."""
    if spec.skip == "none":
        return x
    top, left = ((skipped.shape[axis] - x.shape[axis]) // 2 for axis in (2, 3))
    cropped = skipped[:, :, top : top + x.shape[2], left : left + x.shape[3]]
    return torch.cat([cropped, x], dim=1) if spec.skip == "concat" else cropped + x


def initialise_he(module: nn.Module) -> None:
    """Draw weights from a Gaussian with deviation sqrt(2 / N), N the inputs of one neuron; biases are 0 (section 3).

    In a 2x2 up-convolution of stride 2 every output pixel has one input pixel: N is the number of input channels, not
    torch's fan-in. In a 3x3 one it has 9/4 input pixels on average.
    """
    incoming: float
    if isinstance(module, nn.Conv2d):
        incoming = module.in_channels * math.prod(module.kernel_size)
    elif isinstance(module, nn.ConvTranspose2d):
        incoming = module.in_channels * math.prod(module.kernel_size) / math.prod(module.stride)
    else:
        return
    if not module.weight.is_meta:  # nothing to draw, and torch would import its compiler (1.6 s)
        nn.init.normal_(module.weight, std=math.sqrt(2 / incoming))
    if module.bias is not None:
        nn.init.zeros_(module.bias)
