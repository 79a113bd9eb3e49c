"""report.html of a training run: configuration, course, results and errors.

There is one self-contained page per run, whatever the number of networks. It contains the command that repeats the run
with every key that differs from its default.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows.reports.evaluation_html import case_table, class_key, error_colours, length_unit, panels_of, plural, versions
from flows.reports.html_page import Picture, number, render, write_document
from flows.training.fold_diagnostics import FoldDiagnostics, diagnose
from flows.training.history import changed_keys, command_of, config_keys
from flows.training.sample_panel import draw_panel
from flows.training.training_data import PreparedTraining, TrainRequest
from pipeline.evaluation.method_evaluation import case_rows
from pipeline.printable import printable
from unet_core.training.diagnostics import samples

MARKS = {"dice": "Dice", "f1_50": "F1 at IoU 0.5", "iou": "IoU"}


def write_training_report(request: TrainRequest, prepared: PreparedTraining) -> tuple[Path, str]:
    """Write the page of a run and its pictures.

    Returns:
        Path of the page, and a summary in Markdown.
    """
    folds = [diagnose(job, request.out) for job in prepared.jobs]
    first = prepared.jobs[0]
    tiles = io.BytesIO()
    draw_panel(samples(first, folds[0].spec), first.material.class_names, folds[0].spec.maps).save(tiles, format="PNG")
    sample_picture = Picture("figures/samples", "Augmented tiles, their targets and weights", tiles.getvalue())
    content = content_of(request, prepared, folds) | {"samples": sample_picture}
    page = render("training.html.j2", content)
    path = write_document(
        request.out, page, (sample_picture, *(picture for fold in folds for picture in fold.pictures))
    )
    return path, markdown(path, folds)


def markdown(path: Path, folds: Sequence[FoldDiagnostics]) -> str:
    """Return the location of the page and the scores of each network as Markdown."""
    scores = [(_score_text(fold, "dice"), _score_text(fold, "f1_50")) for fold in folds]
    pairs = zip(folds, scores, strict=True)
    rows = [f"| {fold.name} | {fold.history.best_step} | {dice} | {f1} |" for fold, (dice, f1) in pairs]
    head = ["| network | step | Dice | F1 at IoU 0.5 |", "|---|---|---|---|"]
    return "\n".join(["# Report", "", f"`{printable(str(path.resolve()))}`", "", *head, *rows]) + "\n"


def _score_text(fold: FoldDiagnostics, score: str) -> str:
    """A pooled score with three decimals."""
    return number(fold.pooled.get(score))


# ---- text ------------------------------------------------------------------------------------------------------------


def content_of(request: TrainRequest, prepared: PreparedTraining, folds: Sequence[FoldDiagnostics]) -> dict[str, Any]:
    """Return the variables of the template."""
    summary, recipe = prepared.summary, request.recipe
    names = [printable(name) for name in summary.class_names]
    parts = zip(("background", *names), summary.class_px, summary.frequencies, strict=True)
    return {
        "title": f"Training of {printable(request.out.resolve().name)}",
        "lead": f"{plural(len(folds), 'network')} for {', '.join(names)}, trained on "
        f"{plural(len(summary.cases), 'annotated image')} of {plural(summary.patients, 'patient')}.",
        "facts": list(_facts(request, folds[0])),
        "command": printable(command_of(request)),
        "tensorboard": printable(f"tensorboard --logdir {request.out}"),
        "recipe": [(key, json.dumps(value)) for key, value in config_keys(recipe).items()],
        "shares": list(parts),
        "messages": [printable(message) for message in summary.remarks],
        "folds": [_fold(fold) for fold in folds],
        "colours": error_colours(),
        "classes": class_key(names),
        "versions": versions(),
    }


def _facts(request: TrainRequest, fold: FoldDiagnostics) -> list[tuple[str, str]]:
    spec, recipe = fold.spec, request.recipe
    shape = f"{spec.architecture}, depth {spec.depth}, channels {' '.join(map(str, spec.channels))}, {spec.padding} "
    changed = ", ".join(f"{key} = {json.dumps(value)}" for key, value in changed_keys(recipe).items())
    folds = recipe.folds
    held_back = {None: "none", "all": "each fold in turn"}.get(folds.hold_back, f"fold {folds.hold_back}")  # type: ignore[arg-type]  # an int is not a key
    return [
        ("Network", f"{shape}padding, norm {spec.norm}, skip connections {spec.skip}"),
        ("Resolution", f"{spec.mpp:g} \u00b5m per pixel" if spec.mpp else "not set: segment does not resample"),
        ("Images", printable(str(request.images))),
        ("Held back", f"{held_back}; folds: {folds.method}, seed {folds.seed}, split by patient"),
        ("Seed", str(recipe.compute.seed)),
        ("Changed settings", printable(changed) or "none"),
    ]


def _fold(fold: FoldDiagnostics) -> dict[str, Any]:
    spec, material = fold.spec, fold.job.material
    held_back = bool(material.held_back)
    rows = case_rows(fold.evaluation, fold.evaluation.results[0])
    marks = [{"name": MARKS[name], "value": fold.pooled[name]} for name in MARKS if name in fold.pooled]
    images = plural(len(rows), "held-back image" if held_back else "training image")
    unit = "px" if fold.evaluation.mpp is None else "um"
    return {
        "name": fold.name,
        "marks": marks,
        "headline": headline(fold),
        "curves": (*fold.curves, *((fold.threshold,) if fold.threshold else ())),
        "norms": fold.norms,
        "has_threshold": fold.threshold is not None,
        "skips": fold.skips,
        "maps": fold.maps,
        "best_step": fold.history.best_step,
        "min_area": f"{spec.min_area_um2:g} {length_unit('um') + '2' if spec.mpp else 'px'}",
        "ranking": f"Ranked by Dice among {images}" + ("." if held_back else " (no images were held back)."),
        "panels": panels_of(fold.evaluation, rows, fold.panels),
        "cases": case_table([row | {"model": fold.name} for row in rows], unit),
        "skips_text": _skips_text(fold),
        "held_back": ", ".join(printable(case.name) for case in material.held_back) or "none",
    }


def headline(fold: FoldDiagnostics) -> str:
    """Summarise training and selection of a network in a few sentences."""
    material, spec, history = fold.job.material, fold.spec, fold.history
    steps = history.steps[-1] if history.steps else 0
    images = "held-back image" if material.held_back else "training image"
    threshold = f", threshold {spec.threshold:g}" if spec.threshold is not None else ""
    return (
        f"Trained on {plural(len(material.training), 'image')} for {steps} steps ({history.seconds / 60:.1f} minutes). "
        f"Selected: step {history.best_step}{threshold}. Scores on "
        f"{plural(len(fold.evaluation.cases), images)}."
    )


def _skips_text(fold: FoldDiagnostics) -> str:
    if fold.skips is None:
        return "This network has no skip connections."
    return (
        "Gradient of the loss at each skip connection, through the connection and to the level below. Measured once "
        "on the selected network with one batch of the displayed images, without augmentation. Skip 1 is at full "
        "resolution."
    )
