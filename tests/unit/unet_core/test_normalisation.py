"""Fitted colour maps equal the papers' equations; fits that are impossible are reported by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.data import immunohistochemistry

from tests.support import oracle_colours as oracle
from unet_core.colour_transform import recolour
from unet_core.normalisation import ColourMap, Normalisation, fit, fits, sample, sample_step, source, target_of

TARGETS: dict[Any, Any] = {
    "reinhard": ((1.1, -0.05, 0.2), (0.5, 0.12, 0.15)),
    "macenko": ((1.2, 1.5, 0.7), (0.2, 0.9, 0.4)),
}
HAEMATOXYLIN, EOSIN = np.array([0.65, 0.70, 0.29]), np.array([0.07, 0.99, 0.11])
"""Ruifrok and Johnston 2001."""


def tissue(height: int = 300, width: int = 400) -> NDArray[np.uint8]:
    """Real tissue (3, y, x)."""
    return np.ascontiguousarray(immunohistochemistry().transpose(2, 0, 1)[:, :height, :width])


def stained(*strengths: tuple[NDArray[np.float64], float], seed: int = 5) -> NDArray[np.uint8]:
    """A section with mostly one stain per pixel, up to its strength; a third of it is glass."""
    rng = np.random.default_rng(seed)
    which, share = rng.integers(0, len(strengths) + 1, (120, 150)), rng.uniform(0.3, 1.0, (120, 150))
    densities = np.zeros((3, 120, 150))
    for number, (direction, strength) in enumerate(strengths):
        unit = direction / np.linalg.norm(direction)
        densities += unit[:, None, None] * strength * share * (which == number)
    return np.rint(256 * np.exp(-densities) - 1).clip(0, 255).astype(np.uint8)


def normalisation_for(stain: Any, *, equalise: bool = False) -> Normalisation:
    return Normalisation(stain, TARGETS.get(stain), equalise)


# ---- the fit -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", [tissue(), stained((HAEMATOXYLIN, 1.8), (EOSIN, 1.0))], ids=["tissue", "made"])
@pytest.mark.parametrize("stain", ["reinhard", "macenko"])
def test_a_fit_equals_the_papers_equations(image: NDArray[np.uint8], stain: Any) -> None:
    found = fit(image, normalisation_for(stain))
    matrix, offset = oracle.STAINS[stain](image, TARGETS[stain])
    np.testing.assert_allclose(found.matrix, matrix, atol=2e-6)
    np.testing.assert_allclose(found.offset, offset, atol=2e-6)
    assert found.kept == ()


def test_macenko_finds_the_stains_of_a_synthetic_section() -> None:
    rows = source(stained((EOSIN, 1.0), (HAEMATOXYLIN, 1.8)).reshape(3, -1), "macenko")
    assert not isinstance(rows, str)
    expected = [HAEMATOXYLIN / np.linalg.norm(HAEMATOXYLIN) * 1.8, EOSIN / np.linalg.norm(EOSIN)]
    np.testing.assert_allclose(rows, expected, atol=0.03)


@pytest.mark.parametrize("stain", ["reinhard", "macenko"])
def test_normalised_stains_equal_the_target(stain: Any) -> None:
    """Stains are fitted again to densities that are not clipped to bytes."""
    image = stained((HAEMATOXYLIN, 1.5), (EOSIN, 0.8))
    target = source(stained((HAEMATOXYLIN[[0, 2, 1]], 1.3), (EOSIN, 1.2)).reshape(3, -1), stain)
    assert not isinstance(target, str)
    rows = tuple(tuple(row) for row in target.tolist())
    after = fit(image, Normalisation(stain, rows, equalise=False)).density(oracle.absorbing(image).T)  # type: ignore[arg-type]  # two of three
    if stain == "reinhard":
        along = np.array(oracle.L_ALPHA_BETA) @ after
        np.testing.assert_allclose([along.mean(axis=1), along.std(axis=1)], rows, atol=1e-3)
    else:
        strengths = np.linalg.lstsq(np.array(rows).T, after, rcond=None)[0]
        np.testing.assert_allclose(np.percentile(strengths, 99, axis=1), 1, atol=1e-3)
        np.testing.assert_allclose(np.array(rows).T @ strengths, after, atol=1e-3)


def test_ranks_are_the_share_of_the_absorbing_pixels_below() -> None:
    image = tissue()
    found = fit(image, normalisation_for("none", equalise=True))
    assert found.ranks is not None
    absorbing = image[:, oracle.density(image).mean(axis=0) >= 0.15]
    for pairs, values in zip(found.ranks, absorbing, strict=True):
        assert [value for value, _ in pairs] == sorted({value for value, _ in pairs})
        for value, rank in pairs:
            assert rank == pytest.approx((values < value).mean() + (values == value).mean() / 2, abs=1e-6)
        equal = np.interp(values, *zip(*pairs, strict=True))
        assert np.abs(np.quantile(equal, np.linspace(0, 1, 21)) - np.linspace(0, 1, 21)).max() < 0.03


@pytest.mark.parametrize("stain", ["none", "reinhard", "macenko"])
def test_glass_around_the_tissue_changes_nothing(stain: Any) -> None:
    image = tissue(200, 200)
    glass = np.full((3, 400, 400), 246, np.uint8)
    glass[:, 150:350, 30:230] = image
    asked = normalisation_for(stain, equalise=stain == "none")
    alone, within = fit(image, asked), fit(glass, asked)
    assert alone.ranks == within.ranks
    if stain != "none":
        np.testing.assert_allclose(alone.matrix, within.matrix, atol=2e-6)  # type: ignore[arg-type]  # it is there


def test_a_map_survives_json_and_is_hashable() -> None:
    found = fit(tissue(), normalisation_for("macenko", equalise=True))
    assert ColourMap.model_validate_json(found.model_dump_json()) == found
    assert hash(found) == hash(fit(tissue(), normalisation_for("macenko", equalise=True)))


def test_each_network_has_its_own_map() -> None:
    one, none, other = fits(tissue(), [normalisation_for("reinhard"), None, normalisation_for("none", equalise=True)])
    assert none is None
    assert one is not None
    assert other is not None
    assert (one.ranks, other.matrix) == (None, None)


# ---- what cannot be fitted -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Odd:
    """An image that cannot be normalised, and the reasons given by Reinhard and by Macenko."""

    picture: NDArray[Any]
    reinhard: str
    macenko: str


GREY = np.repeat(tissue()[1:2], 3, axis=0)
ODD = {
    "one channel": Odd(tissue()[:1], "not RGB", "not RGB"),
    "four channels": Odd(np.concatenate([tissue(), tissue()[:1]]), "not RGB", "not RGB"),
    "glass": Odd(np.full((3, 90, 90), 245, np.uint8), "no stained tissue", "no stained tissue"),
    "a speck": Odd(
        np.where(np.arange(8100).reshape(90, 90) < 199, 90, 245).astype(np.uint8)[None].repeat(3, 0),
        "no stained tissue",
        "no stained tissue",
    ),
    "fluorescence": Odd(tissue() // 8, "not bright-field", "not bright-field"),
    "grey": Odd(GREY, "one colour", "one stain"),
    "black": Odd(np.zeros((3, 90, 90), np.uint8), "not bright-field", "not bright-field"),
    "one value": Odd(np.full((3, 90, 90), 120, np.uint8), "one colour", "one stain"),
    "one stain": Odd(stained((HAEMATOXYLIN, 1.8)), "", "one stain"),
    "one pixel": Odd(np.full((3, 1, 1), 120, np.uint8), "no stained tissue", "no stained tissue"),
}


@pytest.mark.parametrize("stain", ["reinhard", "macenko"])
@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_colours_that_cannot_be_fitted_stay_and_the_reason_is_recorded(odd: Odd, stain: Any) -> None:
    found = fit(odd.picture, normalisation_for(stain))
    why = getattr(odd, stain)
    assert found.kept == ((f"{stain}: {why}",) if why else ())
    assert (found.matrix is None) == bool(why)


@pytest.mark.parametrize("name", ["glass", "one value", "black", "one pixel"])
def test_one_value_has_no_ranks(name: str) -> None:
    found = fit(ODD[name].picture, normalisation_for("none", equalise=True))
    assert (found.ranks, found.kept) == (None, ("equalise: one value",))


@pytest.mark.parametrize("name", ["one channel", "four channels", "fluorescence"])
def test_images_without_stains_can_be_equalised(name: str) -> None:
    picture = ODD[name].picture
    found = fit(picture, normalisation_for("macenko", equalise=True))
    assert found.ranks is not None
    assert len(found.ranks) == len(picture)
    assert len(found.kept) == 1


RESCALE = Normalisation("none", None, equalise=False, rescale=True)


def fluorescence(seed: int = 0) -> NDArray[np.uint16]:
    """Dim nuclei of 180 to 400 grey levels over a background of 100 with noise, 12 bits."""
    rng = np.random.default_rng(seed)
    picture = rng.normal(100, 4, (200, 240))
    for y, x in rng.uniform(10, 190, (25, 2)):
        rows, columns = np.ogrid[:200, :240]
        picture[(rows - y) ** 2 + (columns - x) ** 2 < 36] += rng.uniform(80, 300)
    return np.rint(picture).clip(0, 4095).astype(np.uint16)[None]


@pytest.mark.parametrize("picture", [fluorescence(), (fluorescence() // 4).astype(np.uint8)])
def test_rescaling_equals_its_definition(picture: NDArray[Any]) -> None:
    found = fit(picture, RESCALE)
    most = np.iinfo(picture.dtype).max
    expected = [np.rint(most * oracle.rescaled(plane, plane.astype(float))) for plane in picture]
    made = recolour(torch.from_numpy(picture), found).numpy()
    assert found.kept == ()
    assert np.abs(made.astype(int) - np.stack(expected)).max() <= 1


@pytest.mark.parametrize(("factor", "offset"), [(1, 0), (2, 0), (16, 0), (1, 300), (9, 1000)])
def test_bit_depth_exposure_and_offset_do_not_matter(factor: int, offset: int) -> None:
    plain = fluorescence()
    changed = (plain * factor + offset).astype(np.uint16)
    one, other = (
        recolour(torch.from_numpy(image), fit(image, RESCALE)).numpy().astype(int) for image in (plain, changed)
    )
    assert np.abs(one - other).max() <= 1


@pytest.mark.parametrize(
    ("picture", "why"),
    [
        (np.full((1, 30, 30), 7, np.uint8), "channel 0 has one value"),
        (np.random.default_rng(0).normal(100, 4, (1, 99, 99)).astype(np.uint8), "no signal above its background"),
    ],
)
def test_images_without_signal_are_not_rescaled(picture: NDArray[Any], why: str) -> None:
    found = fit(picture, RESCALE)
    assert found.ranks is None
    assert why in found.kept[0]


# ---- the picture ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "step"), [((1, 1), 1), ((512, 512), 1), ((512, 513), 2), ((4096, 4096), 8), ((10**9, 10**9), 512)]
)
def test_thumbnails_have_few_pixels(shape: tuple[int, int], step: int) -> None:
    assert sample_step(shape) == step


def test_the_thumbnail_is_read_piece_by_piece() -> None:
    class Read:
        """An image that allows reads of one piece only."""

        pixels = np.random.default_rng(1).integers(0, 256, (3, 2100, 4200), np.uint8)
        shape = pixels.shape

        def __getitem__(self, key: tuple[slice, ...]) -> NDArray[np.uint8]:
            read = self.pixels[key]
            assert read[0].size <= 2048**2
            return read

    image = Read()
    assert np.array_equal(sample(image), image.pixels[:, ::8, ::8])


def test_the_target_is_the_median_of_stained_images() -> None:
    images = [stained((HAEMATOXYLIN, strength), (EOSIN, 1.0)) for strength in (1.0, 1.4, 2.4)]
    found = target_of([*images, ODD["glass"].picture], "macenko")
    rows = [source(image.reshape(3, -1), "macenko") for image in images]
    np.testing.assert_allclose(found, np.median(np.array(rows), axis=0), atol=1e-4)  # type: ignore[arg-type]  # numbers
    assert target_of([ODD["glass"].picture, GREY[:1]], "reinhard") == "no stained tissue, not RGB"
