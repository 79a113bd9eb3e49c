"""Estimate run time, disk space and memory of a batch (`--dry-run`). Nothing is written to the output folder.

Windows of as many slides as possible are segmented for about ten seconds and extrapolated. A slide without sample gets
the mean rates of the sampled ones.
"""

from __future__ import annotations

import os
import resource
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from flows.batch.batch import Batch, BatchRequest, plan_batch
from flows.batch.cost_estimate import (
    LEVEL_0,
    OUTSIDE_BYTES,
    CostEstimate,
    Extent,
    Rates,
    Total,
    WindowCost,
    price,
    total,
)
from flows.batch.cost_probe import TissueCells, extent, look, sample, window
from pipeline.config import CELL_PX, OutputsSection
from pipeline.errors import OvertileError
from pipeline.execution.local_cluster import resolve_workers
from pipeline.geometry import Box
from pipeline.printable import printable
from pipeline.redaction import redact_error
from pipeline.runs.plan import SlidePlan
from pipeline.runs.slide_run import SlideRun, slide_root
from pipeline.storage.slide_store import SlideStore
from unet_core.networks.model_summary import HEAP_FACTOR, parameters, tile_bytes

BUDGET_S = 10.0
DEVICE_BYTES = 600_000_000
"""GPU memory that CUDA and cuDNN take."""


@dataclass(slots=True)
class BatchEstimate:
    """The cost of each slide to be processed, by key, and the data of the estimate."""

    batch: Batch
    looks: dict[str, TissueCells] = field(default_factory=dict)
    extents: dict[str, Extent] = field(default_factory=dict)
    prices: dict[str, CostEstimate] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    sampled: int = 0
    sampled_s: float = 0.0

    @property
    def workers(self) -> int:
        """Number of worker processes."""
        cluster = self.batch.request.config.cluster
        return 1 if cluster.kind == "serial" else resolve_workers(cluster.workers)

    @property
    def total(self) -> Total:
        """The cost of all slides to be processed."""
        return total(list(self.prices.values()), self.workers)


def dry_run(request: BatchRequest, console: Console) -> int:
    """Estimate a batch and print the estimate.

    Returns:
        Exit code 0, or that of a run when no slide can be planned.
    """
    batch = plan_batch(request, writing=False)
    if not batch.plans:
        _show_slides(BatchEstimate(batch), console)
        return batch.exit_code()
    quote = estimate_batch(batch)
    _show_slides(quote, console)
    if quote.prices:
        _show_total(quote, console)
    return 0


def estimate_batch(batch: Batch) -> BatchEstimate:
    """Measure the extent of every slide, sample some for about ten seconds, and estimate all."""
    quote = BatchEstimate(batch)
    todo = [plan for key, plan in batch.plans.items() if not _run(batch, plan).is_complete()]
    quote.notes.update({key: "complete already" for key in batch.plans})
    for plan in todo:
        quote.looks[plan.key] = look(plan)
        quote.extents[plan.key] = extent(plan, quote.looks[plan.key].cells, _run(batch, plan).store)
        quote.notes[plan.key] = "; ".join(filter(None, [*plan.warnings, quote.looks[plan.key].guessed]))
    rates = _rates(quote, todo)
    for plan in todo:
        if plan.key in rates:
            quote.prices[plan.key] = price(quote.extents[plan.key], rates[plan.key], _dropped(plan.config.outputs))
    return quote


def _run(batch: Batch, plan: SlidePlan) -> SlideRun:
    return SlideRun(plan, SlideStore(slide_root(batch.request.out, plan.key)))


def _dropped(outputs: OutputsSection) -> list[str]:
    return [name for name, key in LEVEL_0.items() if getattr(outputs, key) == "drop"]


def _rates(quote: BatchEstimate, todo: list[SlidePlan]) -> dict[str, Rates]:
    """Rates of every slide: of its own windows, or of all slides of its model where it was not sampled."""
    windows: dict[tuple[str, bool], list[WindowCost]] = {}  # by slide or model, and by kind: tissue or glass
    began, warm = 0.0, set()
    for plan in _spread(todo):
        model, sampled = plan.model.sha256, 0
        if model not in warm:
            _tried(quote, plan, _one_cell(plan, quote.looks[plan.key]))  # load what a run loads once
            warm.add(model)
        began = began or time.perf_counter()
        for kind in (True, False):
            over = time.perf_counter() - began > BUDGET_S
            if over and (model, kind) in windows:
                continue
            seen = _tried(quote, plan, window(plan, quote.looks[plan.key].cells, tissue=kind))
            sampled += len(seen)
            for owner in (plan.key, model) if seen else ():
                windows.setdefault((owner, kind), []).extend(seen)
        quote.sampled += bool(sampled)
    quote.sampled_s = time.perf_counter() - began
    found = {}
    for plan in todo:
        kinds = [
            windows.get((plan.key, kind)) or windows.get((plan.model.sha256, kind)) or [] for kind in (True, False)
        ]
        if any(kinds):
            found[plan.key] = Rates.of(*kinds)
    return found


