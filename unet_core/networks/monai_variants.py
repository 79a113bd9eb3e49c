"""U-Net++ and Attention U-Net of MONAI, with batch norm throughout.

MONAI's classes are extended, not wrapped, so tensors keep MONAI's names and a network trained there converts without
renaming. Changes: batch norm for instance norm, He initialisation, sizes that would be padded are rejected, one output
instead of a list.
"""

from __future__ import annotations

from monai.networks.nets.attentionunet import AttentionUnet
from monai.networks.nets.basic_unetplusplus import BasicUNetPlusPlus
from torch import Tensor, nn

from unet_core.networks.unet import SegmentationNetwork, initialise_he
from unet_core.shapes import ValidShape
from unet_core.spec import UNetSpec


class UNetPlusPlus(BasicUNetPlusPlus, SegmentationNetwork):  # type: ignore[misc]  # monai's sources are not followed
    """Zhou et al. 2018 (arXiv:1807.10165): nested nodes in place of skips; the last column is the output."""

    def __init__(self, spec: UNetSpec) -> None:
        features = (*spec.channels, spec.width)
        super().__init__(2, spec.in_channels, spec.out_channels, features, norm="batch", dropout=spec.dropout)
        self.spec = spec
        self.shape = ValidShape.of(spec)
        self.apply(initialise_he)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the logits; raise SizeError for an illegal size."""
        self.require_legal(x_NCHW)
        logits: Tensor = super().forward(x_NCHW)[0]
        return logits


class AttentionUNet(AttentionUnet, SegmentationNetwork):  # type: ignore[misc]  # monai's sources are not followed
    """Oktay et al. 2018 (arXiv:1804.03999): a gate that reads the coarser level weights each pixel of a skip."""

    def __init__(self, spec: UNetSpec) -> None:
        strides = (2,) * spec.depth
        super().__init__(2, spec.in_channels, spec.out_channels, spec.channels, strides, dropout=spec.dropout)
        batch_for_instance_norm(self)
        self.spec = spec
        self.shape = ValidShape.of(spec)
        self.apply(initialise_he)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the logits; raise SizeError for an illegal size."""
        self.require_legal(x_NCHW)
        logits: Tensor = super().forward(x_NCHW)
        return logits


def batch_for_instance_norm(network: nn.Module) -> None:
    """Replace instance norm by batch norm; MONAI's merging layers, one per level, have no option for it."""
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.InstanceNorm2d):
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, nn.BatchNorm2d(layer.num_features))
