"""Evaluate methods on annotated images: scores with intervals, and paired comparisons.

The record of an evaluation is plain data, derived from sums only and without times or paths, so the same images and
models give the same bytes. Lengths are converted to micrometres where all models that state a resolution state the
same one.

    pooled, cases     scores of the first model, and of every model on each image; undefined ones are absent
    models            each model and baseline: file, pooled scores, intervals, undefined images, classes, confusion,
                      reliability
    comparisons       each against the first, paired by patient
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from pipeline.evaluation.image_scorer import ImageScorer, ImageScores
from pipeline.evaluation.methods import Method
from unet_core.data.sampler import AnnotatedImage
from unet_core.metrics import surface_distance
from unet_core.metrics.bootstrap import (
    LEAST_PATIENTS,
    LEVEL,
    RESAMPLES,
    SEED,
    Patients,
    ScoredMethod,
    compare,
    interval,
)
from unet_core.metrics.calibration import reliability
from unet_core.metrics.centres import WITHIN_PX, WITHIN_UM, within_px
from unet_core.metrics.overlap import Array, Scores
from unet_core.metrics.score_table import CALIBRATION, LENGTHS, Table, class_mean

COMPARED, OF_DOTS = ("dice", "f1_50", "v_rand"), "centre_f1"
"""Scores that are compared, and the one of images with dots, which is defined for outlined images too."""
RULE = (
    "nothing true and nothing found: 1 (a distance: 0), counted as empty; any other 0/0, and a distance to nothing: "
    "undefined, absent and counted; pooled scores come from summed counts"
)


@dataclass(frozen=True, slots=True)
class EvaluationCase:
    """An annotated image, its patient, its fold and its resolution in um per pixel, if known."""

    annotated: AnnotatedImage
    patient: str
    fold: int | None = None
    mpp: float | None = None

    def within_px(self, within_um: float) -> float:
        """Largest distance of matched centres in px."""
        return within_px(self.mpp, within_um)


@dataclass(frozen=True)
class MethodResult:
    """Sums of one method on all cases."""

    method: Method
    image_scores: tuple[ImageScores, ...]

    @cached_property
    def tables(self) -> tuple[Table, ...]:
        """Sums of each class, one row an image."""
        return tuple(Table.of(images) for images in zip(*(one.classes for one in self.image_scores), strict=True))

    @property
    def applies(self) -> dict[str, Array]:
        """For each score the images (n,) that have what it is computed from."""
        by_class = [table.applies() for table in self.tables]
        names = dict.fromkeys(name for one in by_class for name in one)
        return {name: np.any([one[name] for one in by_class if name in one], axis=0) for name in names}

    def scores(self, weights_RN: Array) -> Scores:
        """Mean over classes of the scores of weighted images (replicates, images); lengths in px."""
        return class_mean([table.weighted(weights_RN).scores() for table in self.tables])


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Methods scored on the same cases.

    ``mpp`` is in um per pixel; None where lengths stay in px. ``within_um`` is the largest distance of matched centres.
    """

    cases: tuple[EvaluationCase, ...]
    results: tuple[MethodResult, ...]
    mpp: float | None
    within_um: float = WITHIN_UM

    @property
    def patients(self) -> Patients:
        """Images by patient."""
        return Patients.of([case.patient for case in self.cases])

    @property
    def dotted(self) -> bool:
        """Whether any image has dots."""
        return any(case.annotated.points_N3 is not None for case in self.cases)

    def scorer(self, number: int) -> ImageScorer:
        """Scorer of one case by the first method."""
        case = self.cases[number]
        return self.results[0].method.judge(case.annotated, case.within_px(self.within_um))

    def ranked(self) -> list[int]:
        """Indices of the cases from best to worst by a score of the first method that all images have."""
        scores = self.results[0].scores(np.eye(len(self.cases)))
        found = scores.get(OF_DOTS if self.dotted else "dice", np.zeros(len(self.cases)))
        return [int(i) for i in np.argsort(-np.nan_to_num(found, nan=-1.0), kind="stable")]


def evaluate_methods(
    cases: Sequence[EvaluationCase],
    methods: Sequence[Method],
    done: Callable[[], object],
    within_um: float = WITHIN_UM,
) -> Evaluation:
    """Score every method on every case; ``done`` is called after each. Centres match within ``within_um``."""
    mpp = common_mpp(methods)
    # An image that states no resolution is taken for that of the networks.
    cases = [replace(case, mpp=case.mpp or mpp) for case in cases]

    def results() -> Iterator[MethodResult]:
        for method in methods:
            image_scores = []
            for case in cases:
                image_scores.append(method.judge(case.annotated, case.within_px(within_um)).run())
                done()
            yield MethodResult(method, tuple(image_scores))

    return Evaluation(tuple(cases), tuple(results()), mpp, within_um)


