"""Selections of images are scored from added sums; class means omit undefined scores."""

from __future__ import annotations

import numpy as np
import pytest

from unet_core.metrics.overlap import Overlaps, confusion, object_sums, pixel_sums
from unet_core.metrics.score_table import OBJECTS, PIXELS, ImageSums, Table, class_mean
from unet_core.metrics.surface_distance import Distances, outline


def image(found: np.ndarray, true: np.ndarray) -> ImageSums:  # type: ignore[type-arg]  # masks of a test
    sums = {PIXELS: pixel_sums(confusion(found, true, 2), 1), OBJECTS: object_sums(Overlaps.of(found, true))}
    return ImageSums(sums, Distances.between(*(outline(np.pad(one > 0, 1)) for one in (found, true))))


def test_weights_select_images_and_count_them_twice() -> None:
    generator = np.random.default_rng(0)
    pairs = [(generator.random((2, 9, 11)) < 0.4).astype(int) for _ in range(3)]
    table = Table.of([image(*pair) for pair in pairs])
    own = table.weighted(np.eye(3)).scores()
    assert {name: values.tolist() for name, values in own.items()} == {
        name: values.tolist() for name, values in table.scores().items()
    }
    twice = table.weighted(np.array([[2.0, 0, 1]])).scores()
    repeated = Table.of([image(*pairs[i]) for i in (0, 0, 2)])
    expected = repeated.weighted(np.ones((1, 3))).scores()
    for name, values in twice.items():
        assert values == pytest.approx(expected[name]), name


def test_empty_images_are_counted() -> None:
    nothing, something = np.zeros((4, 5), int), np.ones((4, 5), int)
    table = Table.of([image(nothing, nothing), image(something, nothing), image(nothing, something)])
    assert table.empty() == 1
    assert np.isnan(table.scores()["hd95"]).tolist() == [False, True, True]


def test_class_means_omit_undefined_scores() -> None:
    scores = [
        {"dice": np.array([0.5, np.nan, np.nan])},
        {"dice": np.array([1.0, 0.25, np.nan]), "pq": np.array([1.0] * 3)},
    ]
    mean = class_mean(scores)
    assert mean["dice"] == pytest.approx([0.75, 0.25, np.nan], nan_ok=True)
    assert mean["pq"].tolist() == [1, 1, 1]
