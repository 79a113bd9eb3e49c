"""The doctor command: versions, memory, devices and models of this machine, and checks with remedies."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from flows.proxies import proxies_of, unusable
from pipeline.errors import OvertileError
from pipeline.storage.manifest import PACKAGES, package_version

CUDA_VERIFIED = "never"
"""Date and device of the last successful ``make gpu``."""


def examine(console: Console) -> int:
    """Print facts and problems.

    Returns:
        Exit code 0 when overtile can run on this machine, else 1.
    """
    table = Table("item", "value", title="overtile doctor")
    for name, found in _facts():
        table.add_row(name, found)
    faults = list(_faults())
    console.print(table)
    for fault in faults:
        console.print(f"[red]problem:[/] {fault}")
    console.print("[green]ready[/]" if not faults else "[red]not ready[/]")
    return 1 if faults else 0


def _facts() -> Iterator[tuple[str, str]]:
    import torch

    from pipeline.inference.predictor import resolve_device, resolve_precision
    from unet_core.model_file.header import WEIGHTS

    device = resolve_device("auto")
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    for package in PACKAGES:
        yield package, package_version(package) or "missing"
    yield "cores", str(len(os.sched_getaffinity(0)))
    yield "memory", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    yield "free in temporary folder", f"{shutil.disk_usage(tempfile.gettempdir()).free / 2**30:.1f} GiB"
    yield "CUDA", torch.cuda.get_device_name() if device == "cuda" else "none"
    yield "CUDA path last verified", CUDA_VERIFIED
    yield "device and precision for 'auto'", f"{device}, {resolve_precision('auto', device)}"
    yield "built-in models", ", ".join(sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))) or "none"
    yield "proxies", _proxies()
    yield "Prefect server", os.environ.get("PREFECT_API_URL", "not set: a temporary server is started for each run")


def _proxies() -> str:
    """Names of the variables; their values may contain passwords."""
    ignored = unusable(os.environ)
    names = [f"{name} (cannot be used, ignored)" if name in ignored else name for name in proxies_of(os.environ)]
    return f"{', '.join(names)}; not used for this machine" if names else "none"


def _faults() -> Iterator[str]:
    for package in PACKAGES:
        if package_version(package) is None:
            yield f"{package} is not installed. Install overtile with pip, through its constraints file"
    folder = Path(tempfile.gettempdir())
    if not os.access(folder, os.W_OK):
        yield f"{folder} is not writable. Set TMPDIR to a writable folder"
    if shutil.disk_usage(folder).free < 2**30:
        yield f"less than 1 GiB is free in {folder}. Free disk space or set TMPDIR"
    yield from _server_faults()


def _server_faults() -> Iterator[str]:
    """Start a Prefect server as a run does, or reach the one of the environment."""
    from flows.prefect_server import Server, used

    try:
        with used(Server.start()):
            pass
    except OvertileError as error:
        yield str(error)
