"""The model summary equals torch's modules, its FLOP counter and the memory of a process."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from unet_core.errors import SizeError
from unet_core.networks.factory import build
from unet_core.networks.layer_summary import UP_CONVOLUTION, Layer
from unet_core.networks.model_summary import HEAP_FACTOR, layers, operations_per_px, parameters, tile_bytes
from unet_core.shapes import ValidShape
from unet_core.spec import UNetSpec, preset

SPECS = {
    "paper": preset("paper"),
    "tiny": preset("tiny"),
    "lesson": preset("lesson"),
    "shallow": UNetSpec(depth=1, width=3, in_channels=2, classes=4),
    "batch": UNetSpec(depth=2, width=4, norm="batch"),
    "nearest": UNetSpec(depth=3, width=4, up="nearest", skip="add", head="sigmoid"),
    "bilinear": UNetSpec(depth=2, width=6, up="bilinear", skip="none", growth=3),
    "unet++": UNetSpec(architecture="unet++", width=4, padding="same", norm="batch"),
    "attention": UNetSpec(architecture="attention", depth=2, width=6, padding="same", norm="batch", classes=3),
    "padded bilinear": UNetSpec(depth=2, width=4, up="bilinear", padding="same", norm="batch", in_channels=1),
}
each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
MEASURE = """
import ctypes, sys, torch
from unet_core.networks.factory import build
from unet_core.shapes import ValidShape
from unet_core.spec import UNetSpec
spec, side, dtype = UNetSpec.model_validate_json(sys.argv[1]), int(sys.argv[2]), getattr(torch, sys.argv[3])
if sys.argv[4] == "mapped":  # each block of memory on its own, returned at once: the process holds live blocks only
    ctypes.CDLL(None).mallopt(-3, 65536)
torch.set_num_threads(1)
model = build(spec).eval().to(dtype=dtype, memory_format=torch.channels_last)
def status_bytes(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)) * 1024
def image(px):
    return torch.rand(1, spec.in_channels, px, px).to(dtype=dtype, memory_format=torch.channels_last)
with torch.inference_mode():
    model(image(side))  # once before: the library's own pages are mapped then
    ctypes.CDLL(None).malloc_trim(0)
    open("/proc/self/clear_refs", "w").write("5")
    before = status_bytes("VmRSS")
    model(image(side))
