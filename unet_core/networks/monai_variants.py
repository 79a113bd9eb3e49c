"""U-Net++ and Attention U-Net, as MONAI has them, with batch norm throughout.

Decision: MONAI's classes are extended, not wrapped, so that tensors keep MONAI's names and a network trained there
converts without renaming. What is changed: batch norm for instance norm, He initialisation, sizes that would be padded
are refused, one answer instead of a list.
"""

from __future__ import annotations

from monai.networks.nets.attentionunet import AttentionUnet
from monai.networks.nets.basic_unetplusplus import BasicUNetPlusPlus
from torch import Tensor, nn

from unet_core.networks.unet import SegmentationNetwork, initialise_he
from unet_core.shapes import ValidShape
from unet_core.spec import UNetSpec


class UNetPlusPlus(BasicUNetPlusPlus, SegmentationNetwork):  # type: ignore[misc]  # monai's sources are not followed
    """Zhou et al. 2018 (arXiv:1807.10165): nested nodes in place of skips; the last column answers."""

    def __init__(self, spec: UNetSpec) -> None:
        features = (*spec.channels, spec.width)
        super().__init__(2, spec.in_channels, spec.out_channels, features, norm="batch", dropout=spec.dropout)
        self.spec = spec
        self.shape = ValidShape.of(spec)
        self.apply(initialise_he)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the logits. Raises SizeError for a size that is not legal."""
        self.demand_legal(x_NCHW)
        logits: Tensor = super().forward(x_NCHW)[0]
        return logits


class AttentionUNet(AttentionUnet, SegmentationNetwork):  # type: ignore[misc]  # monai's sources are not followed
    """Oktay et al. 2018 (arXiv:1804.03999): skips weighted, pixel by pixel, by a gate that sees the coarser level."""

    def __init__(self, spec: UNetSpec) -> None:
        strides = (2,) * spec.depth
        super().__init__(2, spec.in_channels, spec.out_channels, spec.channels, strides, dropout=spec.dropout)
        batch_for_instance_norm(self)
        self.spec = spec
        self.shape = ValidShape.of(spec)
        self.apply(initialise_he)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the logits. Raises SizeError for a size that is not legal."""
        self.demand_legal(x_NCHW)
        logits: Tensor = super().forward(x_NCHW)
        return logits


def batch_for_instance_norm(network: nn.Module) -> None:
    """Put batch norm where there is instance norm: MONAI's merging layers, one a level, have no option for it."""
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.InstanceNorm2d):
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, nn.BatchNorm2d(layer.num_features))
