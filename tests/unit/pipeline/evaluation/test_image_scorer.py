"""Scores of an image equal skimage on the whole image as segment would deliver it, for any blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from skimage.measure import label

from pipeline.evaluation.image_scorer import ImageScorer, ImageScores, ScoringConfig
from pipeline.geometry import Box
from pipeline.objects.watershed import Splitting
from tests.support import whole_objects
from unet_core.class_map import IGNORED
from unet_core.data.sampler import AnnotatedImage
from unet_core.metrics.overlap import Overlaps, object_counts, object_sums
from unet_core.metrics.score_table import CALIBRATION, CENTRES, OBJECTS, PIXELS, Table
from unet_core.metrics.surface_distance import outline

Array = np.ndarray[Any, Any]


def blobs(seed: int, shape: tuple[int, int], classes: int) -> tuple[Array, Array, Array]:
    """Probabilities (k, y, x), true objects and their classes."""
    generator = np.random.default_rng(seed)
    coarse = [-(-length // 3) for length in shape]
    planes = [
        np.kron(generator.integers(0, 256, coarse), np.ones((3, 3), int))[: shape[0], : shape[1]]
        for _ in range(classes)
    ]
    probability = (np.stack(planes) // max(1, classes - 1)).astype(np.uint8)
    true = np.kron(generator.integers(0, classes + 2, coarse), np.ones((3, 3), int))[1 : shape[0] + 1, : shape[1]]
    true = np.pad(true, [(0, shape[0] - true.shape[0]), (0, 0)]) % (classes + 1)
    return probability, label(true, connectivity=2).astype(np.int32), true.astype(np.uint8)


def scored(
    probability: Array, case: AnnotatedImage, config: ScoringConfig, block_px: int = 2048
) -> tuple[ImageScores, Array]:
    def answer(core: Box) -> Array:
        return probability[(slice(None), *core.slices)]

    scorer = ImageScorer(answer, case, config, block_px)
    return scorer.run(), np.asarray(scorer.found_YX)


def segmented(probability: Array, config: ScoringConfig) -> tuple[Array, Array]:
    """Class and id of each pixel, from the whole image."""
    if len(probability) == 1:
        classes = (probability[0] >= np.ceil(255 * config.threshold)).astype(int)
    else:
        background = np.maximum(0, 255 - probability.astype(int).sum(axis=0))
        classes = np.argmax(np.concatenate([background[None], probability.astype(int)]), axis=0)
    ids = label(classes, connectivity=2)
    ids = np.where((np.bincount(ids.ravel()) >= config.least_px)[ids], ids, 0)
    return np.where(ids > 0, classes, 0), ids


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(1, 3), block=st.sampled_from([8, 16, 31]))
def test_scores_do_not_depend_on_block_size(seed: int, classes: int, block: int) -> None:
    probability, objects, kinds = blobs(seed, (37, 50), classes)
    case = AnnotatedImage("a", np.zeros((1, 37, 50), np.uint8), objects, kinds)
    config = ScoringConfig(tuple("abc")[:classes], 0.5, 12)
    (whole, whole_found), (cut, cut_found) = (scored(probability, case, config, side) for side in (2048, block))
    assert np.array_equal(whole_found, cut_found)
    assert np.array_equal(whole.confusion, cut.confusion)
    for one, other in zip(whole.classes, cut.classes, strict=True):
        assert all(np.array_equal(one.sums[kind], other.sums[kind]) for kind in one.sums)
        for name in ("squared_px", "counts", "alone"):
            assert np.array_equal(getattr(one.distances, name), getattr(other.distances, name))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(1, 3))
def test_objects_are_those_of_segment(seed: int, classes: int) -> None:
    """For each class: Dice, and F1 of components of the whole image without small ones."""
    probability, objects, kinds = blobs(seed, (37, 50), classes)
    case = AnnotatedImage("a", np.zeros((1, 37, 50), np.uint8), objects, kinds)
    config = ScoringConfig(tuple("abc")[:classes], 0.4, 12)
    result, found = scored(probability, case, config, 16)
    expected, ids = segmented(probability, config)
    assert np.array_equal(found, expected)
    for number, sums in enumerate(result.classes, start=1):
        scores = Table.of([sums]).scores()
        mine, true = expected == number, kinds == number
        both, total = (mine & true).sum(), mine.sum() + true.sum()
        assert scores["dice"][0] == pytest.approx(2 * both / total if total else 1.0)
        counts = object_counts(np.where(mine, ids, 0), np.where(true, objects, 0), 0.5)
        assert scores["f1_50"][0] == pytest.approx(counts.f1)


def test_each_class_is_scored_on_its_own_pixels() -> None:
    """One class is found exactly, the other not at all: a score of the wrong class would show."""
    kinds = np.zeros((20, 30), np.uint8)
    kinds[2:9, 2:9], kinds[11:18, 14:27] = 1, 2
    probability = np.stack([np.where(kinds == 1, 255, 0), np.zeros((20, 30))]).astype(np.uint8)
    case = AnnotatedImage("a", np.zeros((1, 20, 30), np.uint8), label(kinds).astype(np.int32), kinds)
    result, _ = scored(probability, case, ScoringConfig(("a", "b"), 0.5, 1))
    a, b = (Table.of([sums]).scores() for sums in result.classes)
    assert [a["dice"][0], b["dice"][0], a["f1_50"][0], b["f1_50"][0]] == [1, 0, 1, 0]
    assert np.isnan(b["precision"][0])
    assert result.confusion.tolist() == [[600 - 49 - 91, 0, 0], [0, 49, 0], [91, 0, 0]]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(1, 3), block=st.sampled_from([8, 2048]))
def test_ignored_pixels_do_not_count(seed: int, classes: int, block: int) -> None:
    """Ignored pixels are left out of all sums; objects are found as if there were none."""
    probability, objects, kinds = blobs(seed, (37, 50), classes)
    unknown = np.kron(np.random.default_rng(seed).integers(0, 2, (8, 10)), np.ones((5, 5), int))[:37, :50] == 1
    case = AnnotatedImage(
        "a", np.zeros((1, 37, 50), np.uint8), np.where(unknown, 0, objects), np.where(unknown, IGNORED, kinds)
    )
    config = ScoringConfig(tuple("abc")[:classes], 0.4, 12)
    result, found = scored(probability, case, config, block)
    expected, ids = segmented(probability, config)
    assert np.array_equal(found, np.where(unknown, 0, expected))
    pairs = np.zeros((classes + 1, classes + 1), int)
    np.add.at(pairs, (kinds[~unknown], expected[~unknown]), 1)
    assert np.array_equal(result.confusion, pairs)
    for number, sums in enumerate(result.classes, start=1):
        mine, true = (expected == number) & ~unknown, (kinds == number) & ~unknown
        counts = object_counts(np.where(mine, ids, 0), np.where(true, objects, 0), 0.5)
        assert Table.of([sums]).scores()["f1_50"][0] == pytest.approx(counts.f1)
        assert sums.sums[CALIBRATION][:10].sum() == (~unknown).sum()
        assert sums.sums[CALIBRATION][20:].sum() == true.sum()


def test_ignored_pixels_do_not_divide_enclosed_areas() -> None:
    """Noise in an ignored area does not divide any enclosed area."""
    membrane = np.zeros((21, 31), np.uint8)
    membrane[10], membrane[:, 10] = 1, 1
    noisy = membrane.copy()
    noisy[:, 21:] = np.random.default_rng(0).integers(0, 2, (21, 10))
    classes = membrane.copy()
    classes[:, 21:] = IGNORED
    case = AnnotatedImage("a", np.zeros((1, 21, 31), np.uint8), (classes == 1).astype(np.int32), classes)
    result, _ = scored(255 * noisy[None], case, ScoringConfig(("membrane",), 0.5, 1), 8)
    scores = Table.of(result.classes).scores()
    assert [scores["v_rand"][0], scores["v_info"][0], scores["dice"][0]] == pytest.approx([1, 1, 1])


def test_without_classes_every_object_has_the_first_class() -> None:
    probability, objects, _ = blobs(3, (37, 50), 1)
    case = AnnotatedImage("a", np.zeros((1, 37, 50), np.uint8), objects)
    result, found = scored(probability, case, ScoringConfig(("a",), 0.5, 1))
    both = ((found > 0) & (objects > 0)).sum()
    assert result.classes[0].sums[PIXELS][0] == both


def test_outlines_have_no_points_at_block_borders() -> None:
    mask = np.zeros((40, 40), np.uint8)
    mask[4:36, 5:33] = 255
    case = AnnotatedImage("a", np.zeros((1, 40, 40), np.uint8), (mask > 0).astype(np.int32))
    result, _ = scored(mask[None], case, ScoringConfig(("a",), 0.5, 1), 16)
    points = result.classes[0].distances.counts.sum(axis=1)
    assert points.tolist() == [len(outline(np.pad(mask > 0, 1)))] * 2
    assert points[0] == 2 * (32 + 28) - 4


def test_a_membrane_is_scored_by_enclosed_areas() -> None:
    membrane = np.zeros((21, 21), np.uint8)
    membrane[10], membrane[:, 10] = 255, 255
    case = AnnotatedImage("a", np.zeros((1, 21, 21), np.uint8), (membrane > 0).astype(np.int32))
    result, _ = scored(membrane[None], case, ScoringConfig(("membrane",), 0.5, 1), 8)
    scores = Table.of(result.classes).scores()
    assert OBJECTS not in result.classes[0].sums
    assert "f1_50" not in scores
    assert [scores["v_rand"][0], scores["v_info"][0]] == pytest.approx([1, 1])


def test_calibration_is_defined_for_probabilities_only() -> None:
    probability, objects, kinds = blobs(4, (37, 50), 1)
    case = AnnotatedImage("a", np.zeros((1, 37, 50), np.uint8), objects, kinds)
    graded, plain = (
        scored(probability, case, ScoringConfig(("a",), 0.5, 1, graded=graded))[0].classes[0]
        for graded in (True, False)
    )
    assert "ece" in Table.of([graded]).scores()
    assert "ece" not in Table.of([plain]).scores()


# ---- centres ---------------------------------------------------------------------------------------------------------


def centres_by_hand(ids: Array) -> Array:
    """Centres of mass (n, 2) of a label image."""
    numbers = np.unique(ids[ids > 0])
    return np.array(ndimage.center_of_mass(np.ones(ids.shape), ids, numbers)).reshape(-1, 2)


def pairs_by_hand(found: Array, true: Array, within: float) -> int:
    """The largest number of pairs within a distance."""
    if not len(found) or not len(true):
        return 0
    near = np.hypot(*(found[:, None] - true[None]).transpose(2, 0, 1)) <= within
    return int(near[linear_sum_assignment(~near)].sum())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(1, 3), block=st.sampled_from([8, 31, 2048]))
def test_centres_are_those_of_the_objects_of_segment(seed: int, classes: int, block: int) -> None:
    """By class: centres of whole predicted objects on known pixels, against outlined objects."""
    probability, objects, kinds = blobs(seed, (37, 50), classes)
    unknown = np.zeros((37, 50), bool)
    unknown[20:, 30:] = True
    case = AnnotatedImage(
        "a", np.zeros((1, 37, 50), np.uint8), np.where(unknown, 0, objects), np.where(unknown, IGNORED, kinds)
    )
    config = ScoringConfig(tuple("abc")[:classes], 0.4, 12)
    result, _ = scored(probability, case, config, block)
    expected, ids = segmented(probability, config)
    for number, sums in enumerate(result.classes, start=1):
        found = centres_by_hand(np.where(expected == number, ids, 0))
        found = found[~unknown[tuple(np.rint(found).astype(int).T)]]
        true = centres_by_hand(np.where((kinds == number) & ~unknown, objects, 0))
        assert sums.sums[CENTRES].tolist() == [pairs_by_hand(found, true, 8.0), len(found), len(true)]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), block=st.sampled_from([8, 2048]), within=st.sampled_from([2.0, 4.5]))
def test_of_an_image_with_dots_only_centres_are_scored(seed: int, block: int, within: float) -> None:
    """Dots of two classes beside an outlined object: each class has its own dots, no figure of pixels exists."""
    probability, _, _ = blobs(seed, (37, 50), 2)
    rng = np.random.default_rng(seed)
    dots = np.column_stack((rng.uniform(0, 36, 40), rng.uniform(0, 49, 40), rng.integers(1, 3, 40))).astype(np.float32)
    labels, kinds = np.zeros((37, 50), np.int32), np.zeros((37, 50), np.uint8)
    labels[3:8, 3:10], kinds[3:8, 3:10] = 7, 2
    case = AnnotatedImage("a", np.zeros((1, 37, 50), np.uint8), labels, kinds, dots)
    config = ScoringConfig(("a", "b"), 0.5, 12)
    scorer = ImageScorer(lambda core: probability[(slice(None), *core.slices)], case, config, block, within)
    result = scorer.run()
    expected, ids = segmented(probability, config)
    for number, sums in enumerate(result.classes, start=1):
        found = centres_by_hand(np.where(expected == number, ids, 0))
        outlined = [[5.0, 6.0]] if number == 2 else []
        true = np.array([*dots[dots[:, 2] == number, :2].tolist(), *outlined]).reshape(-1, 2)
        assert set(sums.sums) == {CENTRES}
        assert sums.distances is None
        assert sums.sums[CENTRES].tolist() == [pairs_by_hand(found, true, within), len(found), len(true)]
    assert not result.confusion.any()


def test_scores_of_outlines_leave_out_images_with_dots() -> None:
    """A table of an outlined image and one with dots: Dice is that of the first, undefined for the second."""
    probability, objects, kinds = blobs(4, (37, 50), 1)
    blank, dots = np.zeros((37, 50), np.int32), np.array([[5, 5, 1]], np.float32)
    config, image = ScoringConfig(("a",), 0.5, 1), np.zeros((1, 37, 50), np.uint8)
    outlined = scored(probability, AnnotatedImage("a", image, objects, kinds), config)[0].classes[0]
    dotted = scored(probability, AnnotatedImage("b", image, blank, None, dots), config)[0].classes[0]
    alone = Table.of([outlined]).scores()
    table = Table.of([dotted, outlined])
    each, pooled = table.scores(), table.weighted(np.ones((1, 2))).scores()
    for name in ("dice", "f1_50", "hd95", "ece"):
        assert np.isnan(each[name][0])
        assert each[name][1] == pooled[name][0] == alone[name][0]
        assert table.applies()[name].tolist() == [False, True]
    centres = centres_by_hand(label(probability[0] > 127, connectivity=2))
    near = (np.hypot(*(centres - [5, 5]).T) <= 8).any()
    assert each["centre_precision"][0] == near / len(centres)
    assert "dice" not in Table.of([dotted]).scores()
    assert table.empty() == 0
    nothing = AnnotatedImage("c", image, blank, None, dots[:0])
    assert Table.of([scored(0 * probability, nothing, config)[0].classes[0]]).empty() == 1


# ---- objects split at seeds ------------------------------------------------------------------------------------------


def field(rng: np.random.Generator, shape: tuple[int, ...], sigma: float, height: int) -> Array:
    """Smooth noise around 0."""
    return np.asarray(
        height * ndimage.gaussian_filter(rng.standard_normal(shape), (0,) * (len(shape) - 2) + (sigma,) * 2)
    )


@pytest.mark.parametrize("classes", [1, 2])
@pytest.mark.parametrize("block", [37, 64, 2048])
def test_seeded_objects_are_those_of_the_whole_image(classes: int, block: int) -> None:
    """Split at the map in the whole image, then limited by area: every score equals that of the finished labels."""
    rng, shape = np.random.default_rng(7), (150, 170)
    planes = np.clip((122 + field(rng, (classes, *shape), 4, 1000)) / classes, 0, 255 // classes).astype(np.uint8)
    map_YX = np.clip(128 + field(rng, shape, 3, 500), 0, 255).astype(np.uint8)
    plain = ScoringConfig(("a", "b")[:classes], 0.5, 1)
    class_YX, component_YX = segmented(planes, plain)
    true = np.roll(component_YX, 2, axis=0).astype(np.int32)
    case = AnnotatedImage("a", np.zeros((1, *shape), np.uint8), true, np.roll(class_YX, 2, axis=0).astype(np.uint8))
    config = ScoringConfig(plain.class_names, 0.5, 20, True, 400, Splitting(20 / 255, 90, 8, "distance"), classes)
    result, found = scored(np.concatenate((planes, map_YX[None])), case, config, block)
    parts = whole_objects.split(component_YX, 8, 20, 90, map_YX)
    area = np.bincount(parts.ravel())
    assert len(np.unique(parts)) > len(np.unique(component_YX)), "some objects are split"
    assert (area > 400).any()
    ids = np.where(((area >= 20) & (area <= 400))[parts], parts, 0)
    expected = np.where(ids > 0, class_YX, 0)
    assert np.array_equal(found, expected)
    for number, sums in enumerate(result.classes, start=1):
        mine = np.where(expected == number, ids, 0)
        own = np.where(case.class_map[:, :] == number, true, 0)
        assert np.array_equal(sums.sums[OBJECTS], object_sums(Overlaps.of(mine, own)))
        centres = centres_by_hand(mine), centres_by_hand(own)
        assert sums.sums[CENTRES].tolist() == [pairs_by_hand(*centres, 8.0), *map(len, centres)]


def test_a_map_does_not_count_as_a_class() -> None:
    """A network with maps whose objects are components has the scores of the same network without maps."""
    probability, objects, kinds = blobs(9, (37, 50), 2)
    case = AnnotatedImage("a", np.zeros((1, 37, 50), np.uint8), objects, kinds)
    config = ScoringConfig(("a", "b"), 0.5, 1)
    more = np.concatenate((probability, np.full((1, 37, 50), 255, np.uint8)))
    assert np.array_equal(scored(probability, case, config)[1], scored(more, case, config)[1])
