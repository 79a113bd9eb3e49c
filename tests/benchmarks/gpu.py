"""The CUDA path against the CPU, on a machine that has a device: writes gpu.json.

The one decision made here: nothing is called verified that did not run. Without a device this says so and ends with 3;
1 means that a check failed, 0 that every one passed.

    python tests/benchmarks/gpu.py
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_predict import BLOCKS, make_slide, wall_seconds
from machine import describe_machine
from numpy.typing import NDArray
from tissue import Tissue

from pipeline.errors import ModelError
from pipeline.execution.local_cluster import local_cluster
from pipeline.geometry import Box
from pipeline.inference.predictor import MirroredRegion, Predictor, load_networks
from unet_core.model_file.header import Weights, resolve, sha256

RESULT = Path(__file__).parents[2] / "gpu.json"
EXIT_FAILED, EXIT_NOTHING_VERIFIED = 1, 3
CORE = Box(1024, 1024, 1024 + 2048, 1024 + 2048)
SIDES_PX = (256, 384, 512, 1024, 2048)
THREADS, ROUNDS = 2, 5
"""Threads of a worker: one computes while the other reads and writes."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A network file and the tissue it is asked about, image (c, y, x)."""

    weights: Path
    image: NDArray[np.uint8]

    def network(self, device: str, precision: str) -> Predictor:
        """The network on a device, as the predict stage loads it."""
        return load_networks((Weights(self.weights, sha256(self.weights)),), device, precision, "none")

    def answer(self, network: Predictor, side_px: int) -> NDArray[np.uint8]:
        """Probability bytes (k, y, x) of the core in tiles of this side."""
        region = MirroredRegion.read_around(self.image, network.grid(CORE, side_px))
        return network.probability(region, CORE, side_px)


def apart(found: NDArray[np.uint8], expected: NDArray[np.uint8]) -> dict[str, Any]:
    """How far two answers are apart: the most grey levels, pixels ``off`` by more than one, and that differ at all."""
    levels = np.abs(found.astype(np.int16) - expected)
    return {
        "grey_levels": int(levels.max()),
        "off": int(np.count_nonzero(levels > 1)),
        "different": int(np.count_nonzero(levels)),
        "of": levels.size,
    }


def agreement(subject: Subject, device: str) -> dict[str, Any]:
    """The device at fp32 against the CPU at fp32: at most one grey level. fp16 is reported beside it."""
    expected = subject.answer(subject.network("cpu", "fp32"), 1024)
    found = apart(subject.answer(subject.network(device, "fp32"), 1024), expected)
    half = apart(subject.answer(subject.network(device, "fp16"), 1024), expected)
    return {"passed": found["off"] == 0, "fp32": found, "fp16": half}


def seams(subject: Subject, device: str) -> dict[str, Any]:
    """Every tile side against the largest, at both precisions: no pixel is off by more than rounding.

    A seam shows as tens of grey levels. Another input size may sum in another order, which can tip a byte by one; how
    many did is reported.
    """
    found: dict[str, Any] = {}
    for precision in ("fp32", "fp16"):
        network = subject.network(device, precision)
        whole = subject.answer(network, SIDES_PX[-1])
        found[precision] = {str(side): apart(subject.answer(network, side), whole) for side in SIDES_PX[:-1]}
    return {"passed": sum(one["off"] for sides in found.values() for one in sides.values()) == 0, **found}


def out_of_memory(subject: Subject) -> dict[str, Any]:
    """Memory for half of what the largest tile takes: it is halved, and the bytes are those of the smaller tile."""
    network = replace(subject.network("cuda", "fp16"), largest_px=None)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    subject.answer(network, SIDES_PX[-1])
    needed, total = torch.cuda.max_memory_allocated(), torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.5 * needed / total)
    try:
        found = subject.answer(network, SIDES_PX[-1])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    halved_to = network.largest_px
    if halved_to is None:
        return {"passed": False, "halved_to_px": None}
    unforced = apart(found, subject.answer(network, halved_to))
    return {"passed": unforced["different"] == 0, "halved_to_px": halved_to, **unforced}


def overflow(subject: Subject, device: str) -> dict[str, Any]:
    """Logits beyond fp16 are an error, never background."""
    network = subject.network(device, "fp16")
    (member,) = network.members
    huge = replace(member, forward=lambda x_NCHW: member.forward(x_NCHW).mul(torch.finfo(torch.float16).max))
    broken = replace(network, members=(huge,))
    try:
        subject.answer(broken, 1024)
    except ModelError as error:
        return {"passed": True, "said": str(error)}
    return {"passed": False, "said": "nothing"}


def speed(folder: Path, subject: Subject, device: str) -> dict[str, Any]:
    """MPx per wall second of the predict stage with two dask workers on one device. There is no bar: it is reported."""
    work, section = make_slide(folder)
    rates = {}
    trained = (Weights(subject.weights, sha256(subject.weights)),)
    for name, weights in (("width 16", section.weights), (subject.weights.stem, trained)):
        asked = replace(section, weights=weights, device=device, precision="fp16", tile_px=2048)
        with local_cluster(2, threads=THREADS) as cluster:
            seconds = [wall_seconds(work, asked, cluster, BLOCKS**2) for _ in range(ROUNDS + 1)][
                1:
            ]  # the first warms up
        rates[name] = work.shape_yx[0] * work.shape_yx[1] / 1e6 / statistics.median(seconds)
    return {"passed": True, "mpx_per_s": rates}


def describe_device() -> dict[str, Any]:
    """Which device, with what."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def report(checks: dict[str, dict[str, Any]]) -> Iterable[str]:
    """One line a check."""
    for name, check in checks.items():
        figures = {key: value for key, value in check.items() if key != "passed"}
        yield f"{'passed' if check['passed'] else 'FAILED'}  {name}: {json.dumps(figures)}"


def main() -> int:
    """Run every check; 0 when all passed, 1 when one failed, 3 when there is no device."""
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing was verified")
        return EXIT_NOTHING_VERIFIED
    subject = Subject(resolve("nuclei"), Tissue().cut(Box(0, 0, 4096, 4096)).transpose(2, 0, 1).copy())
    checks = {
        "agreement with the CPU": agreement(subject, "cuda"),
        "seams": seams(subject, "cuda"),
        "out of memory": out_of_memory(subject),
        "overflow": overflow(subject, "cuda"),
    }
    with tempfile.TemporaryDirectory() as folder:
        checks["speed"] = speed(Path(folder), subject, "cuda")
    content = {"machine": describe_machine(), "device": describe_device(), "checks": checks}
    RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print("\n".join(report(checks)))
    print(f"written: {RESULT}")
    return 0 if all(check["passed"] for check in checks.values()) else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
