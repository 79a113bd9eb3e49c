"""Object F1 of a built-in model on annotated mosaics.

The command is run on mosaics that the model was not trained on. The haematoxylin-eosin mosaic has a minimum. The
Papanicolaou mosaic has none, because the model never saw that stain; its score is printed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray

from tests.support.commands import Command, Ran

KINDS = ("he", "pap")


@pytest.fixture(scope="module")
def ran(overtile: Command, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A run on both mosaics, pixel for pixel: they state no resolution."""
    out = tmp_path_factory.mktemp("mosaics")
    slides = [shared_data / "mosaics" / f"{kind}_mosaic.tif" for kind in KINDS]
    return overtile.run("segment", *slides, "--model", "nuclei@1", "--mpp", "native", "--out", out, out=out)


def f1_at_half(found_YX: NDArray[np.integer], true_YX: NDArray[np.integer]) -> float:
    """Return F1 of objects matched at an intersection over union above 0.5, where a match is unique."""
    pairs, overlap = np.unique(np.stack([found_YX.ravel(), true_YX.ravel()]), axis=1, return_counts=True)
    area_found, area_true = np.bincount(found_YX.ravel()), np.bincount(true_YX.ravel())
    inside = (pairs > 0).all(axis=0)
    (found, true), both = pairs[:, inside], overlap[inside]
    matches = int((2 * both > area_found[found] + area_true[true] - both).sum())
    objects = np.count_nonzero(area_found[1:]) + np.count_nonzero(area_true[1:])
    return 2 * matches / objects if objects else 1.0


def scored(ran: Ran, shared_data: Path, kind: str) -> float:
    """Return F1 of a mosaic's objects against its labels."""
    true_YX = tifffile.imread(shared_data / "mosaics" / f"{kind}_mosaic_labels.tif")
    store = ran.out / f"{kind}_mosaic" / "slide.ome.zarr" / "labels" / "objects" / "0"
    found_YX = np.asarray(zarr.open_array(store, mode="r")[:])
    f1 = f1_at_half(found_YX, true_YX)
    print(f"{kind}_mosaic: {found_YX.max()} objects, {true_YX.max()} annotated, F1 at IoU 0.5 {f1:.3f}")
    return f1


@pytest.mark.long
def test_f1_on_the_trained_stain_exceeds_its_minimum(ran: Ran, shared_data: Path) -> None:
    assert ran.code == 0, ran.transcript
    assert scored(ran, shared_data, "he") >= 0.5


@pytest.mark.long
def test_mosaic_of_another_stain_completes_and_prints_its_score(ran: Ran, shared_data: Path) -> None:
    assert ran.states()["pap_mosaic"] == "complete"
    assert scored(ran, shared_data, "pap") > 0


def test_the_score_is_what_matching_by_hand_gives() -> None:
    true_YX, found_YX = np.zeros((2, 4, 12), np.uint32)
    true_YX[:, 0:4], true_YX[:, 6:8], true_YX[:, 10:12] = 1, 2, 3
    found_YX[:, 0:3], found_YX[:, 7:9] = 5, 9  # 12 of 16 pixels shared; 4 of 12
    assert f1_at_half(found_YX, true_YX) == pytest.approx(2 * 1 / (2 + 3))
    assert f1_at_half(true_YX, true_YX) == 1.0
