"""U-Net architectures, their training and their scores. Knows nothing of slides, storage or Prefect.

The public interface is exported here and imported when it is used:

- `UNet`: the network of Ronneberger, Fischer and Brox (2015), and its variants.
- `UNetSpec`: description of a network: architecture, channels, normalisation, resolution, classes.
- `load_model`: load a built-in model or a model file.
- `save_model`: write a network as a model file.
- `train`: train a network on images and masks in memory.
- `evaluate`: score a network on images and masks in memory.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unet_core.model_file.checkpoint import load_model, save_model
    from unet_core.networks.unet import UNet
    from unet_core.spec import UNetSpec
    from unet_core.training.arrays import evaluate, train

__all__ = ["UNet", "UNetSpec", "evaluate", "load_model", "save_model", "train"]

_MODULES = {
    "UNet": "unet_core.networks.unet",
    "UNetSpec": "unet_core.spec",
    "evaluate": "unet_core.training.arrays",
    "load_model": "unet_core.model_file.checkpoint",
    "save_model": "unet_core.model_file.checkpoint",
    "train": "unet_core.training.arrays",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
