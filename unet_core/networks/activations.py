"""Feature maps of each level, attention weights and gradients through each skip.

Hooks on named modules record them, so the forward pass of a network stays plain and costs nothing when it is not
observed. This module holds, for each architecture, where a part is (contracting path, bottom, expanding path; level).
Level 1 is the full resolution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from unet_core.networks.unet import SegmentationNetwork
from unet_core.networks.whole_pass import whole_pass
from unet_core.shapes import ValidShape


@dataclass(frozen=True, slots=True)
class NetworkPart:
    """A part of a network.

    Attributes:
        name: Display name.
        level: 0 is the full resolution.
        module: The module itself.
        skipped: For a join, the number of its input channels that come from the skip (they come first); 0 if the two
            inputs are added.
    """

    name: str
    level: int
    module: nn.Module
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class NetworkParts:
    """Parts of a network: ``levels`` produce feature maps, ``joins`` take skips, ``gates`` weight skips."""

    levels: tuple[NetworkPart, ...]
    joins: tuple[NetworkPart, ...]
    gates: tuple[NetworkPart, ...] = ()


def network_parts(model: SegmentationNetwork) -> NetworkParts:
    """Return the parts of a network of any architecture."""
    kinds = {"unet": _unet, "unet++": _unet_plus_plus, "attention": _attention}
    return kinds[model.spec.architecture](model)


def _unet(model: Any) -> NetworkParts:
    depth, channels, skip = model.spec.depth, model.spec.channels, model.spec.skip
    down = [NetworkPart(f"down {i + 1}", i, module) for i, module in enumerate(model.down)]
    up = [(depth - 1 - i, module) for i, module in enumerate(model.join)]
    levels = (
        *down,
        NetworkPart("bottom", depth, model.bottom),
        *(NetworkPart(f"up {i + 1}", i, module) for i, module in up),
    )
    joins = (NetworkPart(f"skip {i + 1}", i, module, channels[i] if skip == "concat" else 0) for i, module in up)
    return NetworkParts(levels, () if skip == "none" else tuple(joins))


def _unet_plus_plus(model: Any) -> NetworkParts:
    depth, channels = model.spec.depth, model.spec.channels
    down = [
        NetworkPart(f"down {i + 1}" if i < depth else "bottom", i, model.get_submodule(f"conv_{i}_0")) for i in range(5)
    ]
    positions = [(i, j) for j in range(1, depth + 1) for i in range(depth - j, -1, -1)]
    nodes = [(i, j, model.get_submodule(f"upcat_{i}_{j}")) for i, j in positions]
    levels = (*down, *(NetworkPart(f"node {i + 1}.{j}", i, module) for i, j, module in nodes))
    return NetworkParts(
        levels, tuple(NetworkPart(f"skip {i + 1}.{j}", i, node.convs, j * channels[i]) for i, j, node in nodes)
    )


def _attention(model: Any) -> NetworkParts:
    depth, channels = model.spec.depth, model.spec.channels
    head, layer = model.model[0], model.model[1]
    down, layers = [NetworkPart("down 1", 0, head)], []
    for level in range(depth):
        layers.append((level, layer))
        inner = layer.submodule
        if level + 1 < depth:
            down.append(NetworkPart(f"down {level + 2}", level + 1, inner[0]))
            layer = inner[1]
        else:
            down.append(NetworkPart("bottom", depth, inner))
    up = layers[::-1]
    levels = (*down, *(NetworkPart(f"up {i + 1}", i, one.merge) for i, one in up))
    joins = tuple(NetworkPart(f"skip {i + 1}", i, one.merge, channels[i]) for i, one in up)
    return NetworkParts(levels, joins, tuple(NetworkPart(f"gate {i + 1}", i, one.attention.psi) for i, one in up))


# ---- forward -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FeatureMap:
    """Feature map of one part, cropped to the image: (c, y, x) at 1 / 2^level of its resolution."""

    name: str
    level: int
    values_CYX: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Activations:
    """Feature maps of each level for one image, and weights (1, y, x), 0..1, of the attention gates if any."""

    levels: tuple[FeatureMap, ...]
    gates: tuple[FeatureMap, ...]


def record_activations(model: SegmentationNetwork, image_CYX: NDArray[Any]) -> Activations:
    """Run a network over a small image once and record its feature maps.

    Args:
        model: The network; it is set to eval mode.
        image_CYX: Unsigned integers (c, y, x), already brought to the network's colours.
    """
    parts, made = network_parts(model), dict[str, Tensor]()

    def attach(part: NetworkPart) -> RemovableHandle:
        def record(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            made[part.name] = output[0].detach().float().cpu().clone()

        return part.module.register_forward_hook(record)

    with _hooks(attach, (*parts.levels, *parts.gates)):
        whole_pass(model.eval(), image_CYX)
    shape, size = ValidShape.of(model.spec), image_CYX.shape[1:]
    levels, gates = (
        tuple(
            FeatureMap(part.name, part.level, _inside(made[part.name].numpy(), shape, size, part.level))
            for part in kept
        )
        for kept in (parts.levels, parts.gates)
    )
    return Activations(levels, gates)


def _inside(values_CYX: NDArray[Any], shape: ValidShape, size_YX: tuple[int, ...], level: int) -> NDArray[np.float32]:
    """Crop a map to the image: the map is centred on the read region, in which the image starts after the halo."""
    factor, slices = 2**level, []
    for length, side in zip(size_YX, values_CYX.shape[1:], strict=True):
        beyond = shape.halo - (shape.read_px(length) - side * factor) / 2
        start = max(0, round(beyond / factor))
        slices.append(slice(start, start + -(-length // factor)))
    return np.ascontiguousarray(values_CYX[:, slices[0], slices[1]])


# ---- backward ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SkipGradient:
    """Gradient norms of a loss at a join: with respect to the skip and to the input from the level below.

    The two are equal where the inputs are added.
    """

    name: str
    skip: float
    below: float


def skip_gradients(model: SegmentationNetwork, loss: Callable[[], Tensor]) -> tuple[SkipGradient, ...]:
    """Return the gradient norms at each join of the network.

    Args:
        model: The network; it runs in eval mode and keeps no gradient afterwards.
        loss: Runs the network and returns a scalar.
    """
    joins, taken = network_parts(model).joins, dict[str, Tensor]()

    def attach(part: NetworkPart) -> RemovableHandle:
        def record(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            inputs[0].retain_grad()
            taken[part.name] = inputs[0]

        return part.module.register_forward_pre_hook(record)

    was_training = model.training
    model.eval()
    with _hooks(attach, joins):
        loss().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    model.train(was_training)
    model.zero_grad(set_to_none=True)
    return tuple(_flow(part, taken[part.name]) for part in joins)


def _flow(part: NetworkPart, joined_NCHW: Tensor) -> SkipGradient:
    assert joined_NCHW.grad is not None, "retain_grad was called"
    gradient = joined_NCHW.grad.float()
    if not part.skipped:
        return SkipGradient(part.name, float(gradient.norm()), float(gradient.norm()))
    return SkipGradient(part.name, float(gradient[:, : part.skipped].norm()), float(gradient[:, part.skipped :].norm()))


@contextmanager
def _hooks(register: Callable[[NetworkPart], RemovableHandle], parts: tuple[NetworkPart, ...]) -> Iterator[None]:
    handles = [register(part) for part in parts]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
