"""Build the network that a spec describes, for any architecture.

A network with a layer that depends on its whole tile (instance, group or layer norm, pooling to one size, aligned
corners) cannot be run tile by tile. It is rejected here by the layer's name, so other modules do not depend on the
architecture.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.instancenorm import _InstanceNorm

from unet_core.errors import ArchitectureError
from unet_core.networks.unet import SegmentationNetwork, UNet
from unet_core.optional import TRAIN, optional_import
from unet_core.spec import UNetSpec

WHOLE_TILE = (
    _InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.MultiheadAttention,
)
"""Layers whose output at a pixel depends on all pixels of the tile."""


def build(spec: UNetSpec) -> SegmentationNetwork:
    """Return the network that a spec describes, with newly initialised weights.

    Raises:
        ArchitectureError: The network could not be seam-exact.
        MissingLibraryError: The architecture needs MONAI, which is not installed.
    """
    if spec.architecture == "unet":
        return UNet(spec)
    with optional_import(TRAIN, f"architecture {spec.architecture!r}"):
        from unet_core.networks.monai_variants import AttentionUNet, UNetPlusPlus  # monai takes seconds to import

    network = UNetPlusPlus(spec) if spec.architecture == "unet++" else AttentionUNet(spec)
    require_exact(network)
    return network


def require_exact(network: nn.Module) -> None:
    """Raise ArchitectureError, naming the layer, for a network with a layer that depends on its whole tile."""
    for name, layer in network.named_modules():
        stretched = isinstance(layer, nn.Upsample) and bool(layer.align_corners)
        if stretched or isinstance(layer, WHOLE_TILE):
            kind = "upsampling with aligned corners" if stretched else type(layer).__name__
            raise ArchitectureError(
                f"{type(network).__name__}: layer {name}: expected one with a limited receptive field, found {kind}: "
                "it depends on the whole tile, so tiles could not equal the whole pass. Use batch norm"
            )
