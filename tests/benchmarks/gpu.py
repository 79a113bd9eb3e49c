"""Compare the CUDA path with the CPU on a machine with a GPU; write gpu.json.

Exit code 3 means that there is no device and nothing was verified, 1 that a check failed, 0 that all passed.

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
from numpy.typing import NDArray
from support.machine import describe_machine
from support.tissue import Tissue

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
    """A network file and the tissue that it is applied to, image (c, y, x)."""

    weights: Path
    image: NDArray[np.uint8]

    def network(self, device: str, precision: str) -> Predictor:
        """Load the network on a device as the predict stage does."""
        return load_networks((Weights(self.weights, sha256(self.weights)),), device, precision, "none")

    def predict(self, network: Predictor, side_px: int) -> NDArray[np.uint8]:
        """Return probability bytes (k, y, x) of the core in tiles of this side."""
        region = MirroredRegion.read_around(self.image, network.grid(CORE, side_px))
        return network.probability(region, CORE, side_px)


def differences(found: NDArray[np.uint8], expected: NDArray[np.uint8]) -> dict[str, Any]:
    """Compare two outputs: largest difference in grey levels, pixels ``off`` by more than one, pixels that differ."""
    levels = np.abs(found.astype(np.int16) - expected)
    return {
        "grey_levels": int(levels.max()),
        "off": int(np.count_nonzero(levels > 1)),
        "different": int(np.count_nonzero(levels)),
        "of": levels.size,
    }


def agreement(subject: Subject, device: str) -> dict[str, Any]:
    """Compare fp32 on the device with fp32 on the CPU: at most one grey level. fp16 is reported only."""
    expected = subject.predict(subject.network("cpu", "fp32"), 1024)
    found = differences(subject.predict(subject.network(device, "fp32"), 1024), expected)
    half = differences(subject.predict(subject.network(device, "fp16"), 1024), expected)
    return {"passed": found["off"] == 0, "fp32": found, "fp16": half}


def seams(subject: Subject, device: str) -> dict[str, Any]:
    """Compare every tile side with the largest at both precisions: differences must not exceed rounding.

    A seam would show as tens of grey levels. Another input size may sum in another order, which can change a byte by
    one; the number of such bytes is reported.
    """
    found: dict[str, Any] = {}
    for precision in ("fp32", "fp16"):
        network = subject.network(device, precision)
        whole = subject.predict(network, SIDES_PX[-1])
        found[precision] = {str(side): differences(subject.predict(network, side), whole) for side in SIDES_PX[:-1]}
    return {"passed": sum(one["off"] for sides in found.values() for one in sides.values()) == 0, **found}


def out_of_memory(subject: Subject) -> dict[str, Any]:
    """Limit memory to half of what the largest tile needs: it is halved, with the bytes of the smaller tile."""
    network = replace(subject.network("cuda", "fp16"), largest_px=None)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    subject.predict(network, SIDES_PX[-1])
    needed, total = torch.cuda.max_memory_allocated(), torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.5 * needed / total)
    try:
        found = subject.predict(network, SIDES_PX[-1])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    halved_to = network.largest_px
    if halved_to is None:
        return {"passed": False, "halved_to_px": None}
    unforced = differences(found, subject.predict(network, halved_to))
    return {"passed": unforced["different"] == 0, "halved_to_px": halved_to, **unforced}


def overflow(subject: Subject, device: str) -> dict[str, Any]:
    """Check that logits beyond fp16 raise an error."""
    network = subject.network(device, "fp16")
    (member,) = network.members
    huge = replace(member, forward=lambda x_NCHW: member.forward(x_NCHW).mul(torch.finfo(torch.float16).max))
    broken = replace(network, members=(huge,))
    try:
        subject.predict(broken, 1024)
    except ModelError as error:
        return {"passed": True, "message": str(error)}
    return {"passed": False, "message": "nothing"}


def speed(folder: Path, subject: Subject, device: str) -> dict[str, Any]:
    """Measure MPx per wall second of the predict stage with two dask workers on one device; reported, without a bar."""
    work, section = make_slide(folder)
    rates = {}
    trained = (Weights(subject.weights, sha256(subject.weights)),)
    for name, weights in (("width 16", section.weights), (subject.weights.stem, trained)):
        on_device = replace(section, weights=weights, device=device, precision="fp16", tile_px=2048)
        with local_cluster(2, threads=THREADS) as cluster:
            rounds = [wall_seconds(work, on_device, cluster, BLOCKS**2) for _ in range(ROUNDS + 1)]
            seconds = rounds[1:]  # the first round warms up
        rates[name] = work.shape_yx[0] * work.shape_yx[1] / 1e6 / statistics.median(seconds)
    return {"passed": True, "mpx_per_s": rates}


def describe_device() -> dict[str, Any]:
    """Return name, memory and library versions of the device."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def report(checks: dict[str, dict[str, Any]]) -> Iterable[str]:
    """Yield one line per check."""
    for name, check in checks.items():
        figures = {key: value for key, value in check.items() if key != "passed"}
        yield f"{'passed' if check['passed'] else 'FAILED'}  {name}: {json.dumps(figures)}"


def main() -> int:
    """Run every check; return 0 if all passed, 1 if one failed, 3 without a device."""
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
