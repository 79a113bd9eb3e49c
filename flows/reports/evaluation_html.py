"""REPORT/report.html: what an evaluation found, told to a pathologist first and to an engineer further down.

The one decision made here: everything that the page says is read from the record that metrics.json holds, so page and
numbers cannot disagree; only pictures are made from images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.reports.activation_panels import Looked, MapsShown, show_maps
from flows.reports.case_panels import ONLY_FOUND, ONLY_TRUE, RIGHT, SHOWN_PX, CasePanel
from flows.reports.figures import INTERVALS, Line, f1_curve, interval_plot, reliability_plot
from flows.reports.html_page import Picture, number, percent, render, write_document
from pipeline.printable import printable
from pipeline.rendering.contrast import class_colours
from pipeline.storage.manifest import package_version
from unet_core.metrics.overlap import IOUS
from unet_core.metrics.score_table import ERRORS, LENGTHS

if TYPE_CHECKING:
    from pipeline.evaluation.cross_validated import Named
    from pipeline.evaluation.method_evaluation import Evaluation

NAMES = {
    "dice": "Dice",
    "iou": "IoU",
    "pixel_accuracy": "pixel accuracy",
    "precision": "precision",
    "recall": "recall",
    "hd95": "HD95",
    "surface_dice": "surface Dice",
    "ece": "ECE",
    "f1_50": "F1 at IoU 0.5",
    "f1_75": "F1 at IoU 0.75",
    "pq": "PQ",
    "aji": "AJI",
    "v_rand": "V_rand",
    "v_info": "V_info",
}
"""Scores in the order in which they are shown; F1 at other overlaps is drawn."""
MARKS = ("dice", "f1_50", "v_rand", "hd95", "ece")
IN_ROWS = ("dice", "iou", "precision", "recall", "hd95", "surface_dice", "f1_50", "f1_75", "pq", "aji", "v_rand", "ece")
SMALL_PX = 160
"""Images up to this side are enlarged pixel by pixel."""
PACKAGES = ("overtile", "torch", "monai", "numpy", "scikit-image")


def write_report(
    out: Path, record: Mapping[str, Any], panels: Sequence[CasePanel], evaluation: Evaluation, inside: MapsShown | None
) -> Path:
    """Write the page and its pictures but the panels, which are there; return its path."""
    charts = draw_charts(record)
    content = content_of(record) | {
        "intervals_chart": next((one for one in charts if one.name == INTERVALS), None),
        "charts": [one for one in charts if one.name != INTERVALS],
        "panels": panels_of(evaluation, record["cases"], panels),
        "colours": error_colours(),
        "classes": class_key(record["models"][0]["classes"]),
        "maps": inside,
    }
    page = render("evaluation.html.j2", content)
    return write_document(out, page, (*charts, *(inside.pictures if inside else ())))


def maps_of(models: Sequence[Named], evaluation: Evaluation) -> MapsShown | None:
    """The inside of the first network while it looks at the median case; none where only baselines are judged."""
    if not models:
        return None
    from unet_core.model_file.checkpoint import load  # torch costs a second

    ranked = evaluation.ranked()
    case = evaluation.cases[ranked[len(ranked) // 2]].annotated
    first = models[0].members[0]
    return show_maps(load(first.weights.path), Looked(first.name, case), "maps")


# ---- words and tables, from the record alone -------------------------------------------------------------------------


def content_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the template says."""
    settings, models = record["settings"], record["models"]
    first = models[0]["name"]
    rest = (
        f" beside {len(models) - 1} others" if len(models) > 2 else f" beside {models[1]['name']}" if models[1:] else ""
    )
    return {
        "title": printable(f"How good is {first}?"),
        "lead": printable(
            f"{first}{rest}, on {many(settings['images'], 'image')} of "
            f"{many(settings['patients'], 'patient')}{_folds(settings)}."
        ),
        "models": [_model(record, model) for model in models],
        "intervals": _about_intervals(settings),
        "conclusions": [printable(pair["conclusion"]) for pair in record["comparisons"]],
        "scores": list(_scores(record)),
        "cases": case_table(record["cases"], settings["unit"]),
        "notes": [printable(line) for line in _notes(settings)],
        "rule": settings["rule_for_empty_masks"],
        "versions": versions(),
    }


def many(number: int, thing: str) -> str:
    """A number of things: 1 image, 2 images."""
    return f"{number} {thing}{'s' * (number != 1)}"


def versions() -> str:
    """What computed it."""
    return ", ".join(f"{package} {package_version(package) or '?'}" for package in PACKAGES)


def _folds(settings: Mapping[str, Any]) -> str:
    folds = settings.get("folds")
    return f" in fold{'s' * (len(folds) > 1)} {', '.join(map(str, folds))}" if folds else ""


def _about_intervals(settings: Mapping[str, Any]) -> str:
    told = settings["bootstrap"]
    if settings["patients"] < told["least"]:
        return f"No intervals: {many(settings['patients'], 'patient')}, expected {told['least']} or more."
    return (
        f"Below each number its {100 * told['level']:.0f} % interval: {told['resamples']:,} sets of as many patients, "
        "drawn with replacement."
    )


