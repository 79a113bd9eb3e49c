"""Annotated nuclei of the Data Science Bowl 2018, read independently of the tested code."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from skimage import io

from unet_core.data.sampler import AnnotatedImage


def annotated(shared_data: Path, kind: str, folds: Sequence[int]) -> list[AnnotatedImage]:
    """The images of one kind in these folds."""
    data = shared_data / "dsb2018"
    with (data / "groups.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == kind and int(row["fold"]) in folds]
    return [_one(data / kind, name) for name in sorted(row["image"] for row in rows)]


def _one(folder: Path, name: str) -> AnnotatedImage:
    image_YXC, labels_YX = (io.imread(folder / part / name) for part in ("images", "labels"))
    image_CYX = np.ascontiguousarray(np.atleast_3d(image_YXC).transpose(2, 0, 1))
    return AnnotatedImage(name, image_CYX, labels_YX.astype(np.int32))