print(status_bytes("VmHWM") - before)
"""


def smallest(spec: UNetSpec) -> int:
    return ValidShape.of(spec).smallest_px


def modules(spec: UNetSpec, input_px: int) -> dict[str, tuple[int, int]]:
    """Output channels and side of every module with weights, by name."""
    model, found = build(spec).eval(), {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            module.register_forward_hook(
                lambda _module, _given, answer, name=name: found.update({name: tuple(answer.shape[1:3])})
            )
    with torch.inference_mode():
        model(torch.zeros(1, spec.in_channels, input_px, input_px))
    return found


@each_spec
def test_layers_are_the_network_s_own(spec: UNetSpec) -> None:
    side = smallest(spec) + ValidShape.of(spec).step
    walked = {layer.name: layer for layer in layers(spec, side) if layer.computed_px}
    assert {name: (layer.out, layer.computed_px) for name, layer in walked.items()} == modules(spec, side)
    assert layers(spec, side)[-1].output_px == ValidShape.of(spec).output_px(side)


@each_spec
def test_parameters_are_the_network_s_own(spec: UNetSpec) -> None:
    assert parameters(spec) == sum(one.numel() for one in build(spec).parameters())


def test_the_paper_s_network() -> None:
    assert parameters(preset("paper")) == 31_030_658
    assert [layer.output_px for layer in layers(preset("paper"), 572) if layer.kind == "max pooling"] == [
        284,
        140,
        68,
        32,
    ]


@each_spec
def test_operations_equal_those_of_torchs_flop_counter(spec: UNetSpec) -> None:
    side = smallest(spec) + 2 * ValidShape.of(spec).step
    with torch.device("meta"):
        model, image = build(spec).eval(), torch.zeros(1, spec.in_channels, side, side)
    with FlopCounterMode(display=False) as counter:
        model(image)
    assert sum(layer.operations for layer in layers(spec, side)) == counter.get_total_flops()


@each_spec
def test_operations_per_pixel_of_large_tiles_approach_the_limit(spec: UNetSpec) -> None:
    limit, step = operations_per_px(spec), ValidShape.of(spec).step
    figures = [operations_per_px(spec, core) for core in (4 * step, 64 * step, 4096 * step)]
    assert figures == sorted(figures, reverse=True)
    assert limit <= figures[-1] <= 1.01 * limit


def test_an_illegal_size_is_rejected() -> None:
    with pytest.raises(SizeError):
        layers(preset("tiny"), 573)


def measured(spec: UNetSpec, core_px: int, dtype: str, heap: str, **environment: str) -> int:
    """Peak memory growth of a process during one forward pass, in bytes."""
    side = str(ValidShape.of(spec).read_px(core_px))
    run = [sys.executable, "-c", MEASURE, spec.model_dump_json(), side, dtype, heap]
    root = Path(__file__).parents[4]
    environment = {**os.environ, **environment}
    return int(subprocess.run(run, check=True, capture_output=True, text=True, cwd=root, env=environment).stdout)


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process's memory is read from /proc")


@on_linux
@pytest.mark.parametrize(
    ("spec", "core_px", "dtype"),
    [
        (UNetSpec(width=16), 256, "float32"),
        pytest.param(UNetSpec(width=16), 384, "float32", marks=pytest.mark.long),
        pytest.param(UNetSpec(width=16), 768, "float32", marks=pytest.mark.long),
        pytest.param(UNetSpec(width=32, up="bilinear", skip="add"), 512, "float32", marks=pytest.mark.long),
        pytest.param(UNetSpec(width=16, norm="batch", padding="same"), 512, "float32", marks=pytest.mark.long),
        pytest.param(UNetSpec(width=16, depth=2, skip="none", up="nearest"), 512, "float32", marks=pytest.mark.long),
        pytest.param(preset("unet++"), 320, "float32", marks=pytest.mark.long),
        pytest.param(preset("attention"), 384, "float32", marks=pytest.mark.long),
    ],
    ids=[
        "least tile",
        "narrow tile",
        "wide tile",
        "bilinear",
        "batch",
        "no skips",
        "unet++",
        "attention",
    ],
)
def test_memory_of_a_tile_equals_that_of_a_process(spec: UNetSpec, core_px: int, dtype: str) -> None:
    """Within 2 %, plus 1 MB for the library."""
    assert_equal_within_two_percent(measured(spec, core_px, dtype, "mapped"), tile_bytes(spec, core_px))


def assert_equal_within_two_percent(measured_bytes: int, computed: int) -> None:
    print(f"computed {computed / 2**20:.0f} MiB, measured {measured_bytes / 2**20:.0f} MiB")
    assert abs(measured_bytes - computed) <= 0.02 * computed + 1e6


Scratch = Callable[[Layer], int]
"""Bytes that a kernel of torch allocates for itself in a layer of bfloat16."""


def none(_layer: Layer) -> int:
    return 0


def sums_in_float32(layer: Layer) -> int:
    """With AVX512 alone, oneDNN adds up a transposed convolution in float32, beside its output."""
    return 4 * numbers(layer) if layer.kind == UP_CONVOLUTION else 0


def unfolded(layer: Layer) -> int:
    """Below AVX512 oneDNN refuses bfloat16: torch multiplies matrices, whose columns are copies of the pixels."""
    if layer.kind == UP_CONVOLUTION:
        return 2 * numbers(layer)
    return 2 * layer.kernel**2 * layer.into * layer.output_px**2 if layer.kernel == 3 else 0


def numbers(layer: Layer) -> int:
    return layer.out * layer.output_px**2


def bytes_with_scratch(spec: UNetSpec, core_px: int, scratch: Scratch) -> int:
    """Peak bytes of live tensors and scratch memory in one forward pass of bfloat16, counted layer by layer."""
    input_px = ValidShape.of(spec).read_px(core_px)
    image, previous, worst, skips = spec.in_channels * input_px**2, 0, 0, list[int]()
    for layer in layers(spec, input_px):
        if layer.kind == "max pooling":
            skips.append(previous)
        elif layer.kind == "copy and crop":
            skips.pop()
        worst = max(worst, 2 * (image + sum(skips) + previous + numbers(layer)) + scratch(layer))
        previous = numbers(layer)
    return worst


def scratch_of_this_processor() -> Scratch:
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return none
    return sums_in_float32 if torch.cpu._is_avx512_supported() else unfolded


@on_linux
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the kernels of oneDNN for x86 are those that are counted")
@pytest.mark.long
@pytest.mark.parametrize(
    ("instructions", "scratch"),
    [("DEFAULT", None), ("AVX512_CORE", sums_in_float32), ("AVX2", unfolded)],
    ids=["of this processor", "without AVX512-BF16", "without AVX512"],
)
def test_memory_of_a_tile_in_half_precision_is_that_of_a_process(instructions: str, scratch: Scratch | None) -> None:
    """Live tensors, and beside them what torch needs on processors without units for bfloat16."""
    spec, core_px = UNetSpec(width=16), 768
    own = scratch_of_this_processor()
    if own is unfolded:
        scratch = unfolded  # the most that this processor has
    found = measured(spec, core_px, "bfloat16", "mapped", ONEDNN_MAX_CPU_ISA=instructions)
    live = tile_bytes(spec, core_px, 2)
    assert_equal_within_two_percent(found, max(live, bytes_with_scratch(spec, core_px, scratch or own)))
    assert bytes_with_scratch(spec, core_px, none) <= live == tile_bytes(spec, core_px) // 2


@on_linux
@pytest.mark.long
def test_a_heap_that_keeps_freed_memory_is_within_its_factor() -> None:
    computed = tile_bytes(UNetSpec(width=16), 1024)
    assert computed < measured(UNetSpec(width=16), 1024, "float32", "heap") <= computed * HEAP_FACTOR


def test_a_layer_without_weights_costs_no_operation() -> None:
    assert Layer("pool 0", "max pooling", 2, 4, 4, 10).operations == 0