def _one_cell(plan: SlidePlan, seen: TissueCells) -> Box | None:
    """A cell that the network computes, if there is one."""
    cells = np.argwhere(seen.cells if seen.cells.any() else ~seen.cells)
    row, col = (int(number) * CELL_PX for number in cells[len(cells) // 2])
    return Box(row, col, row + CELL_PX, col + CELL_PX).intersect(Box.of_shape(plan.shape_yx))


def _tried(quote: BatchEstimate, plan: SlidePlan, box: Box | None) -> list[WindowCost]:
    """Segment a window; empty when there is none or when it fails, which is noted."""
    try:
        return [] if box is None else [sample(plan, box)]
    except OvertileError as error:
        quote.notes[plan.key] = f"a window of it cannot be segmented: {redact_error(error, plan.alias)}"
        return []


def _spread(todo: list[SlidePlan]) -> Iterator[SlidePlan]:
    """All slides in bisection order: the middle, the quarters, the eighths, and so on."""
    step = len(todo)
    seen: set[int] = set()
    while step:
        for number in range(step // 2, len(todo), step):
            if number not in seen:
                seen.add(number)
                yield todo[number]
        step //= 2
    yield from (plan for number, plan in enumerate(todo) if number not in seen)


# ---- output ----------------------------------------------------------------------------------------------------------


def _show_slides(quote: BatchEstimate, console: Console) -> None:
    columns = ("image px", "um/px", "tissue", "blocks", "calls", "min", "GB", Column("note", overflow="fold"))
    table = Table(Column("slide", overflow="fold"), *columns, title="Estimate")
    share = quote.workers
    for outcome in quote.batch.outcomes:
        plan = quote.batch.plans.get(outcome.key)
        name = escape(printable(outcome.key))
        if plan is None:
            table.add_row(name, *[""] * 7, f"[red]{escape(printable(outcome.cause))}[/]")
            continue
        height, width = plan.shape_yx
        size = (f"{width} x {height}", f"{plan.resolution.mpp:g}")
        cells = ["", str(plan.blocks), "", "", ""]
        if outcome.key in quote.prices:
            work, cost = quote.extents[outcome.key], quote.prices[outcome.key]
            cells[0], cells[2] = f"{work.tissue_share:.0%}", str(work.calls)
            cells[3:] = [f"{cost.seconds / share / 60:.1f}", f"{cost.stays / 1e9:.2f}"]
        table.add_row(name, *size, *cells, escape(printable(quote.notes.get(outcome.key, ""))))
    console.print(table)


def _show_total(quote: BatchEstimate, console: Console) -> None:
    batch_total, plan = quote.total, quote.batch.plans[next(iter(quote.prices))]
    compute = plan.compute
    outputs = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in batch_total.sizes.items())
    lines = [
        f"time: {batch_total.seconds / 3600:.2f} h for {len(quote.prices)} slides, {quote.workers} workers on "
        f"{compute.device} in {compute.precision}, tiles of {compute.tile_px} px "
        f"({quote.sampled} slides sampled for {quote.sampled_s:.0f} s)",
        f"disk: {batch_total.stays / 1e9:.2f} GB when complete, {batch_total.at_most / 1e9:.2f} GB at most during the "
        f"run ({outputs})",
        *_memory(quote, plan),
        *_disk(quote.batch.request.out, batch_total),
    ]
    for line in lines:
        console.print(escape(printable(line)), soft_wrap=True, highlight=False)


def _memory(quote: BatchEstimate, plan: SlidePlan) -> Iterator[str]:
    """Memory of the run. The sample ran in this process as in a worker, so the peak here is a worker's."""
    worker = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    needed = worker * quote.workers + OUTSIDE_BYTES
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield f"memory: {needed / 1e9:.1f} GB ({quote.workers} workers of {worker / 1e9:.1f} GB, and the command itself)"
    if needed > available:
        yield f"warning: this machine has {available / 1e9:.1f} GB. Use fewer cluster.workers, or a smaller tiles.block"
    if plan.compute.device == "cuda":
        size = 4 if plan.compute.precision == "fp32" else 2
        tile = max(tile_bytes(spec, plan.compute.tile_px, size) for spec in plan.model.specs)
        weights = sum(parameters(spec) for spec in plan.model.specs) * size
        gpu = tile * HEAP_FACTOR + weights + DEVICE_BYTES
        yield f"GPU memory: {gpu / 1e9:.1f} GB"


def _disk(out: Path, batch_total: Total) -> Iterator[str]:
    existing = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    yield f"free on the disk of {out}: {free / 1e9:.1f} GB"
    if batch_total.at_most > free:
        yield (
            f"warning: not enough disk space: {batch_total.at_most / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are "
            "free. Choose another --out, drop arrays (outputs.image=drop), or segment fewer slides at a time"
        )
