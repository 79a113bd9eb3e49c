"""Outlines for dots: objects of a model that hold exactly one dot become annotated objects.

All other dots stay dots. The model's objects without a dot are excluded from training (``IGNORED``), because their
class is unknown. Of objects with several dots only the surroundings of the dots are trained on. Outlines that exist are
kept.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.spatial import cKDTree

from pipeline.annotations.dataset import Dataset
from pipeline.errors import ConfigError
from pipeline.evaluation.cross_validated import load_named
from pipeline.evaluation.image_scorer import ImageScorer
from pipeline.evaluation.methods import networks
from pipeline.evaluation.seeded_objects import scratch
from unet_core.class_map import IGNORED
from unet_core.data.sampler import AnnotatedImage

DOT_PX = 6.0
"""Pixels of an object with several dots are excluded beyond this distance of its dots: a dot is learnt as a disc."""


def outline_dots(dataset: Dataset, model: str) -> Dataset:
    """Turn the dots of a dataset into outlines.

    Args:
        dataset: Annotated images at the resolution of the model.
        model: Name or file of the model.

    Raises:
        ConfigError: The resolution of an image with dots is unknown or another than the model's.
        ModelError: The file is not a valid model.
    """
    named = load_named(model, "none")
    (method,) = networks([named], "cpu")
    cases, dots, outlined = [], 0, 0
    for case in dataset.cases:
        if case.points_N3 is None:
            cases.append(case)
            continue
        mpp = dataset.mpp[case.name]
        if mpp is None or method.mpp is None or abs(mpp / method.mpp - 1) > 0.05:
            found = "none" if mpp is None else f"{mpp:g}"
            raise ConfigError(
                f"--pseudo {model}: expected images of the model's {method.mpp} um per pixel, found {found} in "
                f"{case.name}. Set network.mpp to the model's, or give the resolution in a column mpp of the cases"
            )
        made, count = outlined_case(case, method.judge(case))
        cases.append(made)
        dots, outlined = dots + len(case.points_N3), outlined + count
    remark = f"{outlined} of {dots} dots have an outline by {named.name}; the others stay dots"
    return replace(dataset, cases=tuple(cases), given=dataset.cases, remarks=(*dataset.remarks, remark))


def outlined_case(case: AnnotatedImage, scorer: ImageScorer) -> tuple[AnnotatedImage, int]:
    """Return an image with outlines instead of dots where there is one, and the number of dots that have one.

    Args:
        case: Image with dots.
        scorer: Finds the objects of the model in it.
    """
    assert case.points_N3 is not None
    at_N2, kinds = case.points_N3[:, :2], case.points_N3[:, 2].astype(np.uint8)
    in_memory = len(scorer.grid) == 1
    labels_YX = scratch(scorer.shape, np.int32, in_memory=in_memory)
    classes_YX = scratch(scorer.shape, np.uint8, in_memory=in_memory)
    highest, own = 0, 0
    for core, ids_YX in scorer.found():
        labels_YX[core.slices] = ids_YX
        highest = max(highest, int(ids_YX.max(initial=0)))
        own = max(own, int(np.asarray(case.labels_YX[core.slices]).max(initial=0)))
    ids = labels_YX[tuple(np.rint(at_N2).astype(np.intp).T)]
    held = np.bincount(ids, minlength=highest + 1)
    alone = (held == 1)[ids] & (ids > 0)
    class_of = np.where(held == 0, IGNORED, 0).astype(np.uint8)
    class_of[0] = 0
    held[0] = 0  # background
    class_of[ids[alone]] = kinds[alone]
    for core in (tile.core for tile in scorer.grid):
        ids_YX, labels = np.array(labels_YX[core.slices]), np.asarray(case.labels_YX[core.slices])
        classes = class_of[ids_YX]
        joined_M2 = np.argwhere(held[ids_YX] > 1)
        if len(joined_M2):
            unclear = cKDTree(at_N2).query(joined_M2 + np.array([core.y0, core.x0]))[0] > DOT_PX
            classes[tuple(joined_M2[unclear].T)] = IGNORED
        drawn = case.class_map[core.slices]  # outlines and ignored pixels that are annotated
        classes_YX[core.slices] = np.where(drawn > 0, drawn, classes)
        kept = (classes > 0) & (classes != IGNORED) & (drawn == 0)
        labels_YX[core.slices] = np.where(labels > 0, labels, np.where(kept, ids_YX + own, 0))
    others = None if alone.all() else case.points_N3[~alone]
    return replace(case, labels_YX=labels_YX, classes_YX=classes_YX, points_N3=others), int(alone.sum())
