"""Objects that training chooses its settings by equal those that segmentation splits from runs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import label

from pipeline.objects.components import find_runs
from pipeline.objects.watershed import Splitting, split_objects
from unet_core.object_labels import depth_units, split_by_map


@pytest.mark.parametrize("levels", [4, 30, 256])  # few levels: plateaus and ties
@pytest.mark.parametrize("depth", [0.004, 0.08, 0.3])
def test_parts_of_runs_equal_parts_in_memory(levels: int, depth: float) -> None:
    generator = np.random.default_rng(levels)
    labels = label(ndimage.gaussian_filter(generator.normal(size=(200, 230)), 3) > 0.01, connectivity=2)
    smooth = ndimage.gaussian_filter(generator.normal(size=labels.shape), 2)
    share = np.clip(0.5 + 4 * smooth, 0, 1)
    heights = (np.floor(share * (levels - 1)) * (255 // (levels - 1))).astype(np.uint8)
    runs = find_runs(labels)
    objects = type(runs)(runs.label - 1, runs.y, runs.x0, runs.x1)
    parts = split_objects(objects, Splitting(depth, 1024, 8, "distance"), heights[labels > 0])
    expected = split_by_map(labels, heights, depth_units(depth))
    found = np.where(labels > 0, -labels, 0)
    for number, y, x0, x1 in zip(parts.runs.label, parts.runs.y, parts.runs.x0, parts.runs.x1, strict=True):
        found[y, x0:x1] = number + 1
    pairs = np.unique(np.stack((found.ravel(), expected.ravel())), axis=1)
    assert len(pairs[0]) == len(np.unique(pairs[0])) == len(np.unique(pairs[1]))
    assert len(parts.owner) > 0
