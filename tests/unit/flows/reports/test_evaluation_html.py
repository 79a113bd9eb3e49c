"""report.html of an evaluation: content equals metrics.json, names are escaped, and the page is self-contained."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flows.reports.activation_panels import GAP_PX, MAP_PX, side_by_side, stretch, subsample
from flows.reports.case_panels import CORRECT, FALSE_POSITIVE, MISSED, write_panels
from flows.reports.evaluation_html import confusion, content_of, draw_charts, headline, maps_of, write_report
from flows.reports.figures import label
from flows.reports.html_page import Picture, render
from pipeline.config import ModelSection
from pipeline.evaluation.image_scorer import ProbabilityReader, ScoringConfig
from pipeline.evaluation.method_evaluation import Evaluation, EvaluationCase, evaluate_methods, record_of
from pipeline.evaluation.methods import Method
from pipeline.inference.ensemble import load_model
from tests.conftest import skip_or_fail
from tests.support.browser import browser, page_of
from tests.support.make_discs import drawn
from tests.unit.flows.reporting import HOSTILE, assert_alone
from unet_core.data.sampler import AnnotatedImage
from unet_core.mirror import ArrayLike
from unet_core.model_file.checkpoint import save
from unet_core.networks.unet import UNet
from unet_core.spec import UNetSpec

NAMES = [HOSTILE, *(f"image {i}" for i in range(1, 7)), "empty"]


def thresholded(byte: int, shift: int) -> Callable[[ArrayLike], ProbabilityReader]:
    """A method that predicts dark pixels of the second channel, shifted down by some pixels."""

    def answers(image_CYX: ArrayLike) -> ProbabilityReader:
        found = np.roll(np.asarray(image_CYX)[1] < 110, shift, axis=0)
        return lambda box: np.where(found[box.slices], 230, byte).astype(np.uint8)[None]

    return answers


def named(name: str, byte: int, shift: int) -> Method:
    return Method(name, f"moved by {shift}", ScoringConfig(("disc",), 0.5, 1), thresholded(byte, shift), 0.5, "ab" * 32)


def case(number: int, name: str) -> EvaluationCase:
    image, labels = drawn(number)
    if name == "empty":
        image, labels = np.full_like(image, 220), np.zeros_like(labels)
    annotated = AnnotatedImage(name, np.ascontiguousarray(image.transpose(2, 0, 1)), labels.astype(np.int32))
    return EvaluationCase(annotated, f"patient {number}", 0)


@dataclass(frozen=True)
class Reported:
    """A page with its evaluation and record."""

    path: Path
    evaluation: Evaluation
    record: dict[str, Any]


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Reported:
    out = tmp_path_factory.mktemp("report")
    cases = [case(number, name) for number, name in enumerate(NAMES)]
    methods = [named("$first$_<model>", 20, 1), named("second", 60, 3)]
    evaluation = evaluate_methods(cases, methods, lambda: None)
    record = record_of(evaluation)
    record["settings"] |= {"folds": [0], "said": [f"{HOSTILE} is odd"]}
    panels = write_panels(evaluation, out / "panels")
    save(out / "<network>.safetensors", UNet(UNetSpec(depth=1, width=2)).eval(), {})
    models = [load_model(ModelSection(weights=str(out / "<network>.safetensors")))]
    return Reported(write_report(out, record, panels, evaluation, maps_of(models, evaluation)), evaluation, record)


def test_page_is_self_contained_and_names_are_escaped(reported: Reported) -> None:
    page = assert_alone(reported.path)
    assert page.text.count(HOSTILE) >= 3
    assert "$first$_<model>" in page.text
    assert "model" not in page.tags
    assert "Feature maps of <network>" in page.text
    written = {path.relative_to(reported.path.parent).as_posix() for path in reported.path.parent.rglob("*.png")}
    assert {f"panels/{rank}.png" for rank in ("best", "median", "worst")} < written
    assert {f"figures/{name}.png" for name in ("f1", "intervals", "reliability")} < written
    assert {f"maps/{name}.png" for name in ("image", "down-1", "bottom", "up-1")} < written
    for name in written:
        Image.open(reported.path.parent / name).verify()


def test_every_number_equals_the_record(reported: Reported) -> None:
    record, page = reported.record, assert_alone(reported.path)
    (dice,) = (row for row in page.rows if row[0] == "Dice")
    for cell, model in zip(dice[1:], record["models"], strict=True):
        low, high = model["intervals"]["dice"]
        assert cell == f"{model['pooled']['dice']:.3f}{low:.3f} to {high:.3f}"
    heads = next(row for row in page.rows if row[:3] == ["Model", "Image", "Patient"])
    lines = [row for row in page.rows if len(row) == len(heads) and row is not heads]
    assert [line[1] for line in lines] == [*NAMES, *NAMES]
    at = heads.index("Dice"), heads.index("HD95 (µm)"), heads.index("Precision")
    for line, row in zip(lines, record["cases"], strict=True):
        assert [line[i] for i in at] == [f"{row[k]:.3f}" if k in row else "–" for k in ("dice", "hd95", "precision")]
    for pair in record["comparisons"]:
        assert pair["conclusion"] in page.text
    assert record["settings"]["rule_for_empty_masks"] in page.text
    assert record["models"][0]["empty"] == 1
    undefined = next(row for row in page.rows if row[:2] == ["second", "1"])
    assert undefined[2] == "none"


def test_baselines_alone_have_no_feature_maps(reported: Reported, tmp_path: Path) -> None:
    maps = maps_of([], reported.evaluation)
    page = assert_alone(write_report(tmp_path, reported.record, (), reported.evaluation, maps))
    assert "Feature maps" not in page.text


def test_undefined_scores_are_counted(reported: Reported) -> None:
    record = copy.deepcopy(reported.record)
    record["models"][1]["undefined"] = {"precision": 2, "f1_55": 1}
    assert content_of(record)["models"][1]["undefined"] == "Precision: 2"


def test_best_median_and_worst_case_are_ranked_by_dice(reported: Reported) -> None:
    text = assert_alone(reported.path).text
    first = [row for row in reported.record["cases"] if row["model"] == reported.record["models"][0]["name"]]
    by_dice = sorted(first, key=lambda row: -row["dice"])
    for title, row in (("Best", by_dice[0]), ("Median", by_dice[len(by_dice) // 2]), ("Worst", by_dice[-1])):
        assert f"{title}: {row['image']}, patient {row['patient']}" in text


def test_headline_explains_the_scores() -> None:
    text = headline({"pooled": {"recall": 0.8312, "precision": 0.9, "f1_50": 0.752, "ece": 0.0261}})
    assert "It finds 83\u00a0% of the annotated area; 90\u00a0% of the area it finds is annotated." in text
    assert "the F1 score is 0.75." in text
    assert "2.6 percentage points" in text
    assert headline({"pooled": {}}) == "No score is defined on these images."


def test_confusion_shares_are_relative_to_the_true_class() -> None:
    matrix = confusion({"classes": ["background", "a"], "pixels_true_by_found": [[90, 10], [1, 3]]})
    assert [[cell["share"] for cell in row["cells"]] for row in matrix["rows"]] == [[0.9, 0.1], [0.25, 0.75]]


def test_charts_are_reproducible(reported: Reported) -> None:
    first, second = draw_charts(reported.record), draw_charts(reported.record)
    assert first == second
    assert [one.name for one in first] == ["figures/intervals", "figures/f1", "figures/reliability"]
    assert draw_charts({"models": [{"name": "m", "pooled": {}, "intervals": {}, "classes": {}}]}) == ()


def test_legend_labels_are_escaped_and_shortened() -> None:
    assert label("$x$") == r"\$x\$"
    assert label("_hidden") == " _hidden"
    assert label("Zellkern") == "Zellkern"
    assert len(label("long" * 20)) <= 34


def test_error_colours_are_distinguishable_with_any_colour_vision() -> None:
    """The colours differ in brightness or along the blue-yellow axis, never only between red and green."""
    lightness = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in (CORRECT, FALSE_POSITIVE, MISSED)]
    assert lightness[0] - max(lightness[1:]) > 50
    assert MISSED[2] - MISSED[0] > 150
    assert FALSE_POSITIVE[0] - FALSE_POSITIVE[2] > 150


def test_maps_are_stretched_subsampled_and_placed_side_by_side() -> None:
    ramp = np.arange(100.0).reshape(10, 10)
    assert (stretch(ramp).min(), stretch(ramp).max()) == (0, 255)
    assert stretch(np.full((4, 4), 3.0)).max() == 0
    one_spot = np.zeros((50, 50))
    one_spot[3, 4] = 1.0
    assert np.argwhere(stretch(one_spot) == 255).tolist() == [[3, 4]]
    wide = np.arange(2 * MAP_PX * 10).reshape(10, -1)
    assert np.array_equal(subsample(wide), wide[::2, ::2])
    row = side_by_side([np.zeros((3, MAP_PX), np.uint8), np.full((3, MAP_PX), 9, np.uint8)])
    assert row.shape == (3, 2 * MAP_PX + GAP_PX)
    assert set(row[:, MAP_PX : MAP_PX + GAP_PX].ravel()) == {255}
    assert (row[:, MAP_PX + GAP_PX :] == 9).all()


def test_page_opens_in_a_browser_without_requests_and_sorts(reported: Reported, tmp_path: Path) -> None:
    if browser() is None:
        skip_or_fail("no Chromium: make browser installs it on Debian as root")
    with page_of(reported.path, tmp_path / "profile") as page:
        assert [url for url in page.requests if not url.startswith("data:")] == [reported.path.resolve().as_uri()]
        assert page.value("[...document.images].length") >= 8
        assert page.value("[...document.images].filter((one) => !one.complete || !one.naturalWidth).length") == 0
        names = "[...document.querySelectorAll('table.sortable tbody tr')].map((row) => row.cells[1].textContent)"
        assert page.value(names) == [*NAMES, *NAMES]
        rows = reported.record["cases"]
        for sign in (-1, 1):
            page.value("document.querySelectorAll('table.sortable th button')[3].click()")
            values = [row["dice"] for row in rows]
            shown = (
                "[...document.querySelectorAll('table.sortable tbody tr')].map((row) => +row.cells[3].dataset.value)"
            )
            assert page.value(shown) == sorted(values, key=lambda value: sign * value)
        picture = page.picture()
        assert page.complaints == []
        assert not page.value("document.querySelector('img[src=\"x\"]')")
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 50_000, "the page is not blank"
    (Path(os.environ.get("SHOW", tmp_path)) / "evaluation.png").write_bytes(picture)


def test_picture_is_a_data_uri_and_title_is_escaped() -> None:
    assert Picture("a", "b", b"png").uri == "data:image/png;base64,cG5n"
    assert Picture("a", "b", b"png", b"<svg").uri == "data:image/svg+xml;base64,PHN2Zw=="
    page = render("page.html.j2", {"title": HOSTILE})
    assert HOSTILE not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
