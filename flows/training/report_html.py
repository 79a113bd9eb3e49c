"""RUN/report.html: what was trained, how it went, what it learnt, and where it fails.

The one decision made here: one page a run, whatever the number of its networks, so nothing on it refers to another
file; and it carries the command that repeats the run, every key that is not the default spelt out.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows.reports.evaluation_html import case_table, class_key, error_colours, length_unit, many, panels_of, versions
from flows.reports.html_page import Picture, number, render, write_document
from flows.training.fold_diagnostics import FoldDiagnostics, look_at
from flows.training.history import changed_keys, command_of, keys
from flows.training.sample_panel import draw_panel
from flows.training.training_data import Prepared, TrainRequest
from pipeline.evaluation.method_evaluation import case_rows
from pipeline.printable import printable
from unet_core.training.diagnostics import samples

MARKS = {"dice": "Dice", "f1_50": "F1 at IoU 0.5", "iou": "IoU"}


def write_training_report(request: TrainRequest, prepared: Prepared) -> tuple[Path, str]:
    """Write the page of a run and its pictures; return its path, and the same in a few lines of markdown."""
    folds = [look_at(order, request.out) for order in prepared.orders]
    first = prepared.orders[0]
    tiles = io.BytesIO()
    draw_panel(samples(first, folds[0].spec), first.material.class_names).save(tiles, format="PNG")
    drawn = Picture("figures/samples", "augmented tiles, their targets and weights", tiles.getvalue())
    content = content_of(request, prepared, folds) | {"samples": drawn}
    page = render("training.html.j2", content)
    path = write_document(request.out, page, (drawn, *(picture for fold in folds for picture in fold.pictures)))
    return path, markdown(path, folds)


def markdown(path: Path, folds: Sequence[FoldDiagnostics]) -> str:
    """Where the page is, and each network's scores."""
    scores = [(told(fold, "dice"), told(fold, "f1_50")) for fold in folds]
    named = zip(folds, scores, strict=True)
    rows = [f"| {fold.name} | {fold.history.best_step} | {dice} | {f1} |" for fold, (dice, f1) in named]
    head = ["| network | step | Dice | F1 at IoU 0.5 |", "|---|---|---|---|"]
    return "\n".join(["# Report", "", f"`{printable(str(path.resolve()))}`", "", *head, *rows]) + "\n"


def told(fold: FoldDiagnostics, score: str) -> str:
    """A score of the images shown, to three digits."""
    return number(fold.pooled.get(score))


# ---- said ------------------------------------------------------------------------------------------------------------


def content_of(request: TrainRequest, prepared: Prepared, folds: Sequence[FoldDiagnostics]) -> dict[str, Any]:
    """What the template says."""
    summary, recipe = prepared.summary, request.recipe
    names = [printable(name) for name in summary.class_names]
    parts = zip(("background", *names), summary.class_px, summary.frequencies, strict=True)
    networks_said = many(len(folds), "network")
    return {
        "title": f"Training of {printable(request.out.resolve().name)}",
        "lead": f"{networks_said} for {', '.join(names)}, from {many(len(summary.cases), 'annotated image')} of "
        f"{many(summary.patients, 'patient')}.",
        "facts": list(_facts(request, folds[0])),
        "command": printable(command_of(request)),
        "tensorboard": printable(f"tensorboard --logdir {request.out}"),
        "recipe": [(key, json.dumps(value)) for key, value in keys(recipe).items()],
        "shares": list(parts),
        "said": [printable(line) for line in summary.said],
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
    held = {None: "none", "all": "each in turn"}.get(folds.hold_back, f"fold {folds.hold_back}")  # type: ignore[arg-type]  # a number is no key
    return [
        ("network", f"{shape}padding, norm {spec.norm}, skips {spec.skip}"),
        ("resolution", f"{spec.mpp:g} \u00b5m a pixel" if spec.mpp else "not stated: segment then resamples nothing"),
        ("images", printable(str(request.images))),
        ("held back", f"{held}; folds: {folds.method}, drawn with seed {folds.seed}; patients are never parted"),
        ("seed", str(recipe.compute.seed)),
        ("not the default", printable(changed) or "nothing"),
    ]


def _fold(fold: FoldDiagnostics) -> dict[str, Any]:
    spec, material = fold.spec, fold.order.material
    held = bool(material.held_back)
    rows = case_rows(fold.evaluation, fold.evaluation.results[0])
    marks = [{"name": MARKS[name], "value": fold.pooled[name]} for name in MARKS if name in fold.pooled]
    which = "held back" if held else "it has learnt from, for none was held back"
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
        "least": f"{spec.min_area_um2:g} {length_unit('um') + '2' if spec.mpp else 'px'}",
        "shown": f"By Dice, of the {many(len(rows), 'image')} {which}.",
        "panels": panels_of(fold.evaluation, rows, fold.panels),
        "cases": case_table([row | {"model": fold.name} for row in rows], unit),
        "about_skips": _about_skips(fold),
        "held_back": ", ".join(printable(case.name) for case in material.held_back) or "none",
    }


def headline(fold: FoldDiagnostics) -> str:
    """What came of it, in a sentence or two."""
    material, spec, history = fold.order.material, fold.spec, fold.history
    steps = history.steps[-1] if history.steps else 0
    where = "held back" if material.held_back else "it has learnt from"
    chosen = f", threshold {spec.threshold:g}" if spec.threshold is not None else ""
    return (
        f"Learnt from {many(len(material.training), 'image')} in {steps} steps ({history.seconds / 60:.1f} minutes); "
        f"kept is step {history.best_step}{chosen}. The scores are of "
        f"{many(len(fold.evaluation.cases), 'image')} {where}."
    )


def _about_skips(fold: FoldDiagnostics) -> str:
    if fold.skips is None:
        return "This network has no skips."
    return (
        "Where a skip joins, the gradient of the loss goes on through the skip and to the level below; measured once, "
        "on the network that was kept, on one batch of the images shown, without augmentation. Skip 1 is at full "
        "resolution."
    )
