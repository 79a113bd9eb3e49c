"""report.html: a batch on one page, for whoever was not there: what there is, what stands out, what failed and why.

The one decision made here: all of it is read from OUT, so the page can be made again at any time and says the same; and
it asks nothing of any network, pictures included. Those are few and small: the page of a thousand slides stays a page.
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
from flows.reports.summary_markdown import FEWEST, outliers, span
from flows.reports.thumbnail import jpeg, thumbnail
from pipeline.errors import DamagedError
from pipeline.printable import printable
from pipeline.stage_table import STAGES
from pipeline.storage.atomic_files import digest, write_bytes
from pipeline.storage.layout import OVERVIEW
from pipeline.storage.slide_store import SlideStore

PICTURES, SIDE_PX = 60, 240
"""Slides shown in small, those that need a look first, and the longer side of each: some 10 kB."""

MEASURES = (
    ("objects_per_mm2", "Objects per mm\u00b2 of tissue"),
    ("mean_area_um2", "Mean area of an object, \u00b5m\u00b2"),
    ("covered", "Share of tissue that objects cover"),
    ("tissue_mm2", "Tissue, mm\u00b2"),
)
"""What is compared across slides."""


@dataclass(frozen=True, slots=True)
class Dot:
    """One slide in a strip: where along it, from 0 to 1, and how far up; whether it stands out."""

    key: str
    value: float
    x: float
    y: float
    is_outlier: bool


@dataclass(frozen=True, slots=True)
class DotStrip:
    """One measure of all slides of one model, from the least to the largest."""

    name: str
    dots: Sequence[Dot]
    low: float
    median: float
    high: float
    middle: float


def write_report(out: Path) -> Path:
    """Write ``report.html`` about all slides in OUT; return its path. Raises ConfigError where there are none."""
    page = render("batch.html.j2", content_of(out))
    write_bytes(out / PAGE, page.encode())
    return out / PAGE


def content_of(out: Path) -> dict[str, Any]:
    """What the template is filled with."""
    status = Status.of(out)
    records = {key: read_record(store, key) for store, key in _stores(out)}
    complete = {key: record for key, record in records.items() if record.state == "complete"}
    strays = {key for found in _values(complete).values() for values in found.values() for key in outliers(values)}
    rows = [_row(slide, records.get(slide.key), slide.key in strays) for slide in status.slides]
    return {
        "title": printable(out.resolve().name),
        "lead": _lead(status),
        "marks": _marks(status, complete),
        "troubles": [_trouble(slide) for slide in status.slides if slide.state != "complete"],
        "remarks": list(_remarks(complete)),
        "strays": list(_strays(complete)),
        "fewest": FEWEST,
        "unseen": max(0, len(complete) - PICTURES),
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


# ---- at the top ------------------------------------------------------------------------------------------------------


def _lead(status: Status) -> str:
    done, asked = status.totals.get("complete", 0), len(status.slides)
    others = "".join(f", {number} {state}" for state, number in sorted(status.totals.items()) if state != "complete")
    when = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    return f"{done} of {asked} slides complete{others}. Written {when}."


def _marks(status: Status, complete: Mapping[str, Record]) -> list[tuple[str, str]]:
    tissue_mm2, objects = _total(complete, "tissue_mm2"), _total(complete, "objects")
    density = count(objects / tissue_mm2) if tissue_mm2 else "\u2013"
    return [
        (f"{len(complete)} / {len(status.slides)}", "slides complete"),
        (count(objects), "objects"),
        (short(tissue_mm2), "mm\u00b2 of tissue"),
        (density, "objects per mm\u00b2, all tissue together"),
        (span(_total(complete, "seconds")), "of work on them"),
    ]


def _total(complete: Mapping[str, Record], name: str) -> float:
    return float(sum(record.figures[name] for record in complete.values()))


# ---- what needs somebody ---------------------------------------------------------------------------------------------


def _trouble(slide: SlideStatus) -> dict[str, str]:
    told = {"key": slide.key, "state": slide.state, "stage": slide.stage, "cause": slide.cause, "cure": slide.cure}
    return {name: printable(text) for name, text in told.items()}


def _remarks(complete: Mapping[str, Record]) -> Iterator[tuple[str, list[str]]]:
    """Flags and warnings, each with the slides that have it."""
    found: dict[str, list[str]] = defaultdict(list)
    for key, record in complete.items():
        warnings = [text.removeprefix(f"{record.plan['slide']}: ") for text in record.figures["warnings"]]
        for text in (*(f"flagged {flag}" for flag in record.figures["flags"]), *warnings):
            found[printable(text.replace("_", " "))].append(printable(key))
    yield from found.items()


def _strays(complete: Mapping[str, Record]) -> Iterator[str]:
    """In words, the slides that are far from the others of their model."""
    names = dict(MEASURES)
    for (measure, model), values in ((pair, found) for pair, found in _flat(complete)):
        for key, score in outliers(values).items():
            side = "above" if score > 0 else "below"
            told = f"{names[measure]} {short(values[key])}, far {side} the others of {model}"
            yield printable(f"{key}: {told} ({abs(score):.1f} deviations)")


# ---- across slides ---------------------------------------------------------------------------------------------------


def _values(complete: Mapping[str, Record]) -> dict[str, dict[str, dict[str, float]]]:
    """By measure and model the value of each slide that has one."""
    found: dict[str, dict[str, dict[str, float]]] = {name: defaultdict(dict) for name, _ in MEASURES}
    for key, record in complete.items():
        for name, value in _measures(record).items():
            if value is not None:
                found[name][record.figures["model"]][key] = value
    return found


def _flat(complete: Mapping[str, Record]) -> Iterator[tuple[tuple[str, str], dict[str, float]]]:
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
    """Slides along a line by value; those close together lie above one another."""
    ordered = sorted(values.items(), key=lambda pair: pair[1])
    low, high = ordered[0][1], ordered[-1][1]
    apart, far = high - low or 1.0, outliers(values)
    taken: Counter[int] = Counter()
    dots = []
    for key, value in ordered:
        x = (value - low) / apart
        place = round(60 * x)
        dots.append(Dot(printable(key), value, round(x, 4), min(taken[place], 5), key in far))
        taken[place] += 1
    median = (ordered[(len(ordered) - 1) // 2][1] + ordered[len(ordered) // 2][1]) / 2
    return DotStrip(name, dots, low, median, high, round((median - low) / apart, 4))


# ---- slides ----------------------------------------------------------------------------------------------------------


def _row(slide: SlideStatus, record: Record | None, is_stray: bool) -> dict[str, Any]:  # noqa: FBT001  one of a row's columns
    known = record.figures if record is not None else {}
    measures = _measures(record) if record is not None and record.state == "complete" else {}
    seam = (record.stages["predict"]["facts"].get("seam") or {}) if measures and record is not None else {}
    return {
        "key": printable(slide.key),
        "path": slide.key,
        "state": slide.state,
        "objects": known.get("objects"),
        **{name: measures.get(name) for name, _ in MEASURES},
        "seam": seam.get("ratio"),
        "seconds": known.get("seconds"),
        "flags": printable(", ".join(known.get("flags", ()))),
        "stray": is_stray,
    }


def _pictures(
    out: Path, rows: Sequence[Mapping[str, Any]], complete: Mapping[str, Record]
) -> Iterator[tuple[Mapping[str, Any], Picture]]:
    """Small pictures of slides, those that stand out or are flagged first."""
    found = [row for row in rows if row["path"] in complete]
    shown = sorted(found, key=lambda row: (not row["stray"], not row["flags"]))
    for row in shown[:PICTURES]:
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
    else:  # it was pruned: the overview shows the slide too
        picture = Image.open(store.root / OVERVIEW).convert("RGB")
        picture.thumbnail((SIDE_PX, SIDE_PX))
    return jpeg(picture, quality=80)


# ---- how it was done -------------------------------------------------------------------------------------------------


def _stages(complete: Mapping[str, Record]) -> list[tuple[str, float, float]]:
    """Each stage, its seconds over all slides, and its share."""
    seconds: Counter[str] = Counter()
    for record in complete.values():
        for stage, told in record.stages.items():
            seconds[stage] += sum(run["seconds"] for run in told["runs"])
    total = sum(seconds.values()) or 1.0
    return [(stage, seconds[stage], seconds[stage] / total) for stage in STAGES if stage in seconds]


def _throughput(complete: Mapping[str, Record]) -> list[tuple[str, str]]:
    """What was done in the time that stages took; stages of several slides may have run at once."""
    predicted = [record.stages["predict"] for record in complete.values()]
    megapixels = sum(one["facts"]["pixels"] - one["facts"]["skipped_pixels"] for one in predicted) / 1e6
    seconds = sum(run["seconds"] for one in predicted for run in one["runs"])
    hours = _total(complete, "seconds") / 3600
    told = [("network", f"{megapixels / seconds:.2f} megapixels with tissue a second")] if seconds else []
    tissue_mm2 = _total(complete, "tissue_mm2")
    told += [("all stages", f"{short(tissue_mm2 / hours)} mm\u00b2 of tissue an hour of work")] if hours else []
    return told


def _configurations(complete: Mapping[str, Record]) -> list[dict[str, Any]]:
    """Each way in which slides were segmented: how many, with which model and where, and all settings."""
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
        "threshold": f"{plan['threshold']:g}; objects from {plan.get('min_area_um2', 0):g} \u00b5m\u00b2",
        "settings": [(name, printable(str(value))) for name, value in run_settings(plan["config"])],
    }


def _runs(out: Path) -> list[dict[str, str]]:
    """The last runs: when, what was typed, and how each ended."""
    told = []
    for run in BatchHistory.read(out).runs()[-5:]:
        end = "no end: it runs, or was killed" if run.exit_code is None else f"exit {run.exit_code}"
        words = shlex.join(["overtile", *run.began["command"][1:]])
        began = datetime.fromisoformat(run.began["when"])
        took = "" if run.ended is None else span((datetime.fromisoformat(run.ended["when"]) - began).total_seconds())
        when = began.astimezone().strftime("%Y-%m-%d %H:%M")
        told.append({"when": when, "took": took, "end": end, "command": printable(words)})
    return told
