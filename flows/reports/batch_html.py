"""report.html of a batch: results, outliers, failures and their causes on one page.

All content is read from OUT, so the page can be rebuilt at any time. It is self-contained and makes no network
requests. Thumbnails are few and small, so the page of a thousand slides stays small.
"""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image

from flows.batch.history import BatchHistory
from flows.batch.result_records import Record, read_record, run_settings, slide_stores
from flows.batch.status import SlideStatus, Status
from flows.reports.html_page import PAGE, Picture, count, render, short
from flows.reports.summary_markdown import MIN_SLIDES, outliers, span
from flows.reports.thumbnail import jpeg, thumbnail
from pipeline.errors import DamagedError
from pipeline.printable import printable
from pipeline.stage_table import STAGES
from pipeline.storage.atomic_files import digest, write_bytes
from pipeline.storage.layout import OVERVIEW
from pipeline.storage.slide_store import SlideStore

MAX_PICTURES, SIDE_PX = 60, 240
"""Number of thumbnails, those of outliers and flagged slides first, and their longer side in px: about 10 kB each."""

MEASURES = (
    ("objects_per_mm2", "Objects per mm\u00b2 of tissue"),
    ("mean_area_um2", "Mean object area, \u00b5m\u00b2"),
    ("covered", "Area fraction of objects in tissue"),
    ("tissue_mm2", "Tissue area, mm\u00b2"),
)
"""Measures that are compared across slides, with their titles."""


@dataclass(frozen=True, slots=True)
class Dot:
    """One slide in a dot strip: its position along the strip (0 to 1), its row, and whether it is an outlier."""

    key: str
    value: float
    x: float
    y: float
    is_outlier: bool


@dataclass(frozen=True, slots=True)
class DotStrip:
    """One measure of all slides of one model, in increasing order."""

    name: str
    dots: Sequence[Dot]
    low: float
    median: float
    high: float
    middle: float


def write_report(out: Path) -> Path:
    """Write ``report.html`` about all slides in ``out``.

    Args:
        out: Results folder.

    Returns:
        Path of the page.

    Raises:
        ConfigError: If the folder holds no results.
    """
    page = render("batch.html.j2", content_of(out))
    write_bytes(out / PAGE, page.encode())
    return out / PAGE


def content_of(out: Path) -> dict[str, Any]:
    """Return the variables of the template."""
    status = Status.of(out)
    records = {key: read_record(store, key) for store, key in _stores(out)}
    complete = {key: record for key, record in records.items() if record.state == "complete"}
    outlier_keys = {key for _, values in _values_by_model(complete) for key in outliers(values)}
    rows = [_row(slide, records.get(slide.key), slide.key in outlier_keys) for slide in status.slides]
    return {
        "title": printable(out.resolve().name),
        "lead": _lead(status),
        "marks": _marks(status, complete),
        "incomplete": [_incomplete(slide) for slide in status.slides if slide.state != "complete"],
        "warnings": list(_flags_and_warnings(complete)),
        "outliers": list(_outliers(complete)),
        "min_slides": MIN_SLIDES,
        "hidden_pictures": max(0, len(complete) - MAX_PICTURES),
        "strips": [strip for values in _values(complete).items() for strip in _strips(*values)],
        "slides": rows,
        "pictures": list(_pictures(out, rows, complete)),
        "stages": _stages(complete),
        "throughput": _throughput(complete),
        "configurations": _configurations(complete),
        "runs": _runs(out),
    }


def _stores(out: Path) -> Iterator[tuple[SlideStore, str]]:
    return ((store, store.root.relative_to(out).as_posix()) for store in slide_stores(out))


# ---- headline --------------------------------------------------------------------------------------------------------


def _lead(status: Status) -> str:
    done, requested = status.totals.get("complete", 0), len(status.slides)
    others = "".join(f", {number} {state}" for state, number in sorted(status.totals.items()) if state != "complete")
    when = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    return f"{done} of {requested} slides complete{others}. Written {when}."


def _marks(status: Status, complete: Mapping[str, Record]) -> list[tuple[str, str]]:
    tissue_mm2, objects = _total(complete, "tissue_mm2"), _total(complete, "objects")
    density = count(objects / tissue_mm2) if tissue_mm2 else "\u2013"
    return [
        (f"{len(complete)} / {len(status.slides)}", "slides complete"),
        (count(objects), "objects"),
        (short(tissue_mm2), "mm\u00b2 of tissue"),
        (density, "objects per mm\u00b2, all slides pooled"),
        (span(_total(complete, "seconds")), "computing time"),
    ]


