"""Baselines: Otsu equals brute force, outputs do not depend on boxes, training is seeded and bounded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from unet_core.data.sampler import AnnotatedImage
from unet_core.mirror import Square
from unet_core.training import baselines
from unet_core.training.baselines import Baseline, linear_svm, otsu, random_forest, training_pixels

Image = np.ndarray[Any, Any]


def tissue(seed: int) -> AnnotatedImage:
    """A pale pink image with saturated discs of equal mean brightness."""
    generator = np.random.default_rng(seed)
    y, x = np.indices((70, 90))
    labels = np.zeros((70, 90), np.int32)
    for i in range(1, 7):
        cy, cx = generator.integers(0, 70), generator.integers(0, 90)
        labels[((y - cy) ** 2 + (x - cx) ** 2 < 64) & (labels == 0)] = i
    colours = np.where(
        labels[None] > 0, np.array([230, 90, 220])[:, None, None], np.array([190, 170, 180])[:, None, None]
    )
    image = (colours + generator.normal(0, 6, (3, 70, 90))).clip(0, 255).astype(np.uint8)
    return AnnotatedImage(f"{seed}.png", image, labels)


def whole(baseline: Baseline, image: Image) -> Image:
    return baseline.of_image(image)(Square(0, 0, *image.shape[1:]))


def best_splits(levels: Image) -> list[Image]:
    """Masks above the middle of a bin, of 256, where the variance between bins up to it and those above is largest.

    Several where bins are empty.
    """
    counts, edges = np.histogram(levels, 256)
    middles = (edges[1:] + edges[:-1]) / 2

    def between(last: int) -> float:
        low, high = (slice(0, last + 1), slice(last + 1, None))
        n, m = counts[low].sum(), counts[high].sum()
        return (
            n * m * ((counts * middles)[low].sum() / n - (counts * middles)[high].sum() / m) ** 2 if n and m else -1.0
        )

    variances = np.array([between(last) for last in range(255)])
    return [levels > middle for middle in middles[:255][variances >= variances.max() * (1 - 1e-12)]]


def test_otsu_splits_stained_tissue_by_saturation() -> None:
    case = tissue(0)
    scaled = case.image_CYX[:] / 255
    saturation = (scaled.max(axis=0) - scaled.min(axis=0)) / scaled.max(axis=0)
    found = whole(otsu(), case.image_CYX[:])
    assert any(np.array_equal(found[0] == 255, mask) for mask in best_splits(saturation))
    agree = ((found[0] == 255) == (case.labels_YX[:] > 0)).mean()
    assert agree > 0.98


@pytest.mark.parametrize("channels", [1, 3])
def test_otsu_splits_fluorescence_by_grey(channels: int) -> None:
    labels = tissue(1).labels_YX[:]
    generator = np.random.default_rng(1)
    grey = (np.where(labels > 0, 90, 12) + generator.normal(0, 5, labels.shape)).clip(0, 255).astype(np.uint8)
    found = whole(otsu(), np.repeat(grey[None], channels, axis=0))
    levels = np.repeat(grey[None], channels, axis=0).astype(float).mean(axis=0) / 255
    assert any(np.array_equal(found[0] == 255, mask) for mask in best_splits(levels))


def test_sixteen_bits_and_a_single_grey_level() -> None:
    image = np.zeros((1, 8, 8), np.uint16)
    assert not whole(otsu(), image).any()
    image[0, :4] = 40_000
    assert np.array_equal(whole(otsu(), image)[0] == 255, image[0] > 0)


@pytest.mark.parametrize("train", [random_forest, linear_svm])
def test_classifiers_learn_and_are_repeatable(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "TRAINING_PX", 600)
    cases, unseen = [tissue(0), tissue(1)], tissue(2)
    baseline = train(cases, 1)
    found = whole(baseline, unseen.image_CYX[:])
    assert ((found[0] >= 128) == (unseen.labels_YX[:] > 0)).mean() > 0.95
    part = baseline.of_image(unseen.image_CYX)(Square(16, 32, 48, 90))
    assert np.array_equal(part, found[:, 16:48, 32:90])
    assert np.array_equal(whole(train(cases, 1), unseen.image_CYX[:]), found)


def test_training_pixels_are_bounded_and_from_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "TRAINING_PX", 500)
    features, classes = training_pixels([tissue(seed) for seed in range(3)])
    assert len(features) == len(classes) == 500
    assert set(classes) == {0, 1}
    again, _ = training_pixels([tissue(seed) for seed in range(3)])
    assert np.array_equal(features, again)


def test_classes_keep_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class without training pixels gets a plane of zeros."""
    monkeypatch.setattr(baselines, "TRAINING_PX", 400)
    plain = tissue(0)
    classes = np.full(plain.labels_YX.shape, 2, np.uint8)
    case = AnnotatedImage("two", plain.image_CYX, plain.labels_YX, classes)
    for train in (random_forest, linear_svm):
        found = whole(train([case], 3), plain.image_CYX[:])
        assert found.shape[0] == 3
        assert not found[[0, 2]].any()
        assert ((found[1] >= 128) == (plain.labels_YX[:] > 0)).mean() > 0.9
