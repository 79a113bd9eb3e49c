"""Targets of output maps equal their definitions, computed pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from unet_core.class_map import IGNORED
from unet_core.data.augmentation import Augmentation
from unet_core.data.map_targets import DotField, MapSettings, map_targets
from unet_core.data.sampler import AnnotatedImage, Sampler, Sampling

SETTINGS = MapSettings(names=("distance", "centre", "boundary"))


def discs() -> NDArray[np.int32]:
    """Two touching discs, one alone, and one that leaves the image."""
    labels = np.zeros((60, 70), np.int32)
    y, x = np.indices(labels.shape)
    for number, (cy, cx, radius) in enumerate([(20, 20, 8), (20, 35, 8), (45, 50, 5), (58, 10, 6)], start=1):
        labels[(np.hypot(y - cy, x - cx) <= radius) & (labels == 0)] = number
    return labels


def neighbours(labels: NDArray[np.int32], y: int, x: int) -> set[int]:
    """Labels of the 8-connected neighbours."""
    return {
        int(labels[y + dy, x + dx])
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
        if 0 <= y + dy < labels.shape[0] and 0 <= x + dx < labels.shape[1]
    }


def depths(labels: NDArray[np.int32]) -> NDArray[np.float64]:
    """Distance of each pixel of an object to the nearest pixel that is background or touches another object."""
    edge = [
        (y, x)
        for y, x in np.ndindex(*np.array(labels.shape) + 2)
        if not (inside := 0 < y <= labels.shape[0] and 0 < x <= labels.shape[1])
        or (inside and (labels[y - 1, x - 1] == 0 or neighbours(labels, y - 1, x - 1) - {0, labels[y - 1, x - 1]}))
    ]
    places = np.array(edge) - 1
    answer = np.zeros(labels.shape)
    for y, x in np.argwhere(labels > 0):
        answer[y, x] = np.sqrt(((places - (y, x)) ** 2).sum(axis=1).min())
    return answer


def test_the_distance_is_that_to_the_edge_over_its_maximum_in_the_object() -> None:
    labels = discs()
    depth = depths(labels)
    expected = np.zeros(labels.shape)
    for number in range(1, labels.max() + 1):
        own = labels == number
        expected[own] = depth[own] / depth[own].max()
    maps, known = map_targets(SETTINGS, labels, np.ones(labels.shape, bool))
    whole = labels != 4
    np.testing.assert_allclose(maps[0].numpy()[whole], expected[whole], atol=1e-6)
    assert maps[0].max() == 1
    np.testing.assert_array_equal(known[0].numpy(), whole)  # the last disc leaves the tile


def test_the_centre_is_a_gaussian_around_the_middle_of_each_whole_object() -> None:
    labels = discs()
    maps, known = map_targets(SETTINGS, labels, np.ones(labels.shape, bool))
    for number in (1, 2, 3):
        own = np.where(labels == number, maps[1].numpy(), 0)
        peak = np.unravel_index(own.argmax(), own.shape)
        middle = np.argwhere(labels == number).mean(axis=0)
        assert np.hypot(*(np.array(peak) - middle)) <= 1
        assert own.max() > 0.9
    y, x = np.argwhere(labels == 3).mean(axis=0)
    np.testing.assert_allclose(maps[1][round(y), round(x) + 3], np.exp(-9 / 8), atol=1e-3)  # sigma of 2 px
    np.testing.assert_array_equal(known[1].numpy(), labels != 4)


def test_the_boundary_is_where_an_object_meets_anything_else() -> None:
    labels = discs()
    boundary = map_targets(SETTINGS, labels, np.ones(labels.shape, bool))[0][2].numpy()
    for y, x in np.ndindex(*labels.shape):
        four = {
            int(labels[y + a, x + b]) for a, b in ((1, 0), (-1, 0), (0, 1), (0, -1)) if _inside(labels, y + a, x + b)
        }
        assert boundary[y, x] == (labels[y, x] > 0 and bool(four - {int(labels[y, x])}))


def _inside(labels: NDArray[np.int32], y: int, x: int) -> bool:
    return 0 <= y < labels.shape[0] and 0 <= x < labels.shape[1]


def test_an_object_and_its_mirror_image_have_a_centre_each() -> None:
    labels = np.zeros((40, 60), np.int32)
    labels[15:25, 10:20] = labels[15:25, 40:50] = 7
    centre = map_targets(SETTINGS, labels, np.ones(labels.shape, bool))[0][1].numpy()
    assert centre[19:21, 14:16].max() > 0.9
    assert centre[19:21, 44:46].max() > 0.9
    assert centre[20, 30] < 0.01  # the middle of both


def test_nothing_is_known_where_the_class_is_unknown() -> None:
    labels = discs()
    known = np.ones(labels.shape, bool)
    known[:, 40:] = False
    assert not map_targets(SETTINGS, labels, known)[1][:, :, 40:].any()


# ---- dots ------------------------------------------------------------------------------------------------------------


def test_an_object_that_an_unknown_area_may_cut_has_no_distance_and_centre() -> None:
    """The right half of the first disc is unknown; the disc that touches it and the others keep their targets."""
    labels = discs()
    known = np.ones(labels.shape, bool)
    known[:, 18:22] = False
    labels[~known] = 0
    maps, found = map_targets(SETTINGS, labels, known)
    untouched, without = map_targets(SETTINGS, labels, np.ones(labels.shape, bool))
    cut = labels == 1
    assert cut.any()
    for name in (0, 1):
        np.testing.assert_array_equal(found[name].numpy(), without[name].numpy() & known & ~cut)
    beside = np.zeros(labels.shape, bool)
    beside[:, 17:23] = True
    np.testing.assert_array_equal(found[2].numpy(), ~beside)
    np.testing.assert_array_equal(maps.numpy(), untouched.numpy())


def test_distances_to_dots_are_those_of_the_mirrored_image() -> None:
    points = np.array([[3, 4, 1], [10, 15, 2]], np.float32)
    shape, corner = (20, 18), (-6, -5)
    y, x = torch.meshgrid(torch.arange(30.0), torch.arange(28.0), indexing="ij")
    field = DotField.of(points, torch.stack((y, x)), corner, shape)
    for row, col in np.ndindex(30, 28):
        there = [abs(row + corner[0]), abs(col + corner[1])]
        there = [min(one, 2 * (length - 1) - one) for one, length in zip(there, shape, strict=True)]
        apart = np.hypot(points[:, 0] - there[0], points[:, 1] - there[1])
        assert field.distance_YX[row, col] == pytest.approx(apart.min())
        assert field.classes_YX[row, col] in points[apart == apart.min(), 2]


def test_distances_to_dots_are_in_pixels_of_the_tile() -> None:
    """In a tile at half the scale a dot is half as far."""
    y, x = torch.meshgrid(2 * torch.arange(10.0), 2 * torch.arange(10.0), indexing="ij")
    field = DotField.of(np.array([[0, 0, 1]], np.float32), torch.stack((y, x)), (0, 0), (40, 40))
    assert field.distance_YX[3, 4] == pytest.approx(5)


def dotted(
    labels: NDArray[np.int32] | None = None, points: tuple[tuple[float, float, int], ...] = ()
) -> AnnotatedImage:
    shape = (80, 80)
    image = np.full((3, *shape), 200, np.uint8)
    held = np.zeros(shape, np.int32) if labels is None else labels
    return AnnotatedImage("dots", image, held, None, np.array(points, np.float32).reshape(-1, 3))


@pytest.fixture(scope="module")
def middle_seed() -> int:
    """A seed whose tile is centred on the middle of an image of 80 px squared."""
    generator = torch.Generator()
    for seed in range(1_000_000):
        generator.manual_seed(seed)
        torch.rand((), generator=generator)
        drawn = [int(torch.randint(n, (), generator=generator)) for n in (1, 80, 80)]
        if drawn[1:] == [40, 40]:
            return seed
    raise AssertionError("no seed draws the middle")


def drawn(case: AnnotatedImage, maps: MapSettings, seed: int) -> tuple[torch.Tensor, ...]:
    """The tile around the middle of an image, without augmentation: its target is pixels 10 to 69."""
    sampler = Sampler([case], (80, 60), Sampling(batch=1, separation=0.0), Augmentation.off(), maps=maps)
    return sampler.tile(seed)


def test_a_dot_is_foreground_its_ring_unknown_and_the_rest_background(middle_seed: int) -> None:
    case = dotted(points=((40, 40, 1),))
    _, target, weight, maps, known = drawn(case, SETTINGS, middle_seed)
    y, x = np.indices((60, 60)) + 10
    apart = np.hypot(y - 40, x - 40)
    np.testing.assert_array_equal(target.numpy(), apart <= 3.5)
    np.testing.assert_array_equal(weight.numpy() > 0, (apart <= 3.5) | (apart >= 15))
    np.testing.assert_allclose(maps[1], np.exp(-(apart**2) / 8), atol=1e-5)
    assert known[1].all()  # the centre is known everywhere
    assert not known[0].any()  # the distance and the boundary nowhere
    assert not known[2].any()


def test_an_image_with_outlines_and_dots_teaches_both(middle_seed: int) -> None:
    labels = np.zeros((80, 80), np.int32)
    labels[50:60, 20:30] = 1
    _, target, weight, maps, known = drawn(dotted(labels, ((30, 40, 1),)), SETTINGS, middle_seed)
    inside = labels[10:70, 10:70] == 1
    assert (target.numpy()[inside] == 1).all()
    assert (weight.numpy()[inside] > 0).all()
    np.testing.assert_array_equal(known[0].numpy(), inside)
    assert maps[1][20, 30] == 1  # the dot
    assert maps[1].numpy()[inside].max() > 0.7  # the middle of the outline


def test_an_image_without_a_dot_is_background_throughout(middle_seed: int) -> None:
    _, target, weight, maps, known = drawn(dotted(), SETTINGS, middle_seed)
    assert not target.any()
    assert weight.all()
    assert not maps[1].any()
    assert known[1].all()


def test_touching_objects_stay_whole_where_maps_separate_them(middle_seed: int) -> None:
    labels = np.zeros((80, 80), np.int32)
    labels[30:50, 30:40], labels[30:50, 40:50] = 1, 2
    case = AnnotatedImage("touching", np.zeros((3, 80, 80), np.uint8), labels)
    parted = drawn(case, MapSettings(names=()), middle_seed)[1].numpy()
    whole = drawn(case, SETTINGS, middle_seed)[1].numpy()
    np.testing.assert_array_equal(whole, labels[10:70, 10:70] > 0)
    assert parted.sum() == whole.sum() - 2 * 20


def test_ignored_pixels_teach_no_map(middle_seed: int) -> None:
    labels = discs()
    classes = np.ones(labels.shape, np.uint8)
    classes[:30] = IGNORED
    case = AnnotatedImage("ignored", np.zeros((3, *labels.shape), np.uint8), labels, classes)
    sampler = Sampler([case], (60, 60), Sampling(batch=1), Augmentation.off(), maps=SETTINGS)
    _, _, weight, _, known = sampler.tile(middle_seed)
    assert not known[:, weight == 0].any()
    assert (weight == 0).any()


def test_images_are_drawn_as_often_as_their_weights_state() -> None:
    shape = (8, 8)
    cases = [
        AnnotatedImage(str(value), np.full((1, *shape), value, np.uint8), np.zeros(shape, np.int32), weight=weight)
        for value, weight in ((10, 1.0), (20, 3.0), (30, 0.5))
    ]
    sampler = Sampler(cases, (4, 4), Sampling(batch=4500), Augmentation.off())
    values = sampler.draw(torch.Generator().manual_seed(0)).image_NCHW[:, 0, 0, 0] * 255
    counts = [int((values.round() == value).sum()) for value in (10, 20, 30)]
    for count, expected in zip(counts, (1000, 3000, 500), strict=True):
        assert abs(count - expected) < 5 * np.sqrt(expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"names": ["distance", "distance"]}, "distinct"),
        ({"names": ["depth"]}, "distance"),
        ({"dot_px": 9.0, "far_px": 5.0}, "far_px: expected at least dot_px=9"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MapSettings.model_validate(settings)
