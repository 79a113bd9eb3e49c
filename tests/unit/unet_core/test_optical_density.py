"""Optical density, stain distance, and the stain stored in the built-in model."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.unit.unet_core.dsb2018 import annotated
from unet_core.data.augmentation import Augmentation
from unet_core.data.sampler import stain_shown
from unet_core.model_file.header import describe, resolve
from unet_core.optical_density import StainStatistics, mean_density, optical_density
from unet_core.spec import UNetSpec


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_optical_density_of_full_half_and_no_light(dtype: type) -> None:
    full = int(np.iinfo(dtype).max)
    found = optical_density(np.array([full, (full - 1) // 2, 0], dtype))
    assert found == pytest.approx([0, math.log(2), math.log(full + 1)])


def test_glass_has_no_stain() -> None:
    squares = np.full((3, 4, 5), 243, np.uint8)
    assert mean_density(squares) is None
    squares[:, 1, 2] = (120, 60, 150)
    found = mean_density(squares)
    assert found is not None
    assert found.tolist() == pytest.approx([-math.log((value + 1) / 256) for value in (120, 60, 150)])


def test_distance_counts_deviations_along_each_direction() -> None:
    turned = np.array([[1, 1], [-1, 1]]) / math.sqrt(2)
    covariance = turned @ np.diag([4.0, 0.25]) @ turned.T
    stain = StainStatistics((1.0, 2.0), tuple(tuple(row) for row in covariance.tolist()))
    away = np.array([[1.0, 2.0]]) + np.array([[0, 0], [3 * 2, 0], [0, 5 * 0.5], [2, 0.5]]) @ turned.T
    assert stain.distance(away).tolist() == pytest.approx([0, 3, 5, math.sqrt(2)])


def test_mean_and_covariance_are_those_of_the_cells() -> None:
    cells = np.random.default_rng(3).normal([0.4, 0.8, 0.3], [0.1, 0.3, 0.1], (4000, 3))
    stain = StainStatistics.of(cells)
    assert stain.mean == pytest.approx([0.4, 0.8, 0.3], abs=0.02)
    assert np.sqrt(np.diag(stain.covariance)) == pytest.approx([0.1, 0.3, 0.1], rel=0.05)
    assert np.median(stain.distance(cells)) == pytest.approx(1.54, abs=0.05), "chi of three degrees of freedom"


COVARIANCE = ((0.1, 0.0, 0.0), (0.0, 0.2, 0.01), (0.0, 0.01, 0.1))


def test_a_spec_returns_its_stain_or_none() -> None:
    assert UNetSpec().stain is None
    spec = UNetSpec(stain_mean=(0.4, 0.8, 0.3), stain_covariance=COVARIANCE)
    assert UNetSpec.model_validate_json(spec.model_dump_json()).stain == StainStatistics((0.4, 0.8, 0.3), COVARIANCE)


@pytest.mark.parametrize(
    ("mean", "covariance", "said"),
    [
        ((0.4, 0.8), COVARIANCE, "stain_mean: expected 3 entries"),
        ((0.4, 0.8, 0.3), COVARIANCE[:2], "stain_covariance: expected 3 entries"),
        ((0.4, 0.8, 0.3), None, "stain_covariance: expected 3 entries"),
        (None, COVARIANCE, "and a stain_mean beside it"),
        ((0.4, 0.8, 0.3), ((1.0,), (0.0,), (0.0,)), "as many rows as columns"),
        ((0.4, 0.8, 0.3), ((1.0, 0.0, 0.0), (0.5, 1.0, 0.0), (0.0, 0.0, 1.0)), "symmetric"),
        ((0.4, 0.8, 0.3), ((1.0, 2.0, 0.0), (2.0, 1.0, 0.0), (0.0, 0.0, 1.0)), "eigenvalues"),
    ],
)
def test_an_invalid_stain_is_rejected(mean: object, covariance: object, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        UNetSpec.model_validate({"stain_mean": mean, "stain_covariance": covariance})


def test_the_stain_of_the_built_in_model_is_that_of_its_training_images(shared_data: Path) -> None:
    """Fewer draws from another seed give the stored stain within their uncertainty."""
    cases = annotated(shared_data, "he", [1, 2, 3, 4])
    found = stain_shown(cases, 0.25, Augmentation(counterstain=0.5), torch.Generator().manual_seed(1), draws=200)
    stored = describe(resolve("nuclei@1")).spec.stain
    assert stored is not None
    assert stored.distance(np.array([found.mean]))[0] < 0.25
    relation = np.linalg.eigvals(np.linalg.solve(np.array(stored.covariance), np.array(found.covariance))).real
    assert 0.5 < relation.min() < relation.max() < 2