def _total(complete: Mapping[str, Record], name: str) -> float:
    return float(sum(record.figures[name] for record in complete.values()))


# ---- attention -------------------------------------------------------------------------------------------------------


def _incomplete(slide: SlideStatus) -> dict[str, str]:
    columns = ("key", "state", "stage", "cause", "cure")
    return {name: printable(str(getattr(slide, name))) for name in columns}


def _flags_and_warnings(complete: Mapping[str, Record]) -> Iterator[tuple[str, list[str]]]:
    """Flags and warnings, each with its slides."""
    found: dict[str, list[str]] = defaultdict(list)
    for key, record in complete.items():
        warnings = [text.removeprefix(f"{record.plan['slide']}: ") for text in record.figures["warnings"]]
        for text in (*(f"flagged {flag}" for flag in record.figures["flags"]), *warnings):
            found[printable(text.replace("_", " "))].append(printable(key))
    yield from found.items()


def _outliers(complete: Mapping[str, Record]) -> Iterator[str]:
    """One line for each slide and measure far from the other slides of the same model."""
    names = dict(MEASURES)
    for (measure, model), values in _values_by_model(complete):
        for key, score in outliers(values).items():
            side = "above" if score > 0 else "below"
            text = f"{names[measure]} {short(values[key])}, far {side} the other slides of {model}"
            yield printable(f"{key}: {text} ({abs(score):.1f} deviations)")


# ---- across slides ---------------------------------------------------------------------------------------------------


def _values(complete: Mapping[str, Record]) -> dict[str, dict[str, dict[str, float]]]:
    """Value of each slide, by measure and model."""
    found: dict[str, dict[str, dict[str, float]]] = {name: defaultdict(dict) for name, _ in MEASURES}
    for key, record in complete.items():
        for name, value in _measures(record).items():
            if value is not None:
                found[name][record.figures["model"]][key] = value
    return found


def _values_by_model(complete: Mapping[str, Record]) -> Iterator[tuple[tuple[str, str], dict[str, float]]]:
    for measure, models in _values(complete).items():
        for model, values in models.items():
            yield (measure, model), values


def _measures(record: Record) -> dict[str, float | None]:
    rows = [row for row in record.rows if "class" in row]
    objects, area_mm2 = (sum(float(row[name] or 0) for row in rows) for name in ("count", "area_mm2"))
    tissue_mm2 = record.figures["tissue_mm2"]
    return {
        "objects_per_mm2": record.figures["objects_per_mm2"] if rows and tissue_mm2 else None,
        "mean_area_um2": 1e6 * area_mm2 / objects if objects else None,
        "covered": area_mm2 / tissue_mm2 if rows and tissue_mm2 else None,
        "tissue_mm2": tissue_mm2,
    }


def _strips(measure: str, models: Mapping[str, Mapping[str, float]]) -> Iterator[DotStrip]:
    title = dict(MEASURES)[measure]
    for model, values in models.items():
        name = title if len(models) == 1 else f"{title} ({printable(model)})"
        yield strip_of(name, values)


