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
"""The fold on which no default version is trained."""
SETS = {"nuclei": ("he", "m2c", "nucls"), "nuclei-fluorescence": ("fluo",)}
"""The annotated sets of each built-in model."""
LEARNT = {("nuclei@2", "he")}
"""Versions left out of a comparison, since they are trained on the fold.

nuclei-fluorescence@1 is too, and is compared all the same: the default passes in spite of it.
"""


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
    (folder / "fluo").mkdir()
    for part, source in (("images", "images"), ("masks", "labels")):
        (folder / "fluo" / part).symlink_to(shared_data / "dsb2018" / "fluo" / source)
    rows = [row for row in read(shared_data / "dsb2018" / "groups.csv") if row["kind"] == "fluo"]
    write(folder / "fluo" / "cases.csv", [row | {"set": "fluo"} for row in rows])
    return folder


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def held_back(folder: Path, kind: str, mpp: float | None) -> tuple[Dataset, dict[str, str]]:
    """The images of a set's held-back fold, at a resolution where they state one, and their patients."""
    folder = folder / "fluo" if kind == "fluo" else folder
    rows, table = read(folder / "cases.csv"), folder / f"{kind}.csv"
    write(table, [row for row in rows if row["set"] == kind and int(row["fold"]) == HELD_BACK])
    dataset = open_dataset(folder / "images", folder / "masks", table, mpp=None if kind == "fluo" else mpp)
    return dataset, {name: row.patient for name, row in dataset.rows.items()}


def scored(name: str, folder: Path, kind: str) -> Scored:
    model = load(resolve(name))
    dataset, patients = held_back(folder, kind, model.spec.mpp)
    cases = recoloured(dataset.cases, model.spec.normalisation)
    counts = [score([whole_outputs(model, one.image_CYX)], [one], [model.spec])[0][1] for one in cases]
    return Scored(tuple(counts), tuple(patients[one.name] for one in cases))


def comparisons() -> Iterator[tuple[str, str, str]]:
    """Each default with each older version of it, on each set."""
    for name, default in default_versions().items():
        older = [f"{name}@{version}" for version in range(1, default)]
        yield from ((name, old, kind) for old in older for kind in SETS[name] if (old, kind) not in LEARNT)


@pytest.mark.long
@pytest.mark.parametrize(("name", "older", "kind"), list(comparisons()))
def test_the_default_is_not_significantly_worse_than_an_older_version(
    arranged: Path, name: str, older: str, kind: str
) -> None:
    default, old = (scored(one, arranged, kind) for one in (name, older))
    for one, found in ((name, default), (older, old)):
        total = sum(found.counts, Counts())
        print(f"{one} on {kind}: F1 {total.f1:.3f} on {len(found.counts)} images")
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
