"""The default version of each built-in model is no worse than any older one, on images that neither was trained on."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pipeline.annotations.dataset import Dataset, open_dataset
from tests.models.nuclei_data import main as arrange
from unet_core.data.recoloured import recoloured
from unet_core.metrics.bootstrap import LEAST_PATIENTS, Patients
from unet_core.metrics.overlap import Counts
from unet_core.model_file.checkpoint import load
from unet_core.model_file.header import default_versions, resolve
from unet_core.networks.whole_pass import whole_outputs
from unet_core.training.model_selection import score

HELD_BACK = 0
"""The fold on which no version of `nuclei` from 3 on is trained."""
LEARNT_HE = (2,)
"""Versions of `nuclei` that are trained on all images of the set he."""
SETS = ("he", "m2c", "nucls")


@dataclass(frozen=True, slots=True)
class Scored:
    """Counts of objects of each image, and the patient of each."""

    counts: tuple[Counts, ...]
    patients: tuple[str, ...]


def f1(counts: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """F1 of counts (..., 3): both, only predicted, only true."""
    both, found_only, true_only = np.moveaxis(counts, -1, 0)
    return np.asarray(2 * both / np.maximum(2 * both + found_only + true_only, 1))


def significantly_worse(new: Scored, old: Scored) -> bool:
    """Whether the interval (95 %) of the difference in pooled F1, over resampled patients, lies below 0.

    Of images of fewer than six patients nothing is concluded.
    """
    assert new.patients == old.patients
    patients = Patients.of(new.patients)
    if len(patients.names) < LEAST_PATIENTS:
        return False  # nothing is concluded from so few
    weights = patients.resampled()
    pooled = [
        f1(weights @ np.array([(one.both, one.found_only, one.true_only) for one in scored.counts], float))
        for scored in (new, old)
    ]
    return bool(np.quantile(pooled[0] - pooled[1], 0.975) < 0)


@pytest.fixture(scope="module")
def arranged(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nuclei")
    arrange([str(shared_data), str(folder)])
    return folder


def held_back(folder: Path, kind: str, mpp: float | None) -> tuple[Dataset, dict[str, str]]:
    """The images of a set's held-back fold at a resolution, and their patients."""
    with (folder / "cases.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["set"] == kind and int(row["fold"]) == HELD_BACK]
    table = folder / f"{kind}.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    dataset = open_dataset(folder / "images", folder / "masks", table, mpp=mpp)
    return dataset, {name: row.patient for name, row in dataset.rows.items()}


def scored(name: str, folder: Path, kind: str) -> Scored:
    model = load(resolve(name))
    dataset, patients = held_back(folder, kind, model.spec.mpp)
    cases = recoloured(dataset.cases, model.spec.normalisation)
    counts = [score([whole_outputs(model, one.image_CYX)], [one], [model.spec])[0][1] for one in cases]
    return Scored(tuple(counts), tuple(patients[one.name] for one in cases))


def older() -> Iterator[tuple[int, str]]:
    for version in range(1, default_versions()["nuclei"]):
        yield from ((version, kind) for kind in SETS if not (kind == "he" and version in LEARNT_HE))


@pytest.mark.long
@pytest.mark.parametrize(("version", "kind"), list(older()))
def test_the_default_is_not_significantly_worse_than_an_older_version(arranged: Path, version: int, kind: str) -> None:
    default, old = (scored(name, arranged, kind) for name in ("nuclei", f"nuclei@{version}"))
    for name, one in (("nuclei", default), (f"nuclei@{version}", old)):
        total = sum(one.counts, Counts())
        print(f"{name} on {kind}: F1 {total.f1:.3f} on {len(one.counts)} images")
    assert not significantly_worse(default, old)


@pytest.fixture
def counted() -> Callable[[float], Scored]:
    generator = np.random.default_rng(0)
    patients = tuple(f"p{index // 2}" for index in range(40))
    luck = generator.normal(0, 3, 40)

    def at(share: float) -> Scored:
        found = np.clip(np.rint(100 * share + luck), 0, 100).astype(int).tolist()
        return Scored(tuple(Counts(one, 10, 100 - one) for one in found), patients)

    return at


def test_a_worse_default_is_refused(counted: Callable[[float], Scored]) -> None:
    assert significantly_worse(counted(0.70), counted(0.75))
    assert not significantly_worse(counted(0.75), counted(0.70))
    assert not significantly_worse(counted(0.75), counted(0.75))


def test_the_default_version_is_what_a_bare_name_means() -> None:
    for name, version in default_versions().items():
        assert resolve(name) == resolve(f"{name}@{version}")
