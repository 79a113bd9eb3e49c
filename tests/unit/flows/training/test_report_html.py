"""report.html of a training run: metrics equal the log, the command repeats the run, the page is self-contained."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flows.reports.activation_panels import FeatureMapStrip, MapsShown
from flows.reports.figures import MAX_POINTS, running_mean, subsampling
from flows.reports.html_page import Picture, render
from flows.training.fold_diagnostics import FoldDiagnostics, diagnose
from flows.training.history import command_of, history_of
from flows.training.report_html import content_of, write_training_report
from flows.training.training_data import PreparedTraining, TrainRequest, prepare
from pipeline.config import load_as
from pipeline.evaluation.method_evaluation import case_rows
from tests.conftest import skip_or_fail
from tests.support.browser import browser, page_of
from tests.support.make_discs import write_discs
from tests.unit.flows.reporting import HOSTILE, assert_alone
from tests.unit.unet_core.training_runs import Silent, lines, recipe
from unet_core.model_file.checkpoint import load
from unet_core.networks.whole_pass import whole_pass
from unet_core.training.config import TrainConfig
from unet_core.training.diagnostics import THRESHOLDS, skip_gradient_norms, threshold_scores, validation_images
from unet_core.training.trainer import BEST, TrainJob, train

FOLDS = ("fold-0", "fold-1")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Trained:
    """A run of three folds, two of them trained, and its page."""

    request: TrainRequest
    prepared: PreparedTraining
    path: Path
    markdown: str

    @property
    def job(self) -> TrainJob:
        return self.prepared.jobs[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("trained")
    discs = write_discs(root)
    for folder in (discs.images, discs.masks):
        (folder / "0.png").rename(folder / f"{HOSTILE}.png")
    discs.cases.write_text(discs.cases.read_text().replace("\n0.png", f"\n{HOSTILE}.png"))
    config = recipe(folds={"hold_back": "all"}, data={"classes": ("<disc>",)}, network={"mpp": 0.5})
    request = TrainRequest(discs.images, discs.masks, discs.cases, root / "a run", config)
    request.out.mkdir()
    every = prepare(request)
    prepared = PreparedTraining(every.jobs[: len(FOLDS)], every.summary)
    for job in prepared.jobs:
        job.folder.mkdir(parents=True)
        train(job, Silent())
    return Trained(request, prepared, *write_training_report(request, prepared))


def test_page_is_self_contained_with_every_fold_and_names_are_escaped(trained: Trained) -> None:
    page = assert_alone(trained.path)
    assert trained.path == trained.request.out / "report.html"
    assert HOSTILE in page.text
    assert "disc" not in page.tags
    for fold in FOLDS:
        assert f"{fold}: training curves" in page.text
        kept = load(trained.request.out / fold / BEST).spec
        assert f"threshold {kept.threshold:g}" in page.text
        names = {path.name for path in (trained.request.out / fold / "figures").iterdir()}
        assert names == {f"{name}.png" for name in ("loss", "rate", "scores", "threshold", "gradients", "skips")}
    pictures = list(trained.request.out.rglob("*.png"))
    assert len(pictures) == 1 + len(FOLDS) * (6 + 3 + 4)
    for path in pictures:
        Image.open(path).verify()
    for fold, line in zip(FOLDS, trained.markdown.splitlines()[-2:], strict=True):
        assert line.startswith(f"| {fold} |")
    assert f"`{trained.path.resolve()}`" in trained.markdown


def test_command_repeats_the_run(trained: Trained) -> None:
    words = shlex.split(command_of(trained.request))
    assert words[:2] == ["overtile", "train"]
    options = dict(zip(words[2:10:2], words[3:10:2], strict=True))
    request = trained.request
    assert options == {
        "--images": str(request.images),
        "--masks": str(request.masks),
        "--cases": str(request.cases),
        "--out": str(request.out),
    }
    assert set(words[10::2]) == {"--set"}
    assert load_as(TrainConfig, None, words[11::2]) == request.recipe
    assert command_of(trained.request) in assert_alone(trained.path).text


def test_metric_curves_equal_the_log(trained: Trained) -> None:
    history = history_of(trained.job.folder)
    steps = [line for line in lines(trained.job.folder) if "loss" in line]
    validations = [line for line in lines(trained.job.folder) if "validation" in line]
    assert list(zip(history.steps, history.loss, history.rate, strict=True)) == [
        (line["step"], line["loss"], line["rate"]) for line in steps
    ]
    assert {name: list(values) for name, values in history.norms.items()} == {
        name: [line["gradient_norms"][name] for line in steps] for name in steps[0]["gradient_norms"]
    }
    assert list(history.validation_steps) == [line["step"] for line in validations] == [0, 3, 6, 7]
    after = [line for line in validations if line["step"]]
    best = max(after, key=lambda line: line["validation"]["dice"])
    assert history.best_step == best["step"]


@pytest.fixture(scope="module")
def fold(trained: Trained) -> FoldDiagnostics:
    return diagnose(trained.job, trained.request.out)


def test_held_back_cases_are_ranked_by_dice(fold: FoldDiagnostics) -> None:
    rows = case_rows(fold.evaluation, fold.evaluation.results[0])
    assert [row["image"] for row in rows] == ["3", HOSTILE]
    best, _, worst = fold.panels
    dice = [row["dice"] for row in rows]
    assert dice[best.number] == max(dice)
    assert dice[worst.number] == min(dice)
    assert fold.evaluation.mpp == 0.5


def test_threshold_scores_are_computed_from_bytes(trained: Trained) -> None:
    network = load(trained.job.folder / BEST)
    network.spec = network.spec.model_copy(update={"min_area_um2": 0.0, "objects": None})
    cases = validation_images(trained.job)
    found = threshold_scores(network, cases)
    for place, threshold in enumerate(THRESHOLDS):
        both = total = 0
        for case in cases:
            marked = whole_pass(network, case.image_CYX)[0] / 255 >= threshold
            true = np.asarray(case.labels_YX) > 0
            both, total = both + (marked & true).sum(), total + marked.sum() + true.sum()
        assert found.dice[place] == pytest.approx(2 * both / total if total else 1.0)
    assert len(found.f1) == len(THRESHOLDS)


def test_diagnostics_are_repeatable_and_change_nothing(trained: Trained) -> None:
    network = load(trained.job.folder / BEST)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state, cases = torch.get_rng_state(), validation_images(trained.job)
    first, second = (skip_gradient_norms(trained.job, network, cases) for _ in range(2))
    assert first == second
    assert [flow.name for flow in first] == ["skip 1"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_running_mean_and_subsampling_keep_the_last_point() -> None:
    values = np.random.default_rng(0).random(130).tolist()
    over = 130 // 20
    assert running_mean(values) == pytest.approx(
        [float(np.mean(values[max(0, i + 1 - over) : i + 1])) for i in range(len(values))]
    )
    assert running_mean([]) == []
    for count in (0, 1, MAX_POINTS, MAX_POINTS + 1, 10 * MAX_POINTS + 7):
        kept = list(range(count))[subsampling(range(count))]
        assert len(kept) <= MAX_POINTS
        assert kept[-1:] == list(range(count))[-1:]


def test_attention_is_shown_if_the_network_has_gates(trained: Trained, fold: FoldDiagnostics) -> None:
    picture = Picture("maps/gate-1", "attention of gate 1", b"png")
    gates = (FeatureMapStrip("gate 1", "0.10 to 0.90", picture),)
    for shown in (gates, ()):
        folds = [replace(fold, maps=MapsShown("net", "case", picture, (), shown))]
        content = content_of(trained.request, trained.prepared, folds)
        page = render("training.html.j2", content | {"samples": picture})
        assert ("0.10 to 0.90" in page, "no attention gates" in page) == (bool(shown), not shown)


def test_page_opens_in_a_browser_without_requests(trained: Trained, tmp_path: Path) -> None:
    if browser() is None:
        skip_or_fail("no Chromium: make browser installs it on Debian as root")
    with page_of(trained.path, tmp_path / "profile") as page:
        assert [url for url in page.requests if not url.startswith("data:")] == [trained.path.resolve().as_uri()]
        assert page.value("[...document.images].length") == 1 + len(FOLDS) * (6 + 2 + 4)
        assert page.value("[...document.images].filter((one) => !one.complete || !one.naturalWidth).length") == 0
        assert page.complaints == []
