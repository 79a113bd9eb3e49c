"""One network that was trained, looked at when it is over: scores, curves, thresholds, skips, the inside.

The one decision made here: what is shown of a network is measured with the very file that `segment` takes, on the
images that were held back; of a run without any, on images it has learnt from. The gradient through each skip is
measured once, on one batch without augmentation (unet_core.training.diagnostics); how the norms of
the levels ran comes from the record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flows.reports.activation_panels import Looked, MapsShown, show_maps
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
from unet_core.networks.activations import Flow
from unet_core.networks.unet import SegmentationNetwork
from unet_core.spec import UNetSpec
from unet_core.training.diagnostics import THRESHOLDS, seen, skip_flows, threshold_scores
from unet_core.training.trainer import BEST, TrainJob


@dataclass(frozen=True, slots=True)
class FoldDiagnostics:
    """A network that was trained: its course, what it finds on the images shown, and its inside."""

    order: TrainJob
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
        """What people call it."""
        return printable(self.order.folder.resolve().name)

    @property
    def pooled(self) -> dict[str, float]:
        """Scores of all images shown together, lengths in px."""
        scores = self.evaluation.results[0].scores(np.ones((1, len(self.evaluation.cases))))
        return {name: float(value[0]) for name, value in scores.items() if not np.isnan(value[0])}

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All but the panels, which are written already."""
        drawn = (one for one in (*self.curves, self.norms, self.threshold, self.skips) if one)
        return (*drawn, *self.maps.pictures)


def look_at(order: TrainJob, out: Path) -> FoldDiagnostics:
    """Measure and draw what there is to say of one network; its panels are written."""
    below = order.folder.relative_to(out).as_posix()
    folder = "" if below == "." else f"{below}/"
    network, history, cases = _network(order), history_of(order.folder), seen(order)
    evaluation = _judged(order, [EvaluationCase(case, case.name) for case in cases])
    panels = write_panels(evaluation, order.folder / "panels")
    flows = skip_flows(order, network, cases)
    name = f"{folder}figures"
    curves = [loss_curve(f"{name}/loss", history), rate_curve(f"{name}/rate", history)]
    if history.judged:
        curves.insert(1, score_curve(f"{name}/scores", history))
    middle = evaluation.cases[panels[1].number].annotated
    return FoldDiagnostics(
        order=order,
        folder=folder,
        spec=network.spec,
        history=history,
        evaluation=evaluation,
        panels=panels,
        curves=tuple(curves),
        norms=norm_curves(f"{name}/gradients", history),
        threshold=_threshold(f"{name}/threshold", network, cases),
        skips=_skips(f"{name}/skips", flows),
        maps=show_maps(network, Looked(BEST, middle), f"{folder}maps"),
    )


def _network(order: TrainJob) -> SegmentationNetwork:
    return load(order.folder / BEST).to(resolve_device(order.recipe.compute.device))


def _judged(order: TrainJob, cases: Sequence[EvaluationCase]) -> Evaluation:
    model = load_model(ModelSection(weights=str(order.folder / BEST)))
    return evaluate_methods(cases, networks([model], order.recipe.compute.device), lambda: None)


def _threshold(name: str, network: SegmentationNetwork, cases: Sequence[AnnotatedImage]) -> Picture | None:
    if network.spec.foreground > 1 or network.spec.threshold is None:
        return None
    found = threshold_scores(network, cases)
    lines = [Line("Dice", THRESHOLDS, found.dice), Line("F1 of objects at IoU 0.5", THRESHOLDS, found.f1)]
    return threshold_curve(name, lines, network.spec.threshold)


def _skips(name: str, flows: Sequence[Flow]) -> Picture | None:
    return skip_bars(name, [(flow.name, flow.skip, flow.below) for flow in flows]) if flows else None
