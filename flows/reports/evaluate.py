"""Evaluating: models and annotated images in, a table, metrics.json, cases.csv and pictures out.

The one decision made here: what is judged and what baselines are trained on is told by folds and nothing else, and
said; an image is never on both sides.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Column, Table

from pipeline.config import Section, load_as
from pipeline.errors import ConfigError
from pipeline.evaluation.cross_validated import FoldModels, Named, Turns, named
from pipeline.printable import printable
from pipeline.storage.atomic_files import write_bytes, write_json
from unet_core.data.mask_encoding import DataSettings

if TYPE_CHECKING:
    from pipeline.evaluation.method_evaluation import EvaluationCase

SHOWN = ("dice", "iou", "f1_50", "f1_75", "pq", "aji", "v_rand", "v_info", "hd95", "surface_dice", "ece")
LENGTHS = ("hd95",)
KEYS = ("model", "image", "patient", "fold")


class TurnsSection(Section):
    """How networks are asked."""

    tta: Turns = "none"


class EvaluateOptions(Section):
    """What ``--set`` may say."""

    model: TurnsSection = TurnsSection()
    data: DataSettings = DataSettings()


@dataclass(frozen=True, slots=True)
class Source:
    """Where images, masks and the table of cases lie."""

    images: Path
    masks: Path
    cases: Path | None = None


@dataclass(frozen=True, slots=True)
class EvaluateRequest:
    """What is judged: ``models`` as words, on images of ``folds`` (None: all), with ``settings`` as ``--set`` has."""

    source: Source
    out: Path
    models: Sequence[str]
    folds: Sequence[int] | None
    settings: Sequence[str]
    baselines: bool
    device: str


def evaluate(request: EvaluateRequest) -> None:
    """Score models on annotated images, with intervals over patients, and compare them: shown, and written.

    Raises ConfigError when there is nothing to judge, or a model was trained on what it is judged by.
    """
    told = load_as(EvaluateOptions, None, request.settings)
    if not (request.models or request.baselines):
        raise ConfigError("expected something to judge, found neither --model nor --baselines. Name a model")
    models = [named(word, told.model.tta) for word in request.models]
    asked = read_cases(request.source, models, told.data)
    judged, others = split(asked.cases, request.folds)
    demand_unseen(models, judged)
    from flows.reports.case_panels import write_panels
    from flows.reports.evaluation_html import maps_of, write_report  # and matplotlib half of one
    from pipeline.evaluation.method_evaluation import evaluate_methods, record_of  # torch costs a second
    from pipeline.evaluation.methods import baselines as trained
    from pipeline.evaluation.methods import networks

    methods = networks(models, request.device)
    if request.baselines:
        methods += trained(asked.class_names, [case.annotated for case in others])
    if not methods:
        raise ConfigError(
            "--baselines: Otsu's threshold knows one class, and there is nothing to train others on: "
            f"found {len(asked.class_names)} classes. Name --folds, or a --model"
        )
    console = Console()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("judging", total=len(methods) * len(judged))
        evaluation = evaluate_methods(judged, methods, lambda: progress.advance(task))
        record = record_of(evaluation)
    record["settings"] |= {"folds": request.folds, "tta": told.model.tta, "said": list(asked.said)}
    panels = write_panels(evaluation, request.out / "panels")
    record["panels"] = {one.file: one.name for one in panels}
    write_cases(request.out / "cases.csv", record["cases"])
    write_json(request.out / "metrics.json", record)
    report = write_report(request.out, record, panels, evaluation, maps_of(models, evaluation))
    show(record, console)
    console.print(f"written: {escape(printable(str(report)))}", soft_wrap=True, highlight=False)


# ---- what is judged --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EvaluationCases:
    """Annotated images with patient and fold, what their classes are called, and what has to be said of them."""

    cases: tuple[EvaluationCase, ...]
    class_names: tuple[str, ...]
    said: tuple[str, ...]


def read_cases(source: Source, models: Sequence[Named], data: DataSettings) -> EvaluationCases:
    """Every annotated image, its masks read as classes of the first model where it knows several.

    Raises ConfigError for whatever cannot be read as it is meant, and for other classes than the model's.
    """
    first = models[0] if models else None
    if first and first.spec.foreground > 1 and not {"classes", "colours"} & data.model_fields_set:
        data = data.model_copy(update={"classes": first.spec.class_names})
    from pipeline.annotations.dataset import open_dataset  # torch costs a second
    from pipeline.evaluation.method_evaluation import EvaluationCase

    resolutions = {model.spec.mpp: model.name for model in models if model.spec.mpp}
    mpp = next(iter(resolutions)) if len(resolutions) == 1 else None
    found = open_dataset(source.images, source.masks, source.cases, data, mpp)
    if len(resolutions) > 1 and any(found.mpp.values()):
        _refuse_several(resolutions)
    if first and len(found.class_names) != first.spec.foreground:
        raise ConfigError(
            f"{source.masks}: expected {first.spec.foreground} classes, as {first.name} knows "
            f"({', '.join(first.spec.class_names)}), found {len(found.class_names)}: {', '.join(found.class_names)}. "
            "Choose them with --set data.classes=[...]"
        )
    cases = [EvaluationCase(one, found.rows[one.name].patient, found.rows[one.name].fold) for one in found.cases]
    return EvaluationCases(tuple(cases), first.spec.class_names if first else found.class_names, found.said)


def _refuse_several(resolutions: Mapping[float, str]) -> NoReturn:
    """Images that state a resolution would be other ones for each network."""
    (one, first), (other, second), *_ = resolutions.items()
    raise ConfigError(
        f"--model: expected networks of one resolution for images that state theirs, found {one:g} um per pixel of "
        f"{first} and {other:g} of {second}. Judge them apart"
    )


def split(
    cases: Sequence[EvaluationCase], folds: Sequence[int] | None
) -> tuple[list[EvaluationCase], list[EvaluationCase]]:
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


def demand_unseen(models: Sequence[Named], judged: Sequence[EvaluationCase]) -> None:
    """Raise ConfigError for a case that no network of a run over all folds held back."""
    for run in (one for one in models if isinstance(one, FoldModels)):
        run.demand(case.annotated.name for case in judged)


# ---- what is written and said ----------------------------------------------------------------------------------------


def write_cases(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One line a model and image; a score that is not defined is empty."""
    from flows.batch.result_rows import inert

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
