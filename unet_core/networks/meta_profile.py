"""Layers, operations and peak memory of a network, measured on torch's meta device.

Tensors on the meta device have shapes but no numbers, so a forward pass over any tile takes milliseconds and needs no
model of the library. Live tensors are counted as the interpreter frees them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from unet_core.networks.factory import build
from unet_core.networks.layer_summary import UP_CONVOLUTION, Layer
from unet_core.spec import UNetSpec

KINDS = {nn.Conv2d: "convolution", nn.ConvTranspose2d: UP_CONVOLUTION, nn.MaxPool2d: "max pooling"}
"""Layers with a line of their own; parameters of other layers (norms, slopes) are added to the line before."""


@dataclass(frozen=True, slots=True)
class Trace:
    """One forward pass: its layers in order, and the peak count of numbers in live tensors, input included."""

    layers: tuple[Layer, ...]
    alive: int


@lru_cache(maxsize=64)
def trace(spec: UNetSpec, input_px: int) -> Trace:
    """Profile one forward pass over a square tile.

    Raises:
        SizeError: The network does not take this size.
    """
    with torch.device("meta"):
        network = build(spec).eval()
    layers: list[Layer] = []
    for name, module in network.named_modules():
        if not list(module.children()):
            module.register_forward_hook(partial(_record, layers, name))
    with torch.no_grad(), _Alive() as alive:
        network(torch.empty(1, spec.in_channels, input_px, input_px, device="meta"))
    return Trace(tuple(layers), alive.most)


def _record(layers: list[Layer], name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """Add a line for a layer, or its parameters to the line before."""
    parameters = sum(one.numel() for one in module.parameters())
    kind = KINDS.get(type(module))
    if kind is None:
        if parameters:
            layers[-1] = replace(layers[-1], parameters=layers[-1].parameters + parameters)
        return
    side = output.shape[2]
    channels = (inputs[0].shape[1], output.shape[1])
    layers.append(Layer(name, kind, _kernel(module), *channels, side, parameters, side if parameters else 0))


def _kernel(module: Any) -> int:
    size = module.kernel_size
    return int(size if isinstance(size, int) else size[0])


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Counts the numbers in live tensors, and their peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.now = self.most = 0
        self.seen = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, func: Callable[..., Any], _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                self._add(tensor)
        return output

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self.seen:
            self.seen[storage] = numbers = storage.nbytes() // tensor.itemsize
            weakref.finalize(storage, self._remove, numbers)
            self.now += numbers
            self.most = max(self.most, self.now)

    def _remove(self, numbers: int) -> None:
        self.now -= numbers