def strip_of(name: str, values: Mapping[str, float]) -> DotStrip:
    """Arrange slides along a line by value; close values are stacked."""
    ordered = sorted(values.items(), key=lambda pair: pair[1])
    low, high = ordered[0][1], ordered[-1][1]
    extent, far = high - low or 1.0, outliers(values)
    taken: Counter[int] = Counter()
    dots = []
    for key, value in ordered:
        x = (value - low) / extent
        column = round(60 * x)
        dots.append(Dot(printable(key), value, round(x, 4), min(taken[column], 5), key in far))
        taken[column] += 1
    median = (ordered[(len(ordered) - 1) // 2][1] + ordered[len(ordered) // 2][1]) / 2
    return DotStrip(name, dots, low, median, high, round((median - low) / extent, 4))


# ---- slides ----------------------------------------------------------------------------------------------------------


def _row(slide: SlideStatus, record: Record | None, is_outlier: bool) -> dict[str, Any]:  # noqa: FBT001  a column of the row
    figures = record.figures if record is not None else {}
    measures = _measures(record) if record is not None and record.state == "complete" else {}
    seam = (record.stages["predict"]["facts"].get("seam") or {}) if measures and record is not None else {}
    return {
        "key": printable(slide.key),
        "path": slide.key,
        "state": slide.state,
        "objects": figures.get("objects"),
        **{name: measures.get(name) for name, _ in MEASURES},
        "seam": seam.get("ratio"),
        "seconds": figures.get("seconds"),
        "flags": printable(", ".join(figures.get("flags", ()))),
        "is_outlier": is_outlier,
    }


def _pictures(
    out: Path, rows: Sequence[Mapping[str, Any]], complete: Mapping[str, Record]
) -> Iterator[tuple[Mapping[str, Any], Picture]]:
    """Thumbnails of slides, those of outliers and flagged slides first."""
    found = [row for row in rows if row["path"] in complete]
    ordered = sorted(found, key=lambda row: (not row["is_outlier"], not row["flags"]))
    for row in ordered[:MAX_PICTURES]:
        with suppress(DamagedError, OSError):
            yield (
                row,
                Picture(row["key"], row["key"], b"", jpeg=_jpeg(SlideStore(out / row["path"]), complete[row["path"]])),
            )


def _jpeg(store: SlideStore, record: Record) -> bytes:
    levels = record.stages["pyramid"]["facts"]["levels"]
    objects = f"labels/objects/{levels - 1}"
    tinted = objects if (store.zarr / objects).exists() else None
    names = record.plan["image"]["channels"]
    if (store.zarr / str(levels - 1)).exists():
        picture = Image.fromarray(thumbnail(store, names, str(levels - 1), tinted, (SIDE_PX, SIDE_PX)))
    else:  # the level was pruned; the overview shows the slide too
        picture = Image.open(store.root / OVERVIEW).convert("RGB")
        picture.thumbnail((SIDE_PX, SIDE_PX))
    return jpeg(picture, quality=80)


# ---- run details -----------------------------------------------------------------------------------------------------


def _stages(complete: Mapping[str, Record]) -> list[tuple[str, float, float]]:
    """Each stage with its seconds over all slides and their fraction."""
    seconds: Counter[str] = Counter()
    for record in complete.values():
        for stage, details in record.stages.items():
            seconds[stage] += sum(run["seconds"] for run in details["runs"])
    total = sum(seconds.values()) or 1.0
    return [(stage, seconds[stage], seconds[stage] / total) for stage in STAGES if stage in seconds]


def _throughput(complete: Mapping[str, Record]) -> list[tuple[str, str]]:
    """Throughput in the time spent in stages; stages of several slides may have run concurrently."""
    predicted = [record.stages["predict"] for record in complete.values()]
    megapixels = sum(stage["facts"]["pixels"] - stage["facts"]["skipped_pixels"] for stage in predicted) / 1e6
    seconds = sum(run["seconds"] for stage in predicted for run in stage["runs"])
    hours = _total(complete, "seconds") / 3600
    rates = [("network", f"{megapixels / seconds:.2f} megapixels of tissue per second")] if seconds else []
    tissue_mm2 = _total(complete, "tissue_mm2")
    rates += [("all stages", f"{short(tissue_mm2 / hours)} mm\u00b2 of tissue per hour")] if hours else []
    return rates


def _configurations(complete: Mapping[str, Record]) -> list[dict[str, Any]]:
    """Each distinct configuration: number of slides, model, device and all settings."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in complete.values():
        plan = record.plan
        groups[digest([plan["model"]["sha256"], plan["compute"], plan["config"]])].append(record)
    return [_configuration(records) for records in sorted(groups.values(), key=len, reverse=True)]


def _configuration(records: Sequence[Record]) -> dict[str, Any]:
    plan = records[0].plan
    model, compute = plan["model"], plan["compute"]
    return {
        "slides": len(records),
        "model": printable(f"{model['name']} ({model['sha256'][:12]})"),
        "compute": f"{compute['precision']} on {compute['device']}, tiles of {compute['tile_px']} px",
        "threshold": f"{plan['threshold']:g}; minimum object area {plan.get('min_area_um2', 0):g} \u00b5m\u00b2",
        "settings": [(name, printable(str(value))) for name, value in run_settings(plan["config"])],
    }


def _runs(out: Path) -> list[dict[str, str]]:
    """The last runs: start, duration, command and end of each."""
    rows = []
    for run in BatchHistory.read(out).runs()[-5:]:
        end = "not ended: running or killed" if run.exit_code is None else f"exit {run.exit_code}"
        words = shlex.join(["overtile", *run.began["command"][1:]])
        began = datetime.fromisoformat(run.began["when"])
        took = "" if run.ended is None else span((datetime.fromisoformat(run.ended["when"]) - began).total_seconds())
        when = began.astimezone().strftime("%Y-%m-%d %H:%M")
        rows.append({"when": when, "took": took, "end": end, "command": printable(words)})
    return rows
