"""Test images of dark discs, networks that detect dark pixels, and their predictions computed by hand."""

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
    """A bright image with dark saturated discs, and their labels."""
    generator = np.random.default_rng(seed)
    labels = np.zeros((48, 56), np.uint16)
    y, x = np.indices(labels.shape)
    for i in range(1, 9):
        cy, cx = generator.integers(0, 48), generator.integers(0, 56)
        labels[((y - cy) ** 2 + (x - cx) ** 2 < 25) & (labels == 0)] = i
    image = np.where(labels[..., None] > 0, (90, 60, 140), (230, 190, 210)) + generator.normal(0, 12, (48, 56, 3))
    return image.clip(0, 255).astype(np.uint8), labels


def save_dark_network(path: Path, weight: float, held_back: Sequence[str] = (), spec: UNetSpec = SPEC) -> Path:
    """Save a network that detects dark pixels of the first channel; a larger weight makes it more sensitive."""
    model = UNet(spec)
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
    """Write images, masks and a cases table with a fold for each patient."""
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
    """One of three folds."""
    return int(patient[1]) % 3


def evaluate_arguments(folder: Path, out: Path, *more: str | Path) -> list[str | Path]:
    """The arguments of ``overtile evaluate`` for these images."""
    data = ["--images", folder / "images", "--masks", folder / "masks", "--out", out, "--set", "data.mask=labels"]
    return ["evaluate", *data, *more]


def objects_by_hand(folder: Path, name: str, weight: float) -> NDArray[np.integer[Any]]:
    """Objects predicted by the network, computed by hand: a threshold on red, components of at least 10 px."""
    red = io.imread(folder / "images" / f"{name}.png")[..., 0] / 255
    signal = np.maximum(0, -(red - 0.5) / 0.25)
    probability = np.round(255 / (1 + np.exp(-(weight * signal - 1)))).astype(int)
    ids = label(probability >= math.ceil(255 * 0.4), connectivity=2)
    return np.where((np.bincount(ids.ravel()) >= 10)[ids], ids, 0)
