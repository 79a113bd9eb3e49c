"""Diagnostics of one trained network: scores, curves, thresholds, skip gradients and feature maps.

Everything is measured with the model file that ``segment`` uses, on the held-back images; if none were held back, on
the training images. The gradient through each skip connection is measured once, on one batch without augmentation
(unet_core.training.diagnostics). The gradient norms of the levels are read from the metrics log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flows.reports.activation_panels import MapInput, MapsShown, show_maps
from flows.reports.case_panels import CasePanel, write_panels
from flows.reports.figures import (
    Line,
    MetricCurves,
    loss_curve,
    norm_curves,
    rate_curve,
    score_curve,
    skip_bars,
    threshold_curve,
)
from flows.reports.html_page import Picture
from flows.training.history import history_of
from pipeline.config import ModelSection
from pipeline.evaluation.method_evaluation import Evaluation, EvaluationCase, evaluate_methods
from pipeline.evaluation.methods import networks
from pipeline.inference.ensemble import load_model
from pipeline.printable import printable
from unet_core.data.sampler import AnnotatedImage
from unet_core.device import resolve_device
from unet_core.model_file.checkpoint import load
from unet_core.networks.activations import SkipGradient
from unet_core.networks.unet import SegmentationNetwork
from unet_core.spec import UNetSpec
from unet_core.training.diagnostics import THRESHOLDS, skip_gradient_norms, threshold_scores, validation_images
from unet_core.training.trainer import BEST, TrainJob


@dataclass(frozen=True, slots=True)
class FoldDiagnostics:
    """A trained network: metrics, evaluation on the displayed images, and feature maps."""

    job: TrainJob
    folder: str
    spec: UNetSpec
    history: MetricCurves
    evaluation: Evaluation
    panels: tuple[CasePanel, ...]
    curves: tuple[Picture, ...]
    norms: Picture
    threshold: Picture | None
    skips: Picture | None
    maps: MapsShown

    @property
    def name(self) -> str:
        """Display name."""
        return printable(self.job.folder.resolve().name)

    @property
    def pooled(self) -> dict[str, float]:
        """Pooled scores of all displayed images, lengths in px."""
        scores = self.evaluation.results[0].scores(np.ones((1, len(self.evaluation.cases))))
        return {name: float(value[0]) for name, value in scores.items() if not np.isnan(value[0])}

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All pictures except the panels, which are already written."""
        charts = (chart for chart in (*self.curves, self.norms, self.threshold, self.skips) if chart)
        return (*charts, *self.maps.pictures)


def diagnose(job: TrainJob, out: Path) -> FoldDiagnostics:
    """Measure one network, draw its charts and write its panels.

    Args:
        job: The training job of the network.
        out: Folder of the run.
    """
    relative = job.folder.relative_to(out).as_posix()
    folder = "" if relative == "." else f"{relative}/"
    network, history, cases = _network(job), history_of(job.folder), validation_images(job)
    evaluation = _evaluate(job, [EvaluationCase(case, case.name) for case in cases])
    panels = write_panels(evaluation, job.folder / "panels")
    flows = skip_gradient_norms(job, network, cases)
    name = f"{folder}figures"
    curves = [loss_curve(f"{name}/loss", history), rate_curve(f"{name}/rate", history)]
    if history.validation_steps:
        curves.insert(1, score_curve(f"{name}/scores", history))
    middle = evaluation.cases[panels[1].number].annotated
    return FoldDiagnostics(
        job=job,
        folder=folder,
        spec=network.spec,
        history=history,
        evaluation=evaluation,
        panels=panels,
        curves=tuple(curves),
        norms=norm_curves(f"{name}/gradients", history),
        threshold=_threshold(f"{name}/threshold", network, cases),
        skips=_skips(f"{name}/skips", flows),
        maps=show_maps(network, MapInput(BEST, middle), f"{folder}maps"),
    )


def _network(job: TrainJob) -> SegmentationNetwork:
    return load(job.folder / BEST).to(resolve_device(job.recipe.compute.device))


def _evaluate(job: TrainJob, cases: Sequence[EvaluationCase]) -> Evaluation:
    model = load_model(ModelSection(weights=str(job.folder / BEST)))
    return evaluate_methods(cases, networks([model], job.recipe.compute.device), lambda: None)


def _threshold(name: str, network: SegmentationNetwork, cases: Sequence[AnnotatedImage]) -> Picture | None:
    if network.spec.foreground > 1 or network.spec.threshold is None:
        return None
    scores = threshold_scores(network, cases)
    lines = [Line("Dice", THRESHOLDS, scores.dice), Line("F1 of objects at IoU 0.5", THRESHOLDS, scores.f1)]
    return threshold_curve(name, lines, network.spec.threshold)


def _skips(name: str, flows: Sequence[SkipGradient]) -> Picture | None:
    return skip_bars(name, [(flow.name, flow.skip, flow.below) for flow in flows]) if flows else None