def common_mpp(methods: Sequence[Method]) -> float | None:
    """The resolution of all methods that state one; None where they differ."""
    stated = {method.mpp for method in methods if method.mpp is not None}
    return stated.pop() if len(stated) == 1 else None


def record_of(evaluation: Evaluation) -> dict[str, Any]:
    """The evaluation as plain data."""
    patients = evaluation.patients
    scored = [ScoredMethod.of(result.method.name, result.scores, patients) for result in evaluation.results]
    models = [_model(evaluation, *pair) for pair in zip(evaluation.results, scored, strict=True)]
    compared = (*COMPARED, *([OF_DOTS] if evaluation.dotted else []))
    pairs = [compare(scored[0], other, score) for other in scored[1:] for score in compared if score in other.pooled]
    found = [asdict(pair) for pair in pairs if pair is not None]
    return {
        "pooled": models[0]["pooled"],
        "cases": [row for result in evaluation.results for row in case_rows(evaluation, result)],
        "models": models,
        "comparisons": found,
        "settings": _settings(evaluation, patients),
    }


def _settings(evaluation: Evaluation, patients: Patients) -> dict[str, Any]:
    unit = "px" if evaluation.mpp is None else "um"
    tolerance = surface_distance.TOLERANCE_PX * (evaluation.mpp or 1.0)
    return {
        "images": len(evaluation.cases),
        "patients": len(patients.names),
        "unit": unit,
        "mpp": evaluation.mpp,
        "surface_tolerance": tolerance,
        "centres": _centres(evaluation),
        "bootstrap": {
            "over": "patients",
            "resamples": RESAMPLES,
            "seed": SEED,
            "level": LEVEL,
            "least": LEAST_PATIENTS,
        },
        "rule_for_empty_masks": RULE,
    }


def _centres(evaluation: Evaluation) -> dict[str, Any]:
    """How centres are matched, and the number of images with dots."""
    without = sum(case.mpp is None for case in evaluation.cases)
    dots = sum(case.annotated.points_N3 is not None for case in evaluation.cases)
    near = [f"{evaluation.within_um:g} um"] if without < len(evaluation.cases) else []
    near += [f"{WITHIN_PX:g} px where no resolution is known"] if without else []
    rule = f"matched one to one within {' or '.join(near)}, as many pairs as possible, then the least distance"
    if dots:
        rule += f"; scores of pixels and outlines leave out {dots} images with dots"
    return {"within_um": evaluation.within_um, "within_px": WITHIN_PX, "images_with_dots": dots, "rule": rule}


def _model(evaluation: Evaluation, result: MethodResult, scored: ScoredMethod) -> dict[str, Any]:
    method, own = result.method, result.scores(np.eye(len(evaluation.cases)))
    names = ("background", *method.config.class_names)
    intervals = {name: interval(drawn) for name, drawn in scored.resampled.items()}
    applies = result.applies
    undefined = {name: int((np.isnan(values) & applies[name]).sum()) for name, values in own.items()}
    return {
        "name": method.name,
        "how": method.how,
        "sha256": method.sha256,
        "mpp": method.mpp,
        "pooled": _plain(evaluation, scored.pooled, 0),
        "intervals": {
            name: [_scaled(evaluation, name, end) for end in ends] for name, ends in intervals.items() if ends
        },
        "undefined": {name: count for name, count in undefined.items() if count},
        "empty": max(table.empty() for table in result.tables),
        "classes": {
            name: _class(evaluation, table)
            for name, table in zip(method.config.class_names, result.tables, strict=True)
        },
        "confusion": {
            "classes": list(names),
            "pixels_true_by_found": sum(one.confusion for one in result.image_scores).tolist(),  # type: ignore[union-attr]  # there is at least one case
        },
    }


def _class(evaluation: Evaluation, table: Table) -> dict[str, Any]:
    together = table.weighted(np.ones((1, len(evaluation.cases))))
    scores: dict[str, Any] = {"pooled": _plain(evaluation, together.scores(), 0), "empty": table.empty()}
    if CALIBRATION in together.sums:
        scores["reliability"] = reliability(together.sums[CALIBRATION][0])

    return scores


def case_rows(evaluation: Evaluation, result: MethodResult) -> list[dict[str, Any]]:
    """One row for each image: metadata and its defined scores."""
    scores = result.scores(np.eye(len(evaluation.cases)))
    return [
        {"model": result.method.name, "image": case.annotated.name, "patient": case.patient, "fold": case.fold}
        | _plain(evaluation, scores, number)
        for number, case in enumerate(evaluation.cases)
    ]


def _plain(evaluation: Evaluation, scores: Scores, row: int) -> dict[str, float]:
    """Defined scores of one row, lengths in the evaluation's unit."""
    found = {name: float(values[row]) for name, values in scores.items()}
    return {name: _scaled(evaluation, name, value) for name, value in found.items() if not np.isnan(value)}


def _scaled(evaluation: Evaluation, name: str, value: float) -> float:
    return value * (evaluation.mpp or 1.0) if name in LENGTHS else value
