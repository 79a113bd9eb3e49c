"""Annotated images of dark discs, networks that find what is dark, and what these find, computed without them."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skimage import io
from skimage.measure import label

from unet_core.model_file.checkpoint import save
from unet_core.networks.unet import UNet
from unet_core.spec import UNetSpec

PATIENTS = ("p0", "p0", "p1", "p2", "p3", "p4", "p5")
SPEC = UNetSpec(depth=1, width=2, mpp=0.5, class_names=("disc",), threshold=0.4, min_area_um2=2.5)


def draw_discs(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """A pale image with dark saturated discs, and their numbers."""
    generator = np.random.default_rng(seed)
    labels = np.zeros((48, 56), np.uint16)
    y, x = np.indices(labels.shape)
    for i in range(1, 9):
        cy, cx = generator.integers(0, 48), generator.integers(0, 56)
        labels[((y - cy) ** 2 + (x - cx) ** 2 < 25) & (labels == 0)] = i
    image = np.where(labels[..., None] > 0, (90, 60, 140), (230, 190, 210)) + generator.normal(0, 12, (48, 56, 3))
    return image.clip(0, 255).astype(np.uint8), labels


def save_dark_network(path: Path, weight: float, held_back: Sequence[str] = ()) -> Path:
    """A network that finds dark pixels in its first channel; the more so the larger the weight."""
    model = UNet(SPEC)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
                module.weight.zero_()
        for block in (model.down[0], model.join[0]):
            for at in (0, 2):
                block[at].weight[0, 0, 1, 1] = 1.0
        model.down[0][0].weight[0, 0, 1, 1] = -1.0  # type: ignore[index]  # a Sequential
        model.head.weight[1, 0], model.head.bias[1] = weight, -1.0
    save(path, model.eval(), {"held_back": list(held_back)})
    return path


def save_discs(root: Path) -> Path:
    """Images, masks and a table of cases with a fold for each patient."""
    (root / "images").mkdir()
    (root / "masks").mkdir()
    with (root / "cases.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "patient", "fold"])
        for seed, patient in enumerate(PATIENTS):
            image, labels = draw_discs(seed)
            io.imsave(root / "images" / f"{seed}.png", image, check_contrast=False)
            io.imsave(root / "masks" / f"{seed}.png", labels, check_contrast=False)
            writer.writerow([f"{seed}.png", patient, fold_of(patient)])
    return root


def fold_of(patient: str) -> int:
    """One of three."""
    return int(patient[1]) % 3


def evaluate_arguments(folder: Path, out: Path, *more: str | Path) -> list[str | Path]:
    """The command line that judges them."""
    data = ["--images", folder / "images", "--masks", folder / "masks", "--out", out, "--set", "data.mask=labels"]
    return ["evaluate", *data, *more]


def objects_by_hand(folder: Path, name: str, weight: float) -> NDArray[np.integer[Any]]:
    """What the network says, computed without it: a threshold on the first channel, components of 10 px or more."""
    red = io.imread(folder / "images" / f"{name}.png")[..., 0] / 255
    signal = np.maximum(0, -(red - 0.5) / 0.25)
    probability = np.round(255 / (1 + np.exp(-(weight * signal - 1)))).astype(int)
    ids = label(probability >= math.ceil(255 * 0.4), connectivity=2)
    return np.where((np.bincount(ids.ravel()) >= 10)[ids], ids, 0)
