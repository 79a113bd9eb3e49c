"""Each augmentation equals a direct evaluation; pixels that it should not change stay unchanged."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from skimage.color import combine_stains, hed_from_rgb, rgb_from_hed, separate_stains

from unet_core.data.augmentation import (
    STAINS,
    Augmentation,
    bilinear_at,
    elastic_field,
    fibres,
    jitter_colour,
    jitter_stains,
    lay_counterstain,
    nearest_at,
    overdraw,
    show_in_dab,
    source_offsets,
)

pytestmark = pytest.mark.usefixtures("one_thread")

OFF = Augmentation.off()
STILL = Augmentation(scale=(1.0, 1.0), elastic_px=0.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grid(height: int, width: int) -> torch.Tensor:
    return torch.stack(torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij"))


def only(**changes: object) -> Augmentation:
    return Augmentation.model_validate(OFF.model_dump() | changes)


# ---- the plane -------------------------------------------------------------------------------------------------------


def cubic(distance: float) -> float:
    """Keys' cubic convolution with a = -3/4, written out."""
    d = abs(distance)
    if d <= 1:
        return (-0.75 + 2) * d**3 - (-0.75 + 3) * d**2 + 1
    return -0.75 * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def bicubic(nodes: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Spread 3 x 3 nodes from edge to edge of size x size px; outer nodes are repeated beyond."""
    field = np.zeros((size, size))
    for y, x in product(range(size), repeat=2):
        v, h = (2 * index / (size - 1) for index in (y, x))
        for i, j in product(range(-1, 5), repeat=2):  # four neighbours along each axis have a weight
            field[y, x] += cubic(v - i) * cubic(h - j) * nodes[min(max(i, 0), 2), min(max(j, 0), 2)]
    return field


@pytest.mark.parametrize("size", [2, 17, 40])
def test_elastic_field_is_bicubic_between_gaussian_nodes(size: int) -> None:
    field = elastic_field(size, 10.0, seeded(3)).numpy()
    nodes = 10 * torch.randn(1, 2, 3, 3, generator=seeded(3))[0].double().numpy()
    for axis in (0, 1):
        np.testing.assert_allclose(field[axis], bicubic(nodes[axis], size), atol=1e-4)


def test_elastic_nodes_have_the_configured_deviation_and_the_field_is_smooth() -> None:
    fields = torch.stack([elastic_field(101, 10.0, seeded(seed)) for seed in range(200)])
    assert float(fields[..., ::50, ::50].std()) == pytest.approx(10, rel=0.05)
    assert float((fields[..., 1:] - fields[..., :-1]).abs().max()) < 3, "no pixel jumps"


@pytest.mark.parametrize("seed", range(6))
def test_without_scale_and_elastic_distances_are_kept(seed: int) -> None:
    at = source_offsets(33, STILL, seeded(seed))
    assert torch.allclose((at[:, :, 1:] - at[:, :, :-1]).norm(dim=0), torch.tensor(1.0), atol=1e-5)
    assert torch.allclose((at[:, 1:] - at[:, :-1]).norm(dim=0), torch.tensor(1.0), atol=1e-5)
    assert torch.allclose(at[:, 16, 16], torch.zeros(2), atol=1e-5)


def is_flipped(at_2YX: torch.Tensor) -> bool:
    down, right = at_2YX[:, 2, 1] - at_2YX[:, 1, 1], at_2YX[:, 1, 2] - at_2YX[:, 1, 1]
    return float(down[0] * right[1] - down[1] * right[0]) < 0


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_share_of_flipped_tiles_is_the_configured_probability(share: float) -> None:
    settings = STILL.model_copy(update={"flip": share})
    flipped = sum(is_flipped(source_offsets(3, settings, seeded(seed))) for seed in range(200))
    assert 200 * share - 30 * (share == 0.5) <= flipped <= 200 * share + 30 * (share == 0.5)


@pytest.mark.parametrize("degrees", [0.0, 20.0, 180.0])
def test_rotation_angles_cover_the_configured_range(degrees: float) -> None:
    angles = []
    for seed in range(200):
        at = source_offsets(3, only(rotation_degrees=degrees), seeded(seed))
        down = at[:, 2, 1] - at[:, 1, 1]
        angles.append(math.degrees(math.atan2(float(down[1]), float(down[0]))))
    assert max(map(abs, angles)) <= degrees + 1e-4
    if degrees:
        assert min(angles) < -0.8 * degrees
        assert max(angles) > 0.8 * degrees


def test_scale_is_the_size_in_the_tile_over_that_in_the_image() -> None:
    sizes = []
    for seed in range(300):
        at = source_offsets(5, Augmentation(scale=(0.5, 2.0), elastic_px=0.0), seeded(seed))
        sizes.append(1 / float((at[:, 0, 1] - at[:, 0, 0]).norm()))
    assert 0.5 <= min(sizes) < 0.6
    assert 1.7 < max(sizes) <= 2.0
    assert abs(sum(map(math.log, sizes))) / 300 < 0.1
    twice = source_offsets(5, Augmentation(scale=(2.0, 2.0), elastic_px=0.0), seeded(0))
    assert abs(float((twice[:, 0, 1] - twice[:, 0, 0]).norm()) - 0.5) < 1e-5, "an object twice as large, not half"


def test_sampling_at_pixel_centres_returns_the_pixels() -> None:
    image, at = torch.rand(3, 7, 9, generator=seeded()), grid(7, 9)
    assert torch.equal(bilinear_at(image, at), image)
    assert torch.equal(bilinear_at(image, at.flip(2)), image.flip(2))
    assert torch.equal(nearest_at(image, at + 0.4), image)
    assert torch.equal(nearest_at(image, at[:, 1:, 1:] - 0.6), image[:, :-1, :-1])
    between = bilinear_at(image, at[:, :, :-1] + torch.tensor([0.0, 0.5])[:, None, None])
    assert torch.allclose(between, (image[:, :, 1:] + image[:, :, :-1]) / 2, atol=1e-5)


def test_labels_are_sampled_without_interpolation() -> None:
    labels = torch.tensor([[[2**31 - 1, 2**24 + 1, 5]]], dtype=torch.int32)
    assert torch.equal(nearest_at(labels, grid(1, 3) + 0.3), labels)


# ---- nothing is changed that is switched off -------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_disabled_augmentation_returns_equal_bits(channels: int) -> None:
    image = torch.rand(channels, 24, 30, generator=seeded())
    for seed in range(4):
        assert torch.equal(jitter_colour(image, OFF, seeded(seed)), image)
        assert torch.equal(source_offsets(24, OFF, seeded(seed)), grid(24, 24) - 11.5)


@pytest.mark.parametrize(
    "changes",
    [
        *({name: 0.5} for name in ("stain", "stain_shift", "gain", "contrast", "brightness", "gamma")),
        *({name: 0.99} for name in ("counterstain", "dab", "blur", "sharpen", "noise")),
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_each_augmentation_works_alone(changes: dict[str, float]) -> None:
    image = torch.rand(3, 24, 30, generator=seeded()) * 0.5 + 0.3
    changed = [jitter_colour(image, only(**changes), seeded(seed)) for seed in range(5)]
    assert not any(torch.equal(one, image) for one in changed)
    assert not torch.equal(changed[0], changed[1])


# ---- colours ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_colour_augmentation_keeps_range_and_positions(channels: int) -> None:
    image = torch.zeros(channels, 32, 32)
    image[:, :, 16:] = 0.9
    for seed in range(8):
        changed = jitter_colour(image, Augmentation(counterstain=0.0), seeded(seed))
        assert changed.shape == image.shape
        assert 0 <= float(changed.min()) <= float(changed.max()) <= 1
        assert float(changed[:, :, 20:].mean()) > float(changed[:, :, :12].mean()) + 0.3


def test_stains_are_scaled_one_by_one() -> None:
    """Equals scikit-image: separate stains, scale and shift each plane by the drawn values, combine."""
    image = torch.rand(3, 16, 16, generator=seeded()) * 0.4 + 0.5
    settings = only(stain=0.35, stain_shift=0.0)
    spread = 2 * torch.rand(2, 3, generator=seeded(1)).double().numpy() - 1
    planes = separate_stains(image.double().numpy(), hed_from_rgb, channel_axis=0)
    # that function clips planes at 0, so only pixels without a clipped plane can be compared
    sound = (planes > 0).all(axis=0)
    mixed = combine_stains(planes * np.exp(0.35 * spread[0])[:, None, None], rgb_from_hed, channel_axis=0)
    found = jitter_stains(image, settings, seeded(1)).numpy()
    assert sound.sum() > 10
    np.testing.assert_allclose(found[:, sound], mixed[:, sound], atol=2e-5)


def test_a_shift_adds_to_each_stains_density() -> None:
    image = torch.rand(3, 8, 8, generator=seeded()) * 0.4 + 0.5
    spread = 2 * torch.rand(2, 3, generator=seeded(1)).double().numpy() - 1
    more = (0.1 * spread[1] @ STAINS)[:, None, None]
    found = jitter_stains(image, only(stain_shift=0.1), seeded(1)).numpy()
    np.testing.assert_allclose(found, np.exp(np.log(image.numpy()) - more).clip(0, 1), atol=1e-5)


def test_white_stays_bright_under_stain_augmentation() -> None:
    strong = Augmentation(stain=0.5)
    assert float(jitter_stains(torch.ones(3, 4, 4), strong, seeded(1)).min()) > 0.8


@pytest.mark.parametrize("name", ["contrast", "gamma", "brightness"])
def test_light_augmentations_equal_their_formulas(name: str) -> None:
    image = torch.rand(2, 16, 16, generator=seeded()) * 0.2 + 0.4
    drawn = 0.1 * (2 * float(torch.rand((), generator=seeded(5))) - 1)
    mean = image.mean(dim=(1, 2), keepdim=True)
    expected = {
        "contrast": mean + (image - mean) * math.exp(drawn),
        "gamma": image ** math.exp(drawn),
        "brightness": image + drawn,
    }[name]
    assert torch.allclose(jitter_colour(image, only(**{name: 0.1}), seeded(5)), expected, atol=1e-6)


def test_a_counterstain_absorbs_most_in_green_and_only_darkens() -> None:
    image = torch.full((3, 48, 64), 0.9)
    for seed in range(10):
        stained = lay_counterstain(image, seeded(seed))
        assert stained.shape == image.shape
        red, green, blue = stained
        assert bool((green <= blue).all())
        assert bool((green <= red).all())
        assert float(red.min()) > 0.3
        assert float(stained.max()) <= 0.9


def test_dab_replaces_eosin_and_leaves_nuclei_in_haematoxylin_or_brown() -> None:
    """Nuclei of haematoxylin 1.2 on eosin 0.4: eosin goes, brown comes around the nuclei or in some of them."""
    amounts = torch.zeros(3, 60, 60)
    amounts[1] = 0.4
    amounts[0, 10:20, 10:20] = amounts[0, 35:50, 30:45] = 1.2
    nuclei = amounts[0] > 0
    stains = torch.from_numpy(STAINS).float()
    image = torch.exp(-torch.einsum("sc,syx->cyx", stains, amounts))
    around = 0
    for seed in range(30):
        shown = show_in_dab(image, seeded(seed))
        assert shown.shape == image.shape
        assert 0 <= float(shown.min()) <= float(shown.max()) <= 1
        haematoxylin, eosin, dab = torch.einsum("cs,cyx->syx", torch.linalg.inv(stains), -shown.log())
        assert float(eosin.max()) < 0.3 * 0.4 + 1e-4
        assert float(haematoxylin[nuclei].max()) < 1.2 + 1e-4
        assert float((haematoxylin + dab)[nuclei].min()) > 0.3
        assert float(haematoxylin[~nuclei].max()) < 1e-4
        assert float(dab.min()) > -1e-4
        around += bool(dab[~nuclei].max() > 0.02)
    assert 10 < around < 29, "DAB lies around the nuclei in about two of three images"


def test_a_setting_without_effect_is_not_stored() -> None:
    """So that a training that was started before it is the same run."""
    assert "dab" not in Augmentation().model_dump(mode="json")
    assert Augmentation.model_validate(Augmentation(dab=0.2).model_dump(mode="json")) == Augmentation(dab=0.2)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (40, 25)])
def test_dab_is_laid_on_tiles_of_any_size(size: tuple[int, int]) -> None:
    for seed in range(6):
        assert bool(show_in_dab(torch.rand(3, *size, generator=seeded()), seeded(seed)).isfinite().all())


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (40, 25)])
def test_fibres_are_a_texture_in_range(size: tuple[int, int]) -> None:
    texture = fibres(size, seeded(2))
    assert texture.shape == size
    assert 0 <= float(texture.min()) <= float(texture.max()) <= 1


def test_sharpening_overshoots_at_edges_and_keeps_flat_areas() -> None:
    image = torch.full((3, 40, 40), 0.6)
    image[:, :, 20:] = 0.4
    changed = overdraw(image, seeded(1))
    assert changed.shape == image.shape
    assert torch.allclose(changed[:, :, :10], image[:, :, :10], atol=1e-5)
    assert float(changed[:, :, 19].min()) > 0.61
    assert float(changed[:, :, 20].max()) < 0.39


def test_noise_is_at_most_the_configured_deviation() -> None:
    image = torch.full((3, 64, 64), 0.5)
    strengths = [float((jitter_colour(image, only(noise=0.04), seeded(seed)) - image).std()) for seed in range(40)]
    assert 0.03 < max(strengths) < 0.042
    assert min(strengths) < 0.01


def test_augmentation_depends_only_on_the_generator() -> None:
    image = torch.rand(3, 24, 24, generator=seeded())
    settings = Augmentation(contrast=0.2, brightness=0.1)
    for seed in range(4):
        assert torch.equal(jitter_colour(image, settings, seeded(seed)), jitter_colour(image, settings, seeded(seed)))
        assert torch.equal(source_offsets(9, settings, seeded(seed)), source_offsets(9, settings, seeded(seed)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": [2.0, 1.0]}, "expected the smallest first"),
        ({"scale": [0.0, 1.0]}, "greater than 0"),
        ({"counterstain": 1.0}, "less than 1"),
        ({"elastic": 3.0}, "elastic"),
        ({"noise": "0.1"}, "number"),
    ],
)
def test_invalid_settings_are_rejected(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Augmentation.model_validate(changes)


@pytest.mark.cuda
@pytest.mark.parametrize("channels", [1, 3])
def test_colours_are_computed_on_the_device_of_the_image(channels: int) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    image = torch.rand(channels, 64, 64, generator=seeded())
    for seed in range(6):
        settings = Augmentation(contrast=0.2, brightness=0.1, counterstain=0.5, dab=0.5)
        here = jitter_colour(image, settings, seeded(seed))
        there = jitter_colour(image.cuda(), settings, seeded(seed))
        assert there.is_cuda
        assert torch.allclose(here, there.cpu(), atol=1e-4)
