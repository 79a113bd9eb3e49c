"""Scoring and selection of threshold and area, on synthetic and real images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from tests.unit.unet_core.dsb2018 import annotated
from tests.unit.unet_core.training_runs import case
from unet_core.data.recoloured import recoloured
from unet_core.data.sampler import AnnotatedImage
from unet_core.data.weight_map import part_touching
from unet_core.metrics.overlap import Counts
from unet_core.model_file.checkpoint import load
from unet_core.model_file.header import resolve, sha256
from unet_core.networks.whole_pass import whole_pass
from unet_core.spec import UNetSpec
from unet_core.training.model_selection import score, select_objects


def test_the_threshold_with_the_best_dice_and_f1_is_chosen() -> None:
    one = case(1)
    truth = part_touching(one.labels_YX) > 0
    probability = np.where(truth, 170, np.where(one.labels_YX > 0, 120, 30)).astype(np.uint8)[None]
    tried = (0.2, 0.5, 0.65)
    specs = [UNetSpec(threshold=threshold) for threshold in tried]
    qualities = dict(zip(tried, score([probability], [one], specs), strict=True))
    chosen = select_objects([probability], [one], UNetSpec()).model_copy(update={"min_area_um2": 0.0})
    best = max(sum(counts.f1 for counts in pair) for pair in qualities.values())
    assert sum(counts.f1 for counts in score([probability], [one], [chosen])[0]) >= best
    assert qualities[0.65][1].f1 > qualities[0.2][1].f1  # below, touching discs run together


@pytest.mark.parametrize(("mpp", "pixel_um2"), [(None, 1.0), (0.5, 0.25)])
def test_the_smallest_area_drops_specks_and_keeps_what_was_annotated(mpp: float | None, pixel_um2: float) -> None:
    one = case(1)
    truth = part_touching(one.labels_YX) > 0
    ground = ~ndimage.binary_dilation(one.labels_YX > 0, iterations=3)
    specks = np.zeros_like(ground)
    specks[::4, ::4] = specks[1::4, ::4] = ground[::4, ::4] & ground[1::4, ::4]  # two pixels each
    probability = np.where(truth | specks, 200, 30).astype(np.uint8)[None]
    chosen = select_objects([probability], [one], UNetSpec(mpp=mpp))
    assert 2 * pixel_um2 < chosen.min_area_um2 < np.bincount(one.labels_YX.ravel())[1:].min() * pixel_um2
    plain = UNetSpec(mpp=mpp, threshold=chosen.threshold)
    assert score([probability], [one], [chosen]) == score([np.where(truth, 200, 30)[None]], [one], [plain])


def test_an_image_with_outlines_and_dots_is_scored_by_centres_of_both() -> None:
    found, labels = np.zeros((40, 40), bool), np.zeros((40, 40), np.int32)
    labels[4:12, 4:12] = 1
    for y, x in ((4, 4), (4, 24), (24, 4)):  # an outline, a dot, nothing
        found[y : y + 8, x : x + 8] = True
    dots = np.array([[8, 28, 1], [30, 30, 1]], np.float32)
    case = AnnotatedImage("a", np.zeros((1, 40, 40), np.uint8), labels, None, dots)
    ((pixels, objects),) = score([np.where(found, 200, 30)[None]], [case], [UNetSpec(threshold=0.5, mpp=1.0)])
    assert pixels == Counts()
    assert objects == Counts(both=2, found_only=1, true_only=1)


@pytest.mark.parametrize(
    ("name", "kind", "fold", "least_dice", "least_f1"),
    [
        pytest.param("nuclei@1", "he", 0, 0.82, 0.62, marks=pytest.mark.long),  # which it has not seen
        ("nuclei@2", "he", 1, 0.88, 0.75),  # it has seen all of them: what it is worth on others says its card
        pytest.param("nuclei-fluorescence@1", "fluo", 3, 0.90, 0.80, marks=pytest.mark.long),  # likewise
    ],
)
def test_a_built_in_model_reaches_the_scores_of_its_card(
    shared_data: Path, name: str, kind: str, fold: int, least_dice: float, least_f1: float
) -> None:
    """With threshold, smallest area and colours of its file; a wrong file fails."""
    path = resolve(name)
    model = load(path)
    assert sha256(path) in path.with_suffix(".md").read_text("utf-8")
    cases = annotated(shared_data, kind, [fold])
    shown = recoloured(cases, model.spec.normalisation)
    assert model.spec.threshold is not None
    ((pixels, objects),) = score((whole_pass(model, c.image_CYX) for c in shown), cases, [model.spec])
    print(f"Dice {pixels.f1:.4f}, F1 at IoU 0.5 {objects.f1:.4f} on {len(cases)} images")
    assert pixels.f1 >= least_dice
    assert objects.f1 >= least_f1
