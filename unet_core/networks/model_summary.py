"""Layers, parameters, operations and memory of a network, computed from its spec.

The U-Net is walked in integers, so `model list`, `model info` and cost estimates need no torch (0.3 s instead of 2 s of
CPU time to start). MONAI's architectures are profiled on the meta device (`meta_profile`). For the U-Net both give the
same parameters and operations; the profile lacks the lines of joins and, with bilinear upsampling, counts up to 0.4 %
more memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from unet_core.networks.layer_summary import UP_CONVOLUTION, Layer
from unet_core.shapes import ValidShape
from unet_core.spec import UNetSpec

HEAP_FACTOR = 2.0
"""Upper bound of process memory / peak of live tensors: holes in the heap (measured: 1.2 to 1.9)."""


def layers(spec: UNetSpec, input_px: int) -> list[Layer]:
    """Return the steps of a forward pass over a square tile, in order.

    Raises:
        SizeError: The network does not take this size.
    """
    ValidShape.of(spec).output_px(input_px)
    return list(_walk(spec, input_px))


def _walk(spec: UNetSpec, input_px: int) -> Iterator[Layer]:
    if spec.architecture == "unet":
        return _walk_unet(spec, input_px)
    from unet_core.networks.meta_profile import trace  # importing torch and monai takes seconds

    return iter(trace(spec, input_px).layers)


def _walk_unet(spec: UNetSpec, input_px: int) -> Iterator[Layer]:
    channels, side = spec.channels, input_px
    lost = 2 if spec.padding == "valid" else 0
    source = spec.in_channels
    for level, out in enumerate(channels):
        prefix = f"down.{level}" if level < spec.depth else "bottom"
        yield from _double_convolution(spec, prefix, (source, out), (side, lost))
        side, source = side - 2 * lost, out
        if level < spec.depth:
            side //= 2
            yield Layer(f"pool {level}", "max pooling", 2, out, out, side)
    for number, level in enumerate(reversed(range(spec.depth))):
        out = channels[level]
        yield _upsampling(spec, number, (source, out), side)
        side = 2 * side - (2 if spec.up == "bilinear" and lost else 0)
        joined = 2 * out if spec.skip == "concat" else out
        if spec.skip != "none":
            yield Layer(f"skip {level}", "copy and crop", 1, out, joined, side)
        yield from _double_convolution(spec, f"join.{number}", (joined, out), (side, lost))
        side, source = side - 2 * lost, out
    count = source * spec.out_channels + spec.out_channels
    yield Layer("head", "convolution", 1, source, spec.out_channels, side, count, side)


def _double_convolution(
    spec: UNetSpec, prefix: str, into_out: tuple[int, int], side_lost: tuple[int, int]
) -> Iterator[Layer]:
    (into, out), (side, lost) = into_out, side_lost
    beside = 2 * out if spec.norm == "batch" else out  # scale and shift, or biases
    for number, source in enumerate((into, out)):
        side -= lost
        name = f"{prefix}.{number * (3 if spec.norm == 'batch' else 2)}"
        yield Layer(name, "convolution", 3, source, out, side, 9 * source * out + beside, side)


def _upsampling(spec: UNetSpec, number: int, into_out: tuple[int, int], side: int) -> Layer:
    into, out = into_out
    if spec.up == "transposed":
        return Layer(f"up.{number}", UP_CONVOLUTION, 2, into, out, 2 * side, 4 * into * out + out, 2 * side)
    cut = 2 if spec.up == "bilinear" and spec.padding == "valid" else 0
    kind = f"convolution, then {spec.up} x2"
    return Layer(f"up.{number}.0", kind, 1, into, out, 2 * side - cut, into * out + out, side)


def parameters(spec: UNetSpec) -> int:
    """Return the number of trainable parameters."""
    return sum(layer.parameters for layer in _walk(spec, ValidShape.of(spec).smallest_px))


def operations_per_px(spec: UNetSpec, core_px: int | None = None) -> float:
    """Return the operations per kept pixel for tiles with this core; None: the limit for large tiles."""
    shape = ValidShape.of(spec)
    if core_px is not None:
        return sum(layer.operations for layer in _walk(spec, shape.read_px(core_px))) / core_px**2
    # away from the borders the cost per pixel is constant: the borders' share cancels in the second difference
    # quotient, which is exact for a square
    sides = [shape.smallest_px + number * 64 * shape.step for number in (1, 2, 3)]
    first, second, third = (sum(layer.operations for layer in _walk(spec, side)) for side in sides)
    return float(Fraction(third - 2 * second + first, 2 * (64 * shape.step) ** 2))


def tile_bytes(spec: UNetSpec, core_px: int, itemsize: int = 4) -> int:
    """Return the peak bytes of live tensors in one forward pass over a tile with this core, without weights.

    Weights add `parameters` * itemsize, and a process holds up to `HELD` times as much.
    """
    input_px = ValidShape.of(spec).read_px(core_px)
    if spec.architecture != "unet":
        from unet_core.networks.meta_profile import trace  # importing torch and monai takes seconds

        return trace(spec, input_px).alive * itemsize
    image = spec.in_channels * input_px**2
    skips: list[int] = []
    entered = previous = worst = 0  # input of the current block, output of its last layer
    for layer in _walk(spec, input_px):
        made = layer.out * layer.output_px**2
        if layer.kind == "max pooling":
            skips.append(previous)
            entered = previous = 0
        elif not layer.name.startswith(("down", "bottom", "join")) or layer.name.endswith(".0"):
            entered, previous = previous, 0
        if layer.name.startswith("join") and layer.name.endswith(".0"):
            skips.pop()
        between = max(previous, made if _needs_a_copy(spec, layer) else 0)
        worst = max(worst, image + sum(skips) + entered + between + made)
        previous = made
    return worst * itemsize


def _needs_a_copy(spec: UNetSpec, layer: Layer) -> bool:
    """Return whether a layer's output passes through a second tensor of its size: normalised, or resized and cut."""
    normalised = spec.norm == "batch" and layer.kernel == 3
    return normalised or "bilinear" in layer.kind
