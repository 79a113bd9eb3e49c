"""Evaluation of models on annotated images: metrics.json, cases.csv, report.html and pictures.

Folds alone decide which images are scored and which train the baselines. An image is never used for both.
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
from pipeline.evaluation.cross_validated import FoldModels, NamedModel, Turns, load_named
from pipeline.printable import printable
from pipeline.storage.atomic_files import write_bytes, write_json
from unet_core.data.mask_encoding import DataSettings
from unet_core.metrics.centres import WITHIN_UM

if TYPE_CHECKING:
    from pipeline.evaluation.method_evaluation import EvaluationCase

_OUTLINES = ("dice", "iou", "f1_50", "f1_75", "pq", "aji", "v_rand", "v_info", "hd95", "surface_dice", "ece")
TABLE_SCORES = (*_OUTLINES, "centre_precision", "centre_recall", "centre_f1")
LENGTHS = ("hd95",)
KEYS = ("model", "image", "patient", "fold")


class TurnsSection(Section):
    """Test-time augmentation of the networks."""

    tta: Turns = "none"


class EvaluateOptions(Section):
    """The keys accepted by ``--set``."""

    model: TurnsSection = TurnsSection()
    data: DataSettings = DataSettings()


@dataclass(frozen=True, slots=True)
class Source:
    """Locations of images, masks and the cases table."""

    images: Path
    masks: Path
    cases: Path | None = None


@dataclass(frozen=True, slots=True)
class EvaluateRequest:
    """Arguments of an evaluation.

    Attributes:
        source: Images and masks.
        out: Folder of the report.
        models: Model names or paths.
        folds: Folds to score; None for all images.
        settings: Overrides as given with ``--set``.
        baselines: Whether to score the baselines too.
        device: Device of the networks.
        within_um: Largest distance of matched centres.
    """

    source: Source
    out: Path
    models: Sequence[str]
    folds: Sequence[int] | None
    settings: Sequence[str]
    baselines: bool
    device: str
    within_um: float = WITHIN_UM


def evaluate(request: EvaluateRequest) -> None:
    """Score models on annotated images with intervals over patients, compare them, and print and write the results.

    Raises:
        ConfigError: If there is nothing to evaluate, or a model was trained on the images it is scored on.
    """
    options = load_as(EvaluateOptions, None, request.settings)
    if not (request.models or request.baselines):
        raise ConfigError("expected something to evaluate, found neither --model nor --baselines. Name a model")
    models = [load_named(name, options.model.tta) for name in request.models]
    data = read_cases(request.source, models, options.data)
    scored, training = split(data.cases, request.folds)
    require_held_out(models, scored)
    from flows.reports.case_panels import write_panels
    from flows.reports.evaluation_html import maps_of, write_report  # imports matplotlib (0.5 s)
    from pipeline.evaluation.method_evaluation import evaluate_methods, record_of  # imports torch (1 s)
    from pipeline.evaluation.methods import baselines, networks

    methods = networks(models, request.device)
    if request.baselines:
        methods += baselines(data.class_names, [case.annotated for case in training])
    if not methods:
        raise ConfigError(
            "--baselines: Otsu's threshold supports one class, and there are no images to train other baselines on: "
            f"found {len(data.class_names)} classes. Name --folds, or a --model"
        )
    console = Console()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("evaluating", total=len(methods) * len(scored))
        evaluation = evaluate_methods(scored, methods, lambda: progress.advance(task), request.within_um)
        record = record_of(evaluation)
    record["settings"] |= {"folds": request.folds, "tta": options.model.tta, "said": list(data.messages)}
    panels = write_panels(evaluation, request.out / "panels")
    record["panels"] = {panel.file: panel.name for panel in panels}
    write_cases(request.out / "cases.csv", record["cases"])
    write_json(request.out / "metrics.json", record)
    report = write_report(request.out, record, panels, evaluation, maps_of(models, evaluation))
    show(record, console)
    console.print(f"written: {escape(printable(str(report)))}", soft_wrap=True, highlight=False)


# ---- images ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EvaluationCases:
    """Annotated images with patient and fold, the class names, and messages about the data."""

    cases: tuple[EvaluationCase, ...]
    class_names: tuple[str, ...]
    messages: tuple[str, ...]


def read_cases(source: Source, models: Sequence[NamedModel], data: DataSettings) -> EvaluationCases:
    """Read all annotated images; masks are read as the classes of the first model if it has several.

    Raises:
        ConfigError: If the data cannot be read, or its classes differ from those of the model.
    """
    first = models[0] if models else None
    if first and first.spec.foreground > 1 and not {"classes", "colours"} & data.model_fields_set:
        data = data.model_copy(update={"classes": first.spec.class_names})
    from pipeline.annotations.dataset import open_dataset  # imports torch (1 s)
    from pipeline.evaluation.method_evaluation import EvaluationCase

    resolutions = {model.spec.mpp: model.name for model in models if model.spec.mpp}
    mpp = next(iter(resolutions)) if len(resolutions) == 1 else None
    dataset = open_dataset(source.images, source.masks, source.cases, data, mpp)
    if len(resolutions) > 1 and any(dataset.mpp.values()):
        _raise_for_resolutions(resolutions)
    if first and len(dataset.class_names) != first.spec.foreground:
        raise ConfigError(
            f"{source.masks}: expected the {first.spec.foreground} classes of {first.name} "
            f"({', '.join(first.spec.class_names)}), "
            f"found {len(dataset.class_names)}: {', '.join(dataset.class_names)}. "
            "Choose them with --set data.classes=[...]"
        )
    rows = dataset.rows
    cases = [
        EvaluationCase(case, rows[case.name].patient, rows[case.name].fold, dataset.mpp[case.name])
        for case in dataset.cases
    ]
    return EvaluationCases(tuple(cases), first.spec.class_names if first else dataset.class_names, dataset.remarks)


def _raise_for_resolutions(resolutions: Mapping[float, str]) -> NoReturn:
    """Raise ConfigError: images with a resolution would be resampled differently for each network."""
    (one, first), (other, second), *_ = resolutions.items()
    raise ConfigError(
        f"--model: expected networks of one resolution for images with a resolution, found {one:g} um per pixel for "
        f"{first} and {other:g} for {second}. Evaluate them separately"
    )


def split(
    cases: Sequence[EvaluationCase], folds: Sequence[int] | None
) -> tuple[list[EvaluationCase], list[EvaluationCase]]:
    """Split cases into those to score and the others.

    Raises:
        ConfigError: If no case is in the folds, or a patient is on both sides.
    """
    if not folds:
        return list(cases), []
    scored = [case for case in cases if case.fold in folds]
    if not scored:
        folds_present = sorted({case.fold for case in cases if case.fold is not None})
        folds_text = ", ".join(map(str, folds_present)) or "none (give --cases with a column fold)"
        raise ConfigError(f"--folds {' '.join(map(str, folds))}: expected existing folds: {folds_text}")
    patients = {case.patient for case in scored}
    others = [case for case in cases if case.fold not in folds]
    if both := sorted(patients & {case.patient for case in others}):
        raise ConfigError(f"patient {both[0]!r} is in scored and in other folds: move all images into one fold")
    return scored, others


def require_held_out(models: Sequence[NamedModel], scored: Sequence[EvaluationCase]) -> None:
    """Check that every case was held back by a network of each cross-validated run.

    Raises:
        ConfigError: If a case was held back by none.
    """
    for run in (model for model in models if isinstance(model, FoldModels)):
        run.demand(case.annotated.name for case in scored)


# ---- output ----------------------------------------------------------------------------------------------------------


def write_cases(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write one line per model and image; undefined scores are empty."""
    from flows.batch.result_rows import inert

    scores = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in KEYS]
    text = io.StringIO()
    writer = csv.DictWriter(text, (*KEYS, *scores), restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(row | {name: inert(printable(str(row[name]))) for name in KEYS[:3]})
    write_bytes(path, text.getvalue().encode())


def show(record: dict[str, Any], console: Console) -> None:
    """Print scores with intervals, conclusions, and undefined scores."""
    models, settings = record["models"], record["settings"]
    columns = [Column(escape(printable(model["name"])), overflow="fold") for model in models]
    title = f"images: {settings['images']}, patients: {settings['patients']}"
    table = Table(Column("score", no_wrap=True), *columns, title=title)
    for name in TABLE_SCORES:
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
    if any("surface_dice" in model["pooled"] for model in record["models"]):
        lines += [f"surface dice within {settings['surface_tolerance']:g} {settings['unit']}"]
    lines += [f"centres: {settings['centres']['rule']}", *settings["said"]]
    if settings["patients"] < settings["bootstrap"]["least"]:
        lines += [f"no intervals: patients: {settings['patients']}, expected {settings['bootstrap']['least']} or more"]
    lines += [pair["conclusion"] for pair in record["comparisons"]]
    for model in record["models"]:
        counts = ", ".join(f"{name} in {count}" for name, count in model["undefined"].items())
        lines += [f"{model['name']}: undefined: {counts} of {settings['images']} images"] if counts else []
        if model["empty"]:
            lines += [f"{model['name']}: no object annotated or found, scored 1: {model['empty']} images"]
    return lines
