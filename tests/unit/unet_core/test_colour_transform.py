"""A colour map gives the values of its equations for any surroundings of a pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.support import oracle_colours as oracle
from tests.unit.unet_core.test_normalisation import GREY, TARGETS, normalisation_for, tissue
from unet_core.colour_transform import recolour
from unet_core.data.recoloured import Recoloured, recoloured
from unet_core.data.sampler import AnnotatedImage
from unet_core.normalisation import ColourMap, fit

ASKED = [("reinhard", False), ("macenko", False), ("none", True), ("macenko", True)]


def by(colours: ColourMap, image: NDArray[Any]) -> NDArray[Any]:
    return recolour(torch.from_numpy(image), colours).numpy()


@pytest.mark.parametrize(("stain", "equalise"), ASKED)
def test_bytes_equal_those_of_numpy(stain: Any, equalise: bool) -> None:
    image = tissue()
    found = by(fit(image, normalisation_for(stain, equalise=equalise)), image)
    assert found.dtype == np.uint8
    assert np.array_equal(found, oracle.shown(image, stain, TARGETS.get(stain), equalise=equalise))
    assert (found != image).mean() > 0.5


@pytest.mark.parametrize("stain", ["reinhard", "macenko"])
def test_bytes_are_the_equations_rounded_once(stain: Any) -> None:
    image = tissue()
    apart = np.abs(by(fit(image, normalisation_for(stain)), image) - oracle.exact(image, stain, TARGETS[stain]))
    print(f"at most {apart.max():.3f} grey levels from the equations, {apart.mean():.3f} on average")
    assert apart.max() < 0.54


def test_16_bits_are_kept() -> None:
    image = tissue().astype(np.uint16) * 256 + np.random.default_rng(2).integers(0, 256, (3, 300, 400), np.uint16)
    colours = fit(image, normalisation_for("macenko"))
    density = -np.log((image.astype(float) + 1) / 65536)
    made = np.tensordot(np.array(colours.matrix), density, 1)
    apart = np.abs(by(colours, image) - (65536 * np.exp(-made) - 1).clip(0, 65535))
    assert apart.max() < 6, "of 65535"


@pytest.mark.parametrize(("stain", "equalise"), ASKED)
def test_a_pixel_is_the_same_in_any_tile(stain: Any, equalise: bool) -> None:
    image = tissue()
    colours = fit(image, normalisation_for(stain, equalise=equalise))
    whole = by(colours, image)
    for y, x, height, width in [(0, 0, 1, 1), (3, 7, 31, 29), (100, 5, 64, 200), (299, 399, 1, 1)]:
        piece = image[:, y : y + height, x : x + width]
        assert np.array_equal(by(colours, np.ascontiguousarray(piece)), whole[:, y : y + height, x : x + width])
        strided = recolour(torch.from_numpy(image)[:, y : y + height, x : x + width], colours).numpy()
        assert np.array_equal(strided, whole[:, y : y + height, x : x + width])


def test_a_map_that_changes_nothing_changes_nothing() -> None:
    image = torch.from_numpy(tissue())
    assert recolour(image, fit(np.zeros((3, 9, 9), np.uint8), normalisation_for("macenko"))) is image


def test_one_channel_is_equalised() -> None:
    image = GREY[:1]
    found = by(fit(image, normalisation_for("macenko", equalise=True)), image)
    assert found.shape == image.shape
    assert found.std() > image.std()


def test_each_image_gets_its_own_map() -> None:
    pale, dark = tissue(), (tissue() * 0.7).astype(np.uint8)
    labels = np.zeros((300, 400), np.int32)
    cases = [AnnotatedImage("pale", pale, labels), AnnotatedImage("dark", dark, labels)]
    transformed = recoloured(cases, normalisation_for("reinhard"))
    for case, image in zip(transformed, (pale, dark), strict=True):
        assert isinstance(case.image_CYX, Recoloured)
        assert case.image_CYX.shape == image.shape
        expected = oracle.shown(image, "reinhard", TARGETS["reinhard"])
        assert np.array_equal(case.image_CYX[:, :, :], expected)
        assert np.array_equal(case.image_CYX[:, 20:61, 7:90], expected[:, 20:61, 7:90])
    assert recoloured(cases, None) is cases
