"""What a batch leaves in OUT for people and scripts: batch.json, summary.md, failures.csv, history.jsonl.

The one decision made here: these files are rebuilt from the slide folders each time and written atomically; nothing
reads them to decide what is done.
"""

from __future__ import annotations

import csv
import getpass
import io
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.batch import Batch, Outcome
from flows.plain import printable
from pipeline.errors import DamagedError
from pipeline.files import append_json, read_json, write_bytes, write_json
from pipeline.manifest import read_manifest
from pipeline.slide_run import SlideRun
from pipeline.store import SlideStore


def write_batch_files(batch: Batch) -> None:
    """Rebuild the batch's files from the slide folders below OUT and note this run in the history."""
    out = batch.request.out
    slides = [slide_record(store) for store in slide_stores(out)]
    outcomes = [_record(outcome) for outcome in batch.outcomes]
    write_json(out / "batch.json", {"slides": slides, "run": {"exit_code": batch.exit_code(), "outcomes": outcomes}})
    write_bytes(out / "summary.md", summary_markdown(batch, slides).encode())
    write_bytes(out / "failures.csv", _failures_csv(batch.outcomes).encode())
    _append_history(batch)


def slide_stores(out: Path) -> Iterator[SlideStore]:
    """Every slide folder below ``out``, complete or not, in order of key."""
    for current, folders, _ in os.walk(out):
        here = Path(current)
        if here.suffix == ".zarr" or here.name == ".work":
            folders.clear()
            continue
        folders.sort()
        if ".work" in folders or (here / "manifest.json").exists():
            yield SlideStore(here)


def slide_record(store: SlideStore) -> dict[str, Any]:
    """What is known of one slide folder: state, counts and figures, or the cause of its failure."""
    try:
        manifest = read_manifest(store)
    except DamagedError as error:
        return {"folder": store.root.name, "state": "damaged", "cause": str(error)}
    if manifest is None:
        failure = store.work / "failure.json"
        cause = read_json(failure) if failure.exists() else {}
        return {"folder": store.root.name, "state": "incomplete", **cause}
    return {"folder": store.root.name, "state": "complete", "finished": manifest["finished"], **figures(manifest)}


def figures(manifest: dict[str, Any]) -> dict[str, Any]:
    """The numbers people ask for first: tissue, objects, objects per mm2, area by class."""
    plan, stages = manifest["plan"], manifest["stages"]
    tissue_mm2 = stages["tissue"]["facts"]["tissue_px"] * plan["image"]["mpp"] ** 2 / 1e6
    objects = stages.get("label", {}).get("facts", {}).get("objects", 0)
    return {
        "key": plan["key"],
        "model": plan["model"]["name"],
        "mpp": plan["image"]["mpp"],
        "tissue_mm2": round(tissue_mm2, 4),
        "objects": objects,
        "objects_per_mm2": round(objects / tissue_mm2, 1) if tissue_mm2 else 0.0,
        "seconds": round(sum(run["seconds"] for stage in stages.values() for run in stage["runs"]), 1),
        "warnings": plan["image"]["warnings"],
    }


def slide_markdown(run: SlideRun) -> str:
    """A slide's figures as a table, for Prefect's artifact page."""
    manifest = read_manifest(run.store)
    assert manifest is not None, "written just before"
    rows = [f"| {name} | {_cell(value)} |" for name, value in figures(manifest).items()]
    return "\n".join([f"# {_cell(run.plan.key)}", "", "| | |", "|---|---|", *rows])


def summary_markdown(batch: Batch, slides: list[dict[str, Any]]) -> str:
    """The batch on a page: what is complete, what is not and why."""
    known = {slide.get("key"): slide for slide in slides}
    lines = [
        f"# {batch.request.out.name}",
        "",
        f"{sum(outcome.as_asked for outcome in batch.outcomes)} of {len(batch.outcomes)} slides complete.",
        "",
        "| slide | state | objects | per mm2 | tissue mm2 | cause |",
        "|---|---|---:|---:|---:|---|",
    ]
    for outcome in batch.outcomes:
        found = known.get(outcome.key, {})
        numbers = [found.get(name, "") for name in ("objects", "objects_per_mm2", "tissue_mm2")]
        cells = [outcome.key, outcome.state, *numbers, outcome.cause]
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    """Text that stays text in a Markdown table: no markup either."""
    return (
        printable(str(value))
        .replace("&", "&amp;")
        .replace("<", "&lt;")
        .replace(">", "&gt;")
        .replace("|", "\\|")
        .replace("`", "'")
    )


def _record(outcome: Outcome) -> dict[str, Any]:
    return {**asdict(outcome), "slide": str(outcome.slide), "seconds": round(outcome.seconds, 2)}


def _failures_csv(outcomes: list[Outcome]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["slide", "path", "state", "stage", "cause"])
    for outcome in outcomes:
        if not outcome.as_asked:
            cells = (outcome.key, str(outcome.slide), outcome.state, outcome.stage, outcome.cause)
            writer.writerow([_inert(printable(cell)) for cell in cells])
    return text.getvalue()


def _inert(cell: str) -> str:
    """Text that a spreadsheet does not take for a formula."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@")) else cell


def _append_history(batch: Batch) -> None:
    line = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "who": _user(),
        "host": socket.gethostname(),
        "command": sys.argv,
        "models": [f"{one.model.name} {one.model.sha256[:12]}" for one in batch.equipment.values()],
        "force": list(batch.request.force) or batch.request.force_all,
        "exit_code": batch.exit_code(),
    }
    append_json(batch.request.out / "history.jsonl", line)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
