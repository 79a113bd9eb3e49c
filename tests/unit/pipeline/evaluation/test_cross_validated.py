"""A cross-validation run is evaluated as one model: each image by the network that held it back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from skimage import io

from tests.support.commands import Command
from tests.unit.flows.dark_discs import (
    PATIENTS,
    evaluate_arguments,
    fold_of,
    objects_by_hand,
    save_dark_network,
    save_discs,
)

FOLD_WEIGHTS = {0: 4.0, 1: 1.2, 2: 2.0}
"""Confidence of the network of each fold, so that they find different pixels."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_discs(tmp_path_factory.mktemp("discs"))


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """The result of training over all folds: three different networks, each with the images it held back."""
    held = {fold: [str(i) for i, patient in enumerate(PATIENTS) if fold_of(patient) == fold] for fold in FOLD_WEIGHTS}
    for fold, weight in FOLD_WEIGHTS.items():
        (folder / "run" / f"fold-{fold}").mkdir(parents=True)
        save_dark_network(folder / "run" / f"fold-{fold}" / "best.safetensors", weight, held[fold])
    return folder / "run"


def test_each_image_is_scored_by_the_network_that_held_it_back(
    folder: Path, run: Path, overtile_alone: Command, tmp_path: Path
) -> None:
    ran = overtile_alone.run(
        *evaluate_arguments(folder, tmp_path / "out", "--model", run, "--cases", folder / "cases.csv")
    )
    assert ran.code == 0, ran.transcript
    record = json.loads((tmp_path / "out" / "metrics.json").read_text())
    both = total = 0
    for row, patient in zip(record["cases"], PATIENTS, strict=True):
        found = objects_by_hand(folder, row["image"], FOLD_WEIGHTS[fold_of(patient)]) > 0
        true = io.imread(folder / "masks" / f"{row['image']}.png") > 0
        assert row["dice"] == pytest.approx(2 * (found & true).sum() / (found.sum() + true.sum()))
        both, total = both + (found & true).sum(), total + found.sum() + true.sum()
    assert record["pooled"]["dice"] == pytest.approx(2 * both / total)
    assert len({round(row["dice"], 6) for row in record["cases"]}) > 1
    assert record["models"][0]["name"] == "run"
    assert "3 networks, each on the images it was not trained on" in ran.stdout


def test_an_image_that_no_network_held_back_is_rejected(
    folder: Path, run: Path, overtile_alone: Command, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "short")
    shutil.rmtree(tmp_path / "short" / "fold-1")
    ran = overtile_alone.run(*evaluate_arguments(folder, tmp_path / "out", "--model", tmp_path / "short"))
    assert ran.code == 2, ran.transcript
    assert ran.only_error.startswith("2: expected images that one of the networks of short held back")
    ran = overtile_alone.run(*evaluate_arguments(folder, tmp_path / "out", "--model", tmp_path))
    assert ran.code == 2, ran.transcript
    assert "train with --fold all" in ran.only_error
