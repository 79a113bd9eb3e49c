"""Compare the predict stage with MONAI's sliding window.

Both use the same tissue and weights; the unit is MPx per CPU second. MONAI runs under its best conditions: pixels come
from memory and results are discarded, while overtile runs the predict stage from zarr to zarr. MONAI needs outputs as
large as its windows, so it uses the same weights with padded convolutions; windows of 512 overlap by a quarter and are
averaged. Each side is a process with one thread; rounds are interleaved. MONAI runs both with overtile's allocator
settings and, as its users run it, without.

    python tests/benchmarks/bench_monai.py
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from bench_predict import BLOCK_PX, INNER, make_slide
from torch import Tensor

from pipeline.execution.blocks import StageContext
from pipeline.execution.local_cluster import ENVIRONMENT
from pipeline.geometry import Box
from pipeline.inference.predictor import activate, resolve_precision
from pipeline.stages.predict import PredictInputs, predict_block
from unet_core.model_file import checkpoint
from unet_core.networks.unet import UNet
from unet_core.networks.whole_pass import to_bytes, to_input

ROUNDS, WINDOW_PX, OVERLAP, WINDOWS_A_CALL = 3, 512, 0.25, 4
AREA = Box(BLOCK_PX, BLOCK_PX, 3 * BLOCK_PX, 3 * BLOCK_PX)
"""Area processed by both sides: the slide's four inner blocks."""


class Build(Protocol):
    """Prepares one side."""

    def __call__(self, work: StageContext, section: PredictInputs) -> Callable[[], object]:
        """Return a function that processes ``AREA`` once."""
        ...


def ours(precision: str, work: StageContext, section: PredictInputs) -> Callable[[], object]:
    """Return a call of the predict stage over its blocks."""
    at_precision = replace(section, precision=resolve_precision(precision, "cpu"))
    return lambda: [predict_block(work, at_precision, index) for index in INNER]


def monai(work: StageContext, section: PredictInputs) -> Callable[[], object]:
    """Return a call of MONAI's sliding window over the image in memory, to bytes."""
    from monai.inferers import sliding_window_inference

    torch.set_num_threads(1)
    trained = checkpoint.load(section.weights[0].path)
    network = UNet(trained.spec.model_copy(update={"padding": "same"})).eval()
    network.load_state_dict(trained.state_dict())
    pixels = torch.from_numpy(work.store.read("0")[:, *AREA.slices])

    def once() -> Tensor:
        with torch.inference_mode():
            x_NCHW = to_input(pixels, trained.spec, torch.float32).contiguous()
            logits = sliding_window_inference(x_NCHW, WINDOW_PX, WINDOWS_A_CALL, network, overlap=OVERLAP)
            assert isinstance(logits, Tensor)
            return to_bytes(activate(logits[0], trained.spec, torch.float32))

    return once


SIDES: dict[str, tuple[Build, bool]] = {
    "ours_fp32": (partial(ours, "fp32"), True),
    "monai": (monai, True),
    "ours_auto": (partial(ours, "auto"), True),
    "monai_as_shipped": (monai, False),
}
"""How each side is built, and whether its process has overtile's allocator settings."""


@dataclass(frozen=True, slots=True)
class Side:
    """The process of one side, which runs once per input line and prints its CPU seconds."""

    process: subprocess.Popen[str]

    def seconds(self) -> float:
        """Return the CPU seconds of one run."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


@contextmanager
def started(name: str, folder: Path) -> Iterator[Side]:
    """Start a side's process; kill it at the end of the context."""
    tuned = SIDES[name][1]
    plain = {key: value for key, value in os.environ.items() if key not in ENVIRONMENT}
    environment = {**plain, **ENVIRONMENT} if tuned else plain
    command = [sys.executable, __file__, name, str(folder)]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Side(process)
        finally:
            process.kill()


def serve(name: str, folder: Path) -> None:
    """Run a side once per input line."""
    folder.mkdir()
    work, section = make_slide(folder)
    run = SIDES[name][0](work, section)
    for _ in sys.stdin:
        start = time.process_time()
        run()
        print(time.process_time() - start, flush=True)


def measure_monai(rounds: int = ROUNDS) -> dict[str, Any]:
    """Measure medians in MPx per CPU second and medians of the rounds' ratios."""
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        sides = {name: stack.enter_context(started(name, Path(folder, name))) for name in SIDES}
        for number in range(rounds + 1):  # the first round warms up
            for name, side in sides.items():
                spent = side.seconds()
                seconds[name].extend([spent] if number else [])
    rates = {f"{name}_mpx_per_cpu_s": AREA.area_px / 1e6 / statistics.median(spent) for name, spent in seconds.items()}
    return {
        "rounds": rounds,
        "auto": resolve_precision("auto", "cpu"),
        **rates,
        **{
            f"{mine}_over_{theirs}": statistics.median(
                slow / fast for slow, fast in zip(seconds[theirs], seconds[mine], strict=True)
            )
            for mine in ("ours_fp32", "ours_auto")
            for theirs in ("monai", "monai_as_shipped")
        },
    }


if __name__ == "__main__":
    if len(sys.argv) == 3:
        serve(sys.argv[1], Path(sys.argv[2]))
    else:
        print(json.dumps(measure_monai(*map(int, sys.argv[1:])), indent=1))
