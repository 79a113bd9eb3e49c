"""The evaluate command: models and annotated images in, a table, metrics.json, cases.csv and pictures out.

The one decision made here: what is judged and what baselines are trained on is told by folds and nothing else, and
said; an image is never on both sides.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Column, Table

from flows.model import refused
from flows.plain import printable
from pipeline.config import read_settings
from pipeline.errors import ConfigError
from pipeline.files import write_bytes, write_json
from unet_core.header import describe, resolve
from unet_core.masks import DataSettings
from unet_core.spec import UNetSpec

if TYPE_CHECKING:
    from flows.evaluation import Case

SHOWN = ("dice", "iou", "f1_50", "f1_75", "pq", "aji", "v_rand", "v_info", "hd95", "surface_dice", "ece")
LENGTHS = ("hd95",)
OFF = 0.05
"""A resolution that differs by more is another one."""
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
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="data.key=value", help="How masks are read. Repeatable.")
    ] = None,
    baselines: WithBaselines = False,  # noqa: FBT002  typer's way to declare a flag
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "cpu",
) -> None:
    """Score models on annotated images, with intervals over patients, and compare them."""
    asked = read_cases(Source(images, masks, cases), model[0], settings or [])
    judged, others = split(asked.cases, folds)
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
    record["settings"] |= {"folds": folds, "said": list(asked.said)}
    record["panels"] = write_panels(evaluation, out / "panels")
    write_cases(out / "cases.csv", record["cases"])
    write_json(out / "metrics.json", record)
    show(record, console)
    console.print(f"written: {escape(printable(str(out)))}", soft_wrap=True, highlight=False)


# ---- what is judged --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Source:
    """Where images, masks and the table of cases lie."""

    images: Path
    masks: Path
    cases: Path | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """Annotated images with patient and fold, and what has to be said of them."""

    cases: tuple[Case, ...]
    said: tuple[str, ...]


def read_cases(source: Source, model: str, overrides: Sequence[str]) -> Asked:
    """Every annotated image, its masks read as classes of the model where it knows several.

    Raises ConfigError for whatever cannot be read as it is meant, and for other classes than the model's.
    """
    with refused():
        spec = describe(resolve(model)).spec
    settings = data_settings(overrides, spec)
    from flows.annotations import open_annotations  # torch costs a second
    from flows.evaluation import Case

    found = open_annotations(source.images, source.masks, source.cases, settings)
    if len(found.class_names) != spec.foreground:
        raise ConfigError(
            f"{source.masks}: expected {spec.foreground} classes, as {model} knows ({', '.join(spec.class_names)}), "
            f"found {len(found.class_names)}: {', '.join(found.class_names)}. Choose them with --set data.classes=[...]"
        )
    cases = [Case(one, found.rows[one.name].patient, found.rows[one.name].fold) for one in found.cases]
    off = [name for name, mpp in found.mpp.items() if mpp and spec.mpp and abs(mpp / spec.mpp - 1) > OFF]
    said = [f"{len(off)} images state another resolution than {model} ({spec.mpp:g} um), as {off[0]}"] if off else []
    said = [f"{line}: judged pixel for pixel; segment would resample them" for line in said]
    return Asked(tuple(cases), (*found.said, *said))


def data_settings(overrides: Sequence[str], spec: UNetSpec) -> DataSettings:
    """How masks are read: as told by ``--set data.key=value``, several classes under the model's names."""
    content = read_settings(None, overrides)
    if odd := [section for section in content if section != "data"]:
        raise ConfigError(f"--set {odd[0]}: expected a key of data, such as 'data.only={{kind: he}}'")
    told: dict[str, Any] = dict(content.get("data") or {})
    if spec.foreground > 1 and not {"classes", "colours"} & told.keys():
        told["classes"] = spec.class_names
    try:
        return DataSettings.model_validate(told)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(["data", *map(str, fault["loc"])])
        raise ConfigError(
            f"--set {where}: {fault['msg']}; known keys: {', '.join(DataSettings.model_fields)}"
        ) from error


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
    lines += settings["said"]
    if settings["patients"] < settings["bootstrap"]["least"]:
        lines += [f"no intervals: patients: {settings['patients']}, expected {settings['bootstrap']['least']} or more"]
    lines += [pair["conclusion"] for pair in record["comparisons"]]
    for model in record["models"]:
        counts = ", ".join(f"{name} in {count}" for name, count in model["undefined"].items())
        lines += [f"{model['name']}: undefined: {counts} of {settings['images']} images"] if counts else []
        if model["empty"]:
            lines += [f"{model['name']}: nothing true and nothing found, scored 1: {model['empty']} images"]
    return lines
