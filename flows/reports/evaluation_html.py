"""report.html of an evaluation: a summary for pathologists first, technical details further down.

All numbers on the page are read from the record stored in metrics.json, so page and file agree. Only pictures are
computed from images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.reports.activation_panels import MapInput, MapsShown, show_maps
from flows.reports.case_panels import CORRECT, FALSE_POSITIVE, MISSED, SHOWN_PX, CasePanel
from flows.reports.figures import INTERVALS, Line, f1_curve, interval_plot, reliability_plot
from flows.reports.html_page import Picture, number, percent, render, write_document
from pipeline.printable import printable
from pipeline.rendering.contrast import class_colours
from pipeline.storage.manifest import package_version
from unet_core.metrics.overlap import IOUS
from unet_core.metrics.score_table import ERRORS, LENGTHS

if TYPE_CHECKING:
    from pipeline.evaluation.cross_validated import NamedModel
    from pipeline.evaluation.method_evaluation import Evaluation

NAMES = {
    "dice": "Dice",
    "iou": "IoU",
    "pixel_accuracy": "Pixel accuracy",
    "precision": "Precision",
    "recall": "Recall",
    "hd95": "HD95",
    "surface_dice": "Surface Dice",
    "ece": "ECE",
    "f1_50": "F1 at IoU 0.5",
    "f1_75": "F1 at IoU 0.75",
    "pq": "PQ",
    "aji": "AJI",
    "v_rand": "V_rand",
    "v_info": "V_info",
    "centre_precision": "Precision of centres",
    "centre_recall": "Recall of centres",
    "centre_f1": "F1 of centres",
}
"""Titles of the scores, in display order; F1 at other IoU thresholds is drawn."""
MARKS = ("dice", "f1_50", "centre_f1", "v_rand", "hd95", "ece")
CENTRES = ("centre_precision", "centre_recall", "centre_f1")
IN_ROWS = (
    *("dice", "iou", "precision", "recall", "hd95", "surface_dice", "f1_50", "f1_75", "pq", "aji", "v_rand", "ece"),
    *CENTRES,
)
SMALL_PX = 160
"""Images up to this side are enlarged with sharp pixels."""
PACKAGES = ("overtile", "torch", "monai", "numpy", "scikit-image")


def write_report(
    out: Path, record: Mapping[str, Any], panels: Sequence[CasePanel], evaluation: Evaluation, maps: MapsShown | None
) -> Path:
    """Write the page and its charts; the panels have been written before.

    Returns:
        Path of the page.
    """
    charts = draw_charts(record)
    content = content_of(record) | {
        "intervals_chart": next((chart for chart in charts if chart.name == INTERVALS), None),
        "charts": [chart for chart in charts if chart.name != INTERVALS],
        "panels": panels_of(evaluation, record["cases"], panels),
        "colours": error_colours(),
        "classes": class_key(record["models"][0]["classes"]),
        "maps": maps,
    }
    page = render("evaluation.html.j2", content)
    return write_document(out, page, (*charts, *(maps.pictures if maps else ())))


def maps_of(models: Sequence[NamedModel], evaluation: Evaluation) -> MapsShown | None:
    """Return the feature maps of the first network for the median case; None if only baselines are evaluated."""
    if not models:
        return None
    from unet_core.model_file.checkpoint import load  # imports torch (1 s)

    ranked = evaluation.ranked()
    case = evaluation.cases[ranked[len(ranked) // 2]].annotated
    first = models[0].members[0]
    return show_maps(load(first.weights.path), MapInput(first.name, case), "maps")


# ---- text and tables, from the record --------------------------------------------------------------------------------


def content_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables of the template that are read from the record."""
    settings, models = record["settings"], record["models"]
    first = models[0]["name"]
    rest = f" and {len(models) - 1} others" if len(models) > 2 else f" and {models[1]['name']}" if models[1:] else ""
    return {
        "title": printable(f"Evaluation of {first}"),
        "lead": printable(
            f"{first}{rest}, on {plural(settings['images'], 'image')} of "
            f"{plural(settings['patients'], 'patient')}{_folds(settings)}."
        ),
        "models": [_model(record, model) for model in models],
        "intervals": _intervals_text(settings),
        "conclusions": [printable(pair["conclusion"]) for pair in record["comparisons"]],
        "scores": list(_scores(record)),
        "cases": case_table(record["cases"], settings["unit"]),
        "notes": [printable(line) for line in _notes(settings)],
        "rule": settings["rule_for_empty_masks"],
        "versions": versions(),
    }


def plural(number: int, thing: str) -> str:
    """Format a number of things: 1 image, 2 images."""
    return f"{number} {thing}{'s' * (number != 1)}"


def versions() -> str:
    """Return the versions of the packages that computed the scores."""
    return ", ".join(f"{package} {package_version(package) or '?'}" for package in PACKAGES)