def _model(record: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    unit, pooled = record["settings"]["unit"], model["pooled"]
    marks = [
        {"name": _named(name, unit), "value": pooled[name], "ends": model["intervals"].get(name)}
        for name in MARKS
        if name in pooled
    ]
    undefined = [f"{_named(name, unit)} in {count}" for name, count in model["undefined"].items() if name in NAMES]
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
    """What a model's scores say, in a sentence or two."""
    pooled = model["pooled"]
    said = []
    if "recall" in pooled and "precision" in pooled:
        found, right = percent(pooled["recall"]), percent(pooled["precision"])
        said.append(f"Of the annotated area it finds {found}; of the area it finds, {right} is annotated.")
    if "f1_50" in pooled:
        f1 = number(pooled["f1_50"], 2)
        said.append(f"Counted as objects that overlap by half or more, found and annotated agree with an F1 of {f1}.")
    if "v_rand" in pooled:
        said.append(
            f"The rooms that it parts agree with the annotated ones with a V_rand of {number(pooled['v_rand'], 2)}."
        )
    if "ece" in pooled:
        points = f"{100 * pooled['ece']:.1f}"
        said.append(f"Its probabilities are off by {points} percentage points on average.")
    return " ".join(said) or "No score is defined on these images."


def _named(name: str, unit: str) -> str:
    return f"{NAMES[name]} ({length_unit(unit)})" if name in LENGTHS else NAMES[name]


def length_unit(unit: str) -> str:
    """A unit of the record's as people write it."""
    return "\u00b5m" if unit == "um" else unit


def _scores(record: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """A row for each score that some model has, the best of it marked."""
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
            yield {"name": _named(name, record["settings"]["unit"]), "lower": name in ERRORS, "cells": cells}


def confusion(told: Mapping[str, Any]) -> dict[str, Any]:
    """Pixels of each true class by found class, with their share of the true class's."""
    names = [printable(name) for name in told["classes"]]
    rows = []
    for name, counts in zip(names, told["pixels_true_by_found"], strict=True):
        total = sum(counts)
        cells = [{"pixels": pixels, "share": pixels / total if total else None} for pixels in counts]
        rows.append({"name": name, "cells": cells})
    return {"names": names, "rows": rows}


def case_table(rows: Sequence[Mapping[str, Any]], unit: str) -> dict[str, Any]:
    """Every image by every model: words, then the scores that some image has."""
    shown = [name for name in IN_ROWS if any(name in row for row in rows)]
    heads = [
        *((name, "words") for name in ("model", "image", "patient")),
        *((_named(n, unit), "number") for n in shown),
    ]
    lines = [
        {
            "words": [printable(str(row[name])) for name in ("model", "image", "patient")],
            "numbers": [row.get(name) for name in shown],
        }
        for row in rows
    ]
    return {"heads": heads, "rows": lines}


def _notes(settings: Mapping[str, Any]) -> list[str]:
    near = f"{settings['surface_tolerance']:g} {length_unit(settings['unit'])}"
    return [
        "As a user meets it: bytes of probability, the model's own threshold (several classes: the largest), "
        "8-connected components of the whole image, those below the model's smallest area dropped.",
        "Pooled scores come from counts added over all images, not from means of images.",
        f"HD95 and surface Dice compare outlines; surface Dice counts what lies within {near}. ECE is the "
        "mean difference between the probability stated and the share that is.",
        *settings["said"],
    ]


# ---- pictures --------------------------------------------------------------------------------------------------------


def draw_charts(record: Mapping[str, Any]) -> tuple[Picture, ...]:
    """Intervals of the models side by side, F1 by overlap, calibration: those for which there is anything."""
    models = record["models"]
    shown = [name for name in ("dice", "f1_50", "v_rand") if name in models[0]["pooled"]]
    charts = []
    if any(model["intervals"] for model in models):
        rows = [(NAMES[name], [_bar(model, name) for model in models if name in model["pooled"]]) for name in shown]
        charts.append(interval_plot(rows))
    if curves := [line for model in models if (line := _f1_line(model))]:
        charts.append(f1_curve(curves))
    bins = _bins(models)
    if bins:
        lines = [
            Line(
                name,
                *zip(
                    *((p, s) for p, s in zip(told["probability"], told["share"], strict=True) if p is not None),
                    strict=True,
                ),
            )
            for name, told in bins.items()
        ]
        charts.append(reliability_plot(lines, {name: told["pixels"] for name, told in bins.items()}))
    return tuple(charts)


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
    """Reliability by model where there is one class, by class of the first model where there are several."""
    if len(models[0]["classes"]) > 1:
        found = {name: told.get("reliability") for name, told in models[0]["classes"].items()}
    else:
        found = {m["name"]: told.get("reliability") for m in models for told in m["classes"].values()}
    return {name: told for name, told in found.items() if told and any(told["pixels"])}


def panels_of(
    evaluation: Evaluation, rows: Sequence[Mapping[str, Any]], panels: Sequence[CasePanel]
) -> list[dict[str, Any]]:
    """Each panel with its case's name and scores; a case that is two of best, median and worst is shown once.

    ``rows`` are the cases of the first method, in order; others may follow.
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
        "scores": [(NAMES[key], row[key]) for key in ("dice", "f1_50", "v_rand") if key in row],
        "cut": max(shape) > SHOWN_PX,
        "small": max(shape) <= SMALL_PX,
        "picture": Picture(
            f"panels/{same[0].rank}", f"{title}: image, truth, prediction, errors of {name}", same[0].png
        ),
    }


def class_key(names: Iterable[str]) -> list[tuple[str, str]]:
    """What the colours of truth and prediction stand for."""
    known = [printable(name) for name in names]
    return [(name, css(colour)) for name, colour in zip(known, class_colours(len(known)), strict=True)]


def error_colours() -> dict[str, str]:
    """What the colours of the error picture are in CSS."""
    return {"right": css(RIGHT), "only_found": css(ONLY_FOUND), "only_true": css(ONLY_TRUE)}


def css(colour: Sequence[int]) -> str:
    """A colour as CSS writes it."""
    return f"#{bytes(colour).hex()}"
