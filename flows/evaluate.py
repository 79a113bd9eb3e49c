"""The evaluate command: models and annotated images in, a table, metrics.json, cases.csv and pictures out.

The one decision made here: what is judged and what baselines are trained on is told by folds and nothing else, and
said; an image is never on both sides.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Column, Table

from flows.plain import printable
from pipeline.errors import ConfigError
from pipeline.files import write_bytes, write_json

if TYPE_CHECKING:
    from flows.evaluation import Case

SHOWN = ("dice", "iou", "f1_50", "f1_75", "pq", "aji", "v_rand", "v_info", "hd95", "surface_dice", "ece")
LENGTHS = ("hd95",)
KEYS = ("model", "image", "patient", "fold")
WithBaselines = Annotated[
    bool, typer.Option("--baselines", help="Judge Otsu, and classifiers trained on the other folds, too.")
]
app = typer.Typer()


@app.command()
def evaluate(  # noqa: PLR0913  one parameter an option
    model: Annotated[
        list[str], typer.Option("--model", metavar="NAME_OR_FILE...", help="Built-in models or .safetensors files.")
    ],
    images: Annotated[Path, typer.Option("--images", metavar="DIR", help="Annotated images.")],
    masks: Annotated[Path, typer.Option("--masks", metavar="DIR", help="Their masks, of the same names.")],
    out: Annotated[Path, typer.Option("--out", metavar="REPORT", help="Folder for what is found.")],
    cases: Annotated[
        Path | None, typer.Option("--cases", metavar="CSV", help="Columns image, patient, fold; see README.")
    ] = None,
    folds: Annotated[
        list[int] | None, typer.Option("--folds", metavar="K...", help="Judge images of these folds only.")
    ] = None,
    baselines: WithBaselines = False,  # noqa: FBT002  typer's way to declare a flag
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "cpu",
) -> None:
    """Score models on annotated images, with intervals over patients, and compare them."""
    judged, others = split(read_cases(images, masks, cases), folds)
    from flows.case_panels import write_panels
    from flows.evaluation import evaluate_methods, record_of  # torch costs a second
    from flows.methods import baselines as trained
    from flows.methods import networks

    methods = networks(model, device)
    if baselines:
        methods += trained(methods[0], [case.annotated for case in others])
    console = Console()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("judging", total=len(methods) * len(judged))
        evaluation = evaluate_methods(judged, methods, lambda: progress.advance(task))
        record = record_of(evaluation)
    record["settings"] |= {"folds": folds, "patients_known": cases is not None}
    record["panels"] = write_panels(evaluation, out / "panels")
    write_cases(out / "cases.csv", record["cases"])
    write_json(out / "metrics.json", record)
    show(record, console)
    console.print(f"written: {escape(printable(str(out)))}", soft_wrap=True, highlight=False)


# ---- what is judged --------------------------------------------------------------------------------------------------


def read_cases(images: Path, masks: Path, table: Path | None) -> list[Case]:
    """Every annotated image with its patient and fold; without a table each image is a patient of its own."""
    from flows.evaluation import Case
    from unet_core.samples import read_annotated

    names = sorted(path.name for path in images.iterdir() if (masks / path.name).is_file()) if images.is_dir() else []
    if not names:
        raise ConfigError(f"{images} and {masks}: expected images and masks of the same names, found no pair")
    rows = _rows(table)
    if table is not None and (missing := [name for name in names if name not in rows]):
        raise ConfigError(f"{table}: expected a line for every image, found none for {missing[0]}. Add it")
    return [Case(read_annotated(images, masks, name), *rows.get(name, (name, None))) for name in names]


def _rows(table: Path | None) -> dict[str, tuple[str, int | None]]:
    if table is None:
        return {}
    with table.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"image", "patient"} <= rows[0].keys():
        raise ConfigError(f"{table}: expected columns image and patient, and fold where --folds is given")
    return {row["image"]: (row["patient"], int(row["fold"]) if row.get("fold") else None) for row in rows}


def split(cases: Sequence[Case], folds: Sequence[int] | None) -> tuple[list[Case], list[Case]]:
    """The cases to judge, and the others. Raises ConfigError when no case lies in the folds asked for."""
    if not folds:
        return list(cases), []
    judged = [case for case in cases if case.fold in folds]
    if not judged:
        known = sorted({case.fold for case in cases if case.fold is not None})
        found = ", ".join(map(str, known)) or "none (give --cases with a column fold)"
        raise ConfigError(f"--folds {' '.join(map(str, folds))}: expected one of the folds there are: {found}")
    patients = {case.patient for case in judged}
    others = [case for case in cases if case.fold not in folds]
    if both := sorted(patients & {case.patient for case in others}):
        raise ConfigError(f"patient {both[0]!r} lies in judged folds and in others: move all images into one fold")
    return judged, others


# ---- what is written and said ----------------------------------------------------------------------------------------


def write_cases(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One line a model and image; a score that is not defined is empty."""
    from flows.results import inert

    scores = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in KEYS]
    text = io.StringIO()
    writer = csv.DictWriter(text, (*KEYS, *scores), restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(row | {name: inert(printable(str(row[name]))) for name in KEYS[:3]})
    write_bytes(path, text.getvalue().encode())


def show(record: dict[str, Any], console: Console) -> None:
    """Print scores with intervals, then what may be concluded, then what was not defined."""
    models, settings = record["models"], record["settings"]
    columns = [Column(escape(printable(model["name"])), overflow="fold") for model in models]
    title = f"images: {settings['images']}, patients: {settings['patients']}"
    table = Table(Column("score", no_wrap=True), *columns, title=title)
    for name in SHOWN:
        if any(name in model["pooled"] for model in models):
            unit = f" ({settings['unit']})" if name in LENGTHS else ""
            table.add_row(f"{name}{unit}", *(_cell(model, name) for model in models))
    console.print(table)
    for line in _notes(record):
        console.print(escape(printable(line)), soft_wrap=True, highlight=False)


def _cell(model: dict[str, Any], name: str) -> str:
    if name not in model["pooled"]:
        return "-"
    ends = model["intervals"].get(name)
    return f"{model['pooled'][name]:.3f}" + (f"\n{ends[0]:.3f}..{ends[1]:.3f}" if ends else "")


def _notes(record: dict[str, Any]) -> list[str]:
    settings = record["settings"]
    lines = [f"{model['name']}: {model['how']}" for model in record["models"]]
    lines += [f"surface dice within {settings['surface_tolerance']:g} {settings['unit']}"]
    if not settings["patients_known"]:
        lines += ["every image counts as a patient: with several images of one patient, give --cases, else intervals"]
        lines[-1] += " are too narrow"
    if settings["patients"] < settings["bootstrap"]["least"]:
        lines += [f"no intervals: patients: {settings['patients']}, expected {settings['bootstrap']['least']} or more"]
    lines += [pair["conclusion"] for pair in record["comparisons"]]
    for model in record["models"]:
        counts = ", ".join(f"{name} in {count}" for name, count in model["undefined"].items())
        lines += [f"{model['name']}: undefined: {counts} of {settings['images']} images"] if counts else []
        if model["empty"]:
            lines += [f"{model['name']}: nothing true and nothing found, scored 1: {model['empty']} images"]
    return lines
