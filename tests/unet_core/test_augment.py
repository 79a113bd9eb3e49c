"""Deformation and colour: what must stay, stays."""

from __future__ import annotations

import math

import pytest
import torch

from unet_core.augment import (
    Augmentation,
    elastic_field,
    fibres,
    jitter_colour,
    jitter_stains,
    lay_counterstain,
    overdraw,
    sample_at,
    source_offsets,
)

STILL = Augmentation(scale=(1.0, 1.0), elastic_px=0.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", range(6))
def test_without_scale_and_elastic_distances_are_kept(seed: int) -> None:
    at = source_offsets(33, STILL, seeded(seed))
    assert torch.allclose((at[:, :, 1:] - at[:, :, :-1]).norm(dim=0), torch.tensor(1.0), atol=1e-5)
    assert torch.allclose((at[:, 1:] - at[:, :-1]).norm(dim=0), torch.tensor(1.0), atol=1e-5)
    assert torch.allclose(at[:, 16, 16], torch.zeros(2), atol=1e-5)


def test_half_of_the_tiles_are_flipped() -> None:
    flipped = 0
    for seed in range(200):
        at = source_offsets(3, STILL, seeded(seed))
        down, right = at[:, 2, 1] - at[:, 1, 1], at[:, 1, 2] - at[:, 1, 1]
        flipped += float(down[0] * right[1] - down[1] * right[0]) < 0
    assert 70 < flipped < 130


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


def test_elastic_field_goes_through_its_nodes() -> None:
    field = elastic_field(101, 10.0, seeded(3))
    nodes = torch.randn(1, 2, 3, 3, generator=seeded(3))[0] * 10
    assert torch.allclose(field[:, ::50, ::50], nodes, atol=1e-4)
    assert float((field[:, 1:] - field[:, :-1]).abs().max()) < 1.5  # smooth: no pixel jumps


def test_sampling_where_pixels_are_returns_them() -> None:
    image = torch.rand(3, 7, 9, generator=seeded())
    at = torch.stack(torch.meshgrid(torch.arange(7.0), torch.arange(9.0), indexing="ij"))
    for mode in ("bilinear", "nearest"):
        assert torch.allclose(sample_at(image, at, mode), image, atol=1e-5)
    between = sample_at(image, at[:, :, :-1] + torch.tensor([0.0, 0.5])[:, None, None], "bilinear")
    assert torch.allclose(between, (image[:, :, 1:] + image[:, :, :-1]) / 2, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_colours_stay_in_range_and_places_stay(channels: int) -> None:
    image = torch.zeros(channels, 32, 32)
    image[:, :, 16:] = 0.9
    for seed in range(8):
        changed = jitter_colour(image, Augmentation(counterstain=0.0), seeded(seed))
        assert changed.shape == image.shape
        assert 0 <= float(changed.min()) <= float(changed.max()) <= 1
        assert float(changed[:, :, 20:].mean()) > float(changed[:, :, :12].mean()) + 0.3


def test_stains_without_strength_change_only_a_little_and_white_stays_bright() -> None:
    image = torch.rand(3, 16, 16, generator=seeded()) * 0.5 + 0.4
    assert float((jitter_stains(image, 0.0, seeded(1)) - image).abs().max()) < 0.15
    assert float(jitter_stains(torch.ones(3, 4, 4), 0.5, seeded(1)).min()) > 0.8


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


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (40, 25)])
def test_fibres_are_a_texture_in_range(size: tuple[int, int]) -> None:
    texture = fibres(size, seeded(2))
    assert texture.shape == size
    assert 0 <= float(texture.min()) <= float(texture.max()) <= 1


def test_overdrawn_edges_overshoot_and_flat_areas_stay() -> None:
    image = torch.full((3, 40, 40), 0.6)
    image[:, :, 20:] = 0.4
    changed = overdraw(image, seeded(1))
    assert changed.shape == image.shape
    assert torch.allclose(changed[:, :, :10], image[:, :, :10], atol=1e-5)
    assert float(changed[:, :, 19].min()) > 0.61
    assert float(changed[:, :, 20].max()) < 0.39


def test_the_generator_decides_everything() -> None:
    image = torch.rand(3, 24, 24, generator=seeded())
    settings = Augmentation()
    for seed in range(4):
        assert torch.equal(jitter_colour(image, settings, seeded(seed)), jitter_colour(image, settings, seeded(seed)))
        assert torch.equal(source_offsets(9, settings, seeded(seed)), source_offsets(9, settings, seeded(seed)))