def _folds(settings: Mapping[str, Any]) -> str:
    folds = settings.get("folds")
    return f" in fold{'s' * (len(folds) > 1)} {', '.join(map(str, folds))}" if folds else ""


def _intervals_text(settings: Mapping[str, Any]) -> str:
    bootstrap = settings["bootstrap"]
    if settings["patients"] < bootstrap["least"]:
        return f"No intervals: {plural(settings['patients'], 'patient')}, at least {bootstrap['least']} required."
    return (
        f"Below each score: {100 * bootstrap['level']:.0f} % bootstrap interval "
        f"({bootstrap['resamples']:,} resamples of patients)."
    )


def _model(record: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    unit, pooled = record["settings"]["unit"], model["pooled"]
    marks = [
        {"name": _score_title(name, unit), "value": pooled[name], "ends": model["intervals"].get(name)}
        for name in MARKS
        if name in pooled
    ]
    undefined = [f"{_score_title(name, unit)}: {count}" for name, count in model["undefined"].items() if name in NAMES]
    return {
        "name": printable(model["name"]),
        "headline": headline(model),
        "marks": marks,
        "how": printable(model["how"]),
        "sha256": model["sha256"],
        "empty": model["empty"],
        "undefined": ", ".join(undefined) or "none",
        "confusion": confusion(model["confusion"]),
    }


def headline(model: Mapping[str, Any]) -> str:
    """Summarise the scores of a model in one to four sentences."""
    pooled = model["pooled"]
    sentences = []
    if "recall" in pooled and "precision" in pooled:
        recall, precision = percent(pooled["recall"]), percent(pooled["precision"])
        sentences.append(f"It finds {recall} of the annotated area; {precision} of the area it finds is annotated.")
    if "f1_50" in pooled:
        f1 = number(pooled["f1_50"], 2)
        sentences.append(f"Counting objects that overlap by at least half (IoU 0.5), the F1 score is {f1}.")
    if "recall" not in pooled and all(name in pooled for name in CENTRES):
        recall, precision = percent(pooled["centre_recall"]), percent(pooled["centre_precision"])
        sentences.append(f"It finds {recall} of the annotated centres; {precision} of its objects have one.")
    if "v_rand" in pooled:
        v_rand = number(pooled["v_rand"], 2)
        sentences.append(f"The regions it separates agree with the annotated regions with a V_rand of {v_rand}.")
    if "ece" in pooled:
        points = f"{100 * pooled['ece']:.1f}"
        sentences.append(f"Its probabilities deviate by {points} percentage points on average.")
    return " ".join(sentences) or "No score is defined on these images."


def _score_title(name: str, unit: str) -> str:
    return f"{NAMES[name]} ({length_unit(unit)})" if name in LENGTHS else NAMES[name]


def length_unit(unit: str) -> str:
    """Format a unit of length."""
    return "\u00b5m" if unit == "um" else unit


def _scores(record: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """Yield a row for each score that any model has; the best value is marked."""
    models = record["models"]
    for name in NAMES:
        values = [model["pooled"].get(name) for model in models]
        defined = [value for value in values if value is not None]
        if defined:
            best = (min if name in ERRORS else max)(defined)
            cells = [
                {"value": value, "ends": model["intervals"].get(name), "best": value == best and len(models) > 1}
                for model, value in zip(models, values, strict=True)
            ]
            yield {"name": _score_title(name, record["settings"]["unit"]), "lower": name in ERRORS, "cells": cells}


def confusion(matrix: Mapping[str, Any]) -> dict[str, Any]:
    """Return the pixels of each true class by predicted class, with their share of the true class."""
    names = [printable(name) for name in matrix["classes"]]
    rows = []
    for name, counts in zip(names, matrix["pixels_true_by_found"], strict=True):
        total = sum(counts)
        cells = [{"pixels": pixels, "share": pixels / total if total else None} for pixels in counts]
        rows.append({"name": name, "cells": cells})
    return {"names": names, "rows": rows}


def case_table(rows: Sequence[Mapping[str, Any]], unit: str) -> dict[str, Any]:
    """Return the table of all images by all models: text columns, then the scores defined for any image."""
    columns = [name for name in IN_ROWS if any(name in row for row in rows)]
    heads = [
        *((name, "words") for name in ("Model", "Image", "Patient")),
        *((_score_title(name, unit), "number") for name in columns),
    ]
    lines = [
        {
            "words": [printable(str(row[name])) for name in ("model", "image", "patient")],
            "numbers": [row.get(name) for name in columns],
        }
        for row in rows
    ]
    return {"heads": heads, "rows": lines}


def _notes(settings: Mapping[str, Any]) -> list[str]:
    near = f"{settings['surface_tolerance']:g} {length_unit(settings['unit'])}"
    return [
        "Predictions are computed as by overtile segment: probability as bytes, the model's threshold (several "
        "classes: the most probable class), 8-connected components, objects below the model's minimum area removed.",
        "Pooled scores are computed from counts summed over all images, not as means over images.",
        f"HD95 and surface Dice compare outlines; surface Dice uses a tolerance of {near}. ECE is the mean "
        "difference between the predicted probability and the observed fraction.",
        f"Centres: {settings['centres']['rule']}.",
        *settings["said"],
    ]


# ---- pictures --------------------------------------------------------------------------------------------------------


def draw_charts(record: Mapping[str, Any]) -> tuple[Picture, ...]:
    """Draw the charts for which there is data: intervals, F1 by IoU, calibration."""
    models = record["models"]
    scores = [name for name in ("dice", "f1_50", "centre_f1", "v_rand") if name in models[0]["pooled"]]
    charts = []
    if any(model["intervals"] for model in models):
        rows = [(NAMES[name], [_bar(model, name) for model in models if name in model["pooled"]]) for name in scores]
        charts.append(interval_plot(rows))
    if curves := [line for model in models if (line := _f1_line(model))]:
        charts.append(f1_curve(curves))
    if bins := _bins(models):
        lines = [_reliability_line(name, reliability) for name, reliability in bins.items()]
        charts.append(reliability_plot(lines, {name: reliability["pixels"] for name, reliability in bins.items()}))
    return tuple(charts)


def _reliability_line(name: str, reliability: Mapping[str, Any]) -> Line:
    pairs = zip(reliability["probability"], reliability["share"], strict=True)
    return Line(name, *zip(*((p, share) for p, share in pairs if p is not None), strict=True))


def _bar(model: Mapping[str, Any], name: str) -> tuple[str, float, tuple[float, float] | None]:
    ends = model["intervals"].get(name)
    return model["name"], model["pooled"][name], tuple(ends) if ends else None


def _f1_line(model: Mapping[str, Any]) -> Line | None:
    pooled, intervals = model["pooled"], model["intervals"]
    keys = [f"f1_{round(100 * iou)}" for iou in IOUS]
    if any(key not in pooled for key in keys):
        return None
    ends = [tuple(intervals[key]) for key in keys] if all(key in intervals for key in keys) else None
    return Line(model["name"], IOUS, [pooled[key] for key in keys], ends)


def _bins(models: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Reliability by model for one class; by class of the first model for several classes."""
    if len(models[0]["classes"]) > 1:
        reliabilities = {name: scores.get("reliability") for name, scores in models[0]["classes"].items()}
    else:
        reliabilities = {
            model["name"]: scores.get("reliability") for model in models for scores in model["classes"].values()
        }
    return {
        name: reliability for name, reliability in reliabilities.items() if reliability and any(reliability["pixels"])
    }


def panels_of(
    evaluation: Evaluation, rows: Sequence[Mapping[str, Any]], panels: Sequence[CasePanel]
) -> list[dict[str, Any]]:
    """Return each panel with the name and scores of its case; a case with several ranks is listed once.

    Args:
        evaluation: The evaluation.
        rows: Scores of the cases of the first method, in order; rows of other methods may follow.
        panels: The panels.
    """
    by_number: dict[int, list[CasePanel]] = {}
    for panel in panels:
        by_number.setdefault(panel.number, []).append(panel)
    return [_panel(evaluation, rows[number], same) for number, same in by_number.items()]


def _panel(evaluation: Evaluation, row: Mapping[str, Any], same: Sequence[CasePanel]) -> dict[str, Any]:
    case = evaluation.cases[same[0].number]
    name, shape = printable(case.annotated.name), case.annotated.labels_YX.shape
    title = " and ".join(panel.rank for panel in same)
    return {
        "title": title.capitalize(),
        "case": name,
        "patient": printable(case.patient),
        "scores": [(NAMES[key], row[key]) for key in ("dice", "f1_50", "v_rand", "centre_f1") if key in row],
        "cut": max(shape) > SHOWN_PX,
        "small": max(shape) <= SMALL_PX,
        "picture": Picture(
            f"panels/{same[0].rank}", f"{title}: image, annotation, prediction, errors of {name}", same[0].png
        ),
    }


def class_key(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return name and CSS colour of each class."""
    titles = [printable(name) for name in names]
    return [(name, css(colour)) for name, colour in zip(titles, class_colours(len(titles)), strict=True)]


def error_colours() -> dict[str, str]:
    """Return the CSS colours of the error picture."""
    return {"correct": css(CORRECT), "false_positive": css(FALSE_POSITIVE), "missed": css(MISSED)}


def css(colour: Sequence[int]) -> str:
    """Format a colour for CSS."""
    return f"#{bytes(colour).hex()}"
