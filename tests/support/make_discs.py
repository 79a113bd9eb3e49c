"""Annotated images of dark discs on pink, some of which touch."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from skimage import io

SHAPE = (64, 80)
FOLDS = 3


def drawn(seed: int, shape: tuple[int, int] = SHAPE) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """Return an image (y, x, 3) and the disc number of each pixel (y, x)."""
    generator = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint16)
    y, x = np.indices(shape)
    for i in range(1, 13):
        cy, cx = generator.integers(0, shape[0]), generator.integers(0, shape[1])
        labels[((y - cy) ** 2 + (x - cx) ** 2 < 36) & (labels == 0)] = i
    image = np.where(labels[..., None] > 0, (90, 60, 140), (230, 170, 200)) + generator.normal(0, 8, (*shape, 3))
    return image.clip(0, 255).astype(np.uint8), labels


@dataclass(frozen=True)
class Discs:
    """A folder of images, a folder of masks, and a table of folds."""

    images: Path
    masks: Path
    cases: Path


def write_discs(root: Path, count: int = 6) -> Discs:
    """Write ``count`` images; image i is of patient i and in fold i modulo 3."""
    discs = Discs(root / "images", root / "masks", root / "cases.csv")
    discs.images.mkdir(parents=True)
    discs.masks.mkdir()
    with discs.cases.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "patient", "fold"])
        for seed in range(count):
            image, labels = drawn(seed)
            io.imsave(discs.images / f"{seed}.png", image, check_contrast=False)
            io.imsave(discs.masks / f"{seed}.png", labels, check_contrast=False)
            writer.writerow([f"{seed}.png", f"p{seed}", seed % FOLDS])
    return discs
