"""Positions of tiles, one transform for image, mask and weights, and bounded reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.unit.unet_core.watched import Watched
from unet_core.class_map import IGNORED
from unet_core.data import dataset_statistics
from unet_core.data.augmentation import Augmentation
from unet_core.data.dataset_statistics import WINDOW_PX, ClassMap, ImageStatistics
from unet_core.data.map_targets import MapSettings
from unet_core.data.sampler import AnnotatedImage, Sampler, Sampling, class_frequencies, draw_place, stain_shown
from unet_core.data.weight_map import separation_weights

pytestmark = pytest.mark.usefixtures("one_thread")

OFF = Augmentation.off()
DEFORMED = Augmentation.off().model_copy(
    update={"rotation_degrees": 180.0, "flip": 0.5, "scale": (0.8, 2.0), "elastic_px": 6.0}
)
SIZES = (92, 60)
HEIGHT, WIDTH = 150, 190
STEP = 100


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blocks() -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Squares of 14 px, 8 px apart so that none touch, alternately of two classes."""
    y, x = np.indices((HEIGHT, WIDTH))
    row, column = y // 22, x // 22
    inside = (y % 22 < 14) & (x % 22 < 14)
    labels = np.where(inside, 1 + row * 10 + column, 0).astype(np.int32)
    return labels, np.where(inside, 1 + (row + column) % 2, 0).astype(np.uint8)


def coordinates() -> NDArray[np.uint16]:
    """An image whose two channels are the pixel's coordinates, also after mirroring and interpolation."""
    return (STEP * np.indices((HEIGHT, WIDTH))).astype(np.uint16)


def bilinear(values: NDArray[Any], y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bilinear interpolation of four neighbours, written out."""
    y0, x0 = np.floor(y).astype(int), np.floor(x).astype(int)
    y1, x1 = np.minimum(y0 + 1, values.shape[0] - 1), np.minimum(x0 + 1, values.shape[1] - 1)
    v, h = y - y0, x - x0
    upper = values[y0, x0] * (1 - h) + values[y0, x1] * h
    lower = values[y1, x0] * (1 - h) + values[y1, x1] * h
    return np.asarray(upper * (1 - v) + lower * v)


@pytest.mark.parametrize("with_classes", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_image_mask_and_weights_go_through_one_transform(seed: int, with_classes: bool) -> None:
    """Tile pixels of the coordinate image are source positions; mask and weights must match them."""
    labels, classes = blocks()
    case = AnnotatedImage("blocks", coordinates(), labels, classes if with_classes else None)
    image, target, weight = Sampler([case], SIZES, Sampling(), DEFORMED).tile(seed)
    assert (image.shape, target.shape, weight.shape) == ((2, 92, 92), (60, 60), (60, 60))
    y, x = (image[:, 16:76, 16:76].double().numpy() * 65535 / STEP).clip(0, [[[HEIGHT - 1]], [[WIDTH - 1]]])
    sure = (abs(y % 1 - 0.5) > 0.02) & (abs(x % 1 - 0.5) > 0.02)
    nearest = y.round().astype(int), x.round().astype(int)
    expected = classes[nearest] if with_classes else labels[nearest] > 0
    assert sure.mean() > 0.8
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(target.numpy()[sure], expected[sure])
    np.testing.assert_allclose(weight.numpy(), bilinear(separation_weights(labels), y, x), atol=0.02)
    assert float(weight.max()) > 2.5


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tile_without_augmentation_equals_the_mirrored_image_to_the_bit(dtype: type) -> None:
    pixels = np.random.default_rng(1).integers(0, np.iinfo(dtype).max, (3, 70, 80), dtype, endpoint=True)
    labels = np.zeros((70, 80), np.int32)
    labels[10:30, 10:30], labels[34:60, 20:70] = 1, 2
    far = 60
    image_padded = np.pad(pixels, [(0, 0), (far, far), (far, far)], mode="reflect")
    labels_padded, weights_padded = (np.pad(part, far, mode="reflect") for part in (labels, separation_weights(labels)))
    sampler = Sampler([AnnotatedImage("a", pixels, labels)], SIZES, Sampling(), OFF)
    places = set()
    for seed in range(20):
        image, target, weight = sampler.tile(seed)
        _, (y, x) = draw_place(sampler.cases, 0.0, seeded(seed))
        places.add((y, x))
        whole = np.s_[far + y - 46 : far + y + 46, far + x - 46 : far + x + 46]
        middle = np.s_[far + y - 30 : far + y + 30, far + x - 30 : far + x + 30]
        np.testing.assert_array_equal(
            image.numpy(), image_padded[(slice(None), *whole)].astype(np.float32) / np.float32(np.iinfo(dtype).max)
        )
        np.testing.assert_array_equal(target.numpy(), labels_padded[middle] > 0)
        np.testing.assert_array_equal(weight.numpy(), weights_padded[middle])
    assert len(places) == 20


def test_ignored_pixels_have_weight_0_and_no_class() -> None:
    """Ignored pixels on and beside an object change nothing elsewhere."""
    labels, classes = blocks()
    ignored = np.zeros(labels.shape, bool)
    ignored[::7, :], ignored[:, 20:31] = True, True
    known = AnnotatedImage("known", coordinates(), labels, classes)
    partly = AnnotatedImage("partly", coordinates(), np.where(ignored, 0, labels), np.where(ignored, IGNORED, classes))
    unweighted = Sampling(separation=0.0)
    compared = 0
    for seed in range(5):
        (image, target, weight), (same, expected, _) = (
            Sampler([case], SIZES, unweighted, OFF).tile(seed) for case in (partly, known)
        )
        _, (y, x) = draw_place([partly], 0.0, seeded(seed))
        cut = np.pad(ignored, 60, mode="reflect")[60 + y - 30 : 60 + y + 30, 60 + x - 30 : 60 + x + 30]
        np.testing.assert_array_equal(image, same)
        np.testing.assert_array_equal(weight.numpy(), np.where(cut, 0, 1))
        np.testing.assert_array_equal(target.numpy(), np.where(cut, 0, expected))
        compared += int((cut & (expected.numpy() > 0)).sum())
    assert compared > 100
    counted = partly.census()
    assert counted.ignored == ignored.sum()
    expected_px = [((classes == index) & ~ignored).sum() for index in range(3)]
    assert class_frequencies([partly], 3) == pytest.approx(np.array(expected_px) / (~ignored).sum())
    for seed in range(50):
        _, (y, x) = draw_place([partly], 1.0, seeded(seed))
        assert not ignored[y, x]


def test_touching_objects_are_separated_after_the_deformation() -> None:
    """Two objects that share an edge are two pixels apart after a 4-fold enlargement, not eight."""
    labels = np.repeat(np.array([[1] * 30 + [2] * 30], np.int32), 60, axis=0)
    enlarged = OFF.model_copy(update={"scale": (4.0, 4.0)})
    case = AnnotatedImage("touching", np.zeros((1, 60, 60), np.uint8), labels)
    gaps = set()
    for seed in range(30):
        row = Sampler([case], (60, 60), Sampling(), enlarged).tile(seed)[1][30]
        gaps.add(int((row == 0).sum()))
    assert gaps == {0, 2}, "away from the edge nothing is parted"


# ---- where they lie --------------------------------------------------------------------------------------------------


def two_kinds() -> AnnotatedImage:
    """One class covers a quarter of the image, the other 7 pixels in three cells."""
    labels = np.zeros((600, 700), np.int32)
    classes = np.zeros((600, 700), np.uint8)
    labels[:300, :350], classes[:300, :350] = 1, 1
    labels[511:513, 400:403], classes[511:513, 400:403] = 2, 2
    labels[599, 699], classes[599, 699] = 3, 2
    return AnnotatedImage("two kinds", np.zeros((1, 600, 700), np.uint8), labels, classes)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_share_of_tiles_centred_on_objects_is_the_configured_probability(share: float) -> None:
    case, empty = two_kinds(), AnnotatedImage("empty", np.zeros((1, 40, 50), np.uint8), np.zeros((40, 50), np.int32))
    asked = {1: 0, 2: 0}
    for seed in range(400):
        found, (y, x) = draw_place([case, empty], share, seeded(seed))
        if float(torch.rand((), generator=seeded(seed))) < share:
            assert found is case
            assert case.classes_YX is not None
            asked[int(case.classes_YX[y : y + 1, x : x + 1][0, 0])] += 1
    expected = sum(float(torch.rand((), generator=seeded(seed))) < share for seed in range(400))
    assert sum(asked.values()) == expected
    if share:
        assert 0.4 < asked[2] / expected < 0.6, "seven pixels are drawn as often as a hundred thousand"
    else:
        assert expected == 0


def test_dots_are_targets_and_images_are_drawn_by_weight() -> None:
    """Outlines of weight 1 and 3 and dots of weight 4 and of a class of their own."""
    image, nothing = np.zeros((1, 40, 50), np.uint8), np.zeros((40, 50), np.int32)
    outlined = np.pad(np.ones((5, 5), np.int32), ((10, 25), (10, 35)))
    dots = np.array([(3.4, 7.6, 1), (39, 49, 1), (20, 20, 2)], np.float32)
    cases = [
        AnnotatedImage("light", image, outlined),
        AnnotatedImage("heavy", image, outlined, weight=3.0),
        AnnotatedImage("dots", image, nothing, points_N3=dots, weight=4.0),
    ]
    drawn = [draw_place(cases, 1.0, seeded(seed)) for seed in range(2000)]
    names = [case.name for case, _ in drawn]
    assert {at for case, at in drawn if case.name == "dots"} == {(3, 8), (39, 49), (20, 20)}
    assert 0.45 < sum(at == (20, 20) for _, at in drawn) / 2000 < 0.55, "both classes equally often"
    assert 2.5 < names.count("heavy") / names.count("light") < 3.6
    dotted = AnnotatedImage("both", image, outlined, points_N3=dots[:2])
    places = [draw_place([dotted], 1.0, seeded(seed))[1] for seed in range(400)]
    assert 0.4 < sum(outlined[at] > 0 for at in places) / 400 < 0.6


def test_pixels_of_a_class_are_drawn_uniformly(monkeypatch: pytest.MonkeyPatch) -> None:
    case = two_kinds()
    assert case.classes_YX is not None
    found = []
    for number in range(7):
        monkeypatch.setattr(
            dataset_statistics, "below", lambda count, _, number=number: number if count == 7 else count * 0
        )
        found.append(case.census().draw(2, seeded()))
    assert sorted(found) == sorted(map(tuple, np.argwhere(np.asarray(case.classes_YX[:, :]) == 2).tolist()))


def test_tiles_of_images_without_objects_are_anywhere() -> None:
    empty = AnnotatedImage("empty", np.zeros((1, 40, 50), np.uint8), np.zeros((40, 50), np.int32))
    full = AnnotatedImage("full", np.zeros((1, 40, 50), np.uint8), np.ones((40, 50), np.int32))
    for case, expected in ((empty, 0), (full, 1)):
        _, target, weight = Sampler([case], SIZES, Sampling(foreground=1.0), DEFORMED).tile(3)
        assert (target == expected).all()
        assert torch.allclose(weight, torch.ones(()))


def test_frequencies_are_the_shares_of_the_pixels() -> None:
    case = two_kinds()
    pixels = 600 * 700
    assert class_frequencies([case, case], 3) == pytest.approx([1 - 105_007 / pixels, 105_000 / pixels, 7 / pixels])
    assert class_frequencies([case], 4)[3] == 0
    with pytest.raises(ValueError, match="two kinds: expected classes 0 to 1, as many as the network has, found 2"):
        class_frequencies([case], 2)


def test_counting_reads_every_pixel_once_in_bounded_windows() -> None:
    labels, image = Watched(np.eye(1100, 700, dtype=np.int32)), Watched(np.full((2, 1100, 700), 65535, np.uint16))
    found = ImageStatistics.of(image, ClassMap(labels, None))
    assert found.total(1) == 700
    assert found.total(5) == 0
    assert found.counts.shape == (2, 3, 2)
    assert (found.objects, found.dtype, found.pixels) == (1, np.uint16, 770_000)
    assert found.sums == (65535 * 770_000,) * 2
    assert found.squares == (65535**2 * 770_000,) * 2
    for watched, bytes_px in ((labels, 1), (image, 2)):
        assert sum(int(np.prod(shape)) for shape in watched.read) == bytes_px * 1100 * 700
        assert max(max(shape) for shape in watched.read) == WINDOW_PX
    for y, x in ((0, 0), (512, 512), (1024, 0), (0, 512)):
        assert found.holds_object(y, x, 512) == bool((np.eye(1100, 700)[y : y + 512, x : x + 512]).any())


# ---- larger than memory ----------------------------------------------------------------------------------------------


class Endless:
    """A slide that is never in memory: discs of 16 px radius every 40 px; reads are recorded."""

    def __init__(self, shape: tuple[int, ...], values: int) -> None:
        self.shape, self.values = shape, values
        self.read: list[tuple[int, ...]] = []

    def __getitem__(self, key: tuple[slice, ...]) -> NDArray[Any]:
        y, x = np.ogrid[key[-2], key[-1]]
        disc = (y % 40 - 20) ** 2 + (x % 40 - 20) ** 2 < 256
        if self.values == 255:
            pixels: NDArray[Any] = np.stack([np.where(disc, shade, 230).astype(np.uint8) for shade in (90, 60, 140)])
        else:
            pixels = np.where(disc, 1 + (y // 40) * 30_000 + x // 40, 0).astype(np.int32)
        self.read.append(pixels.shape)
        return pixels


def test_only_the_window_of_a_tile_is_read() -> None:
    image, labels = Endless((3, 10**6, 10**6), 255), Endless((10**6, 10**6), 2**31)
    _, target, weight = Sampler([AnnotatedImage("slide", image, labels)], SIZES, Sampling(), OFF).tile(1)
    assert image.read == [(3, 92, 92)]
    assert sorted(labels.read) == [(60, 60), (60 + 2 * 30, 60 + 2 * 30)]
    assert 0.35 < float(target.float().mean()) < 0.65
    assert float(weight.max()) > 2
    for seed in range(5):
        Sampler([AnnotatedImage("slide", image, labels)], SIZES, Sampling(), DEFORMED).tile(seed)
    assert max(max(shape[-2:]) for shape in image.read) < 92 / 0.8 * 2**0.5 + 60
    stain_shown([AnnotatedImage("slide", image, labels)], 0.5, OFF, seeded(), draws=4)
    assert image.read[-1] == (3, 1024, 1024)


def test_windows_and_whole_maps_give_the_same_tiles(tmp_path: Any) -> None:
    labels, classes = blocks()
    mapped = np.memmap(tmp_path / "labels", np.int32, "w+", shape=labels.shape)
    mapped[:] = labels
    kinds = [labels, Watched(labels), mapped]
    cases = [AnnotatedImage("blocks", coordinates(), kind, classes) for kind in kinds]
    for seed in range(4):
        tiles = [Sampler([case], SIZES, Sampling(foreground=0.5), DEFORMED).tile(seed) for case in cases]
        for tile in tiles[1:]:
            assert all(torch.equal(one, other) for one, other in zip(tile, tiles[0], strict=True))
    assert cases[0].weights(10.0, 5.0) is cases[0].weights(10.0, 5.0), "computed once"
    assert not isinstance(cases[2].weights(10.0, 5.0), np.ndarray)


# ---- batches ---------------------------------------------------------------------------------------------------------


def test_batches_are_repeatable_and_have_the_expected_shapes() -> None:
    labels, classes = blocks()
    cases = [AnnotatedImage(name, coordinates(), labels, classes) for name in "ab"]
    first, second, other = (
        Sampler(cases, SIZES, Sampling(batch=3), Augmentation()).draw(seeded(seed)) for seed in (4, 4, 5)
    )
    assert first.image_NCHW.shape == (3, 2, 92, 92)
    assert first.target_NHW.shape == first.weight_NHW.shape == (3, 60, 60)
    assert first.target_NHW.dtype == torch.int64
    assert torch.equal(first.image_NCHW, second.image_NCHW)
    assert torch.equal(first.target_NHW, second.target_NHW)
    assert torch.equal(first.weight_NHW, second.weight_NHW)
    assert not torch.equal(first.image_NCHW, other.image_NCHW)


def test_annotations_of_another_size_are_refused() -> None:
    image = np.zeros((3, 5, 6), np.uint8)
    with pytest.raises(ValueError, match=r"a: expected image, labels and classes of one size .* found .*\(6, 5\)"):
        AnnotatedImage("a", image, np.zeros((6, 5), np.int32))
    with pytest.raises(ValueError, match="of one size"):
        AnnotatedImage("a", image, np.zeros((5, 6), np.int32), np.zeros((5, 7), np.uint8))


def test_shares_of_dots_are_those_of_the_pixels_that_are_trained_on() -> None:
    """Across windows of 1,024 px: discs of their class, background far from every dot, outlines as they are."""
    generator = np.random.default_rng(0)
    labels = np.zeros((1100, 90), np.int32)
    labels[1000:1030, 40:60] = 1
    points = np.column_stack([generator.uniform(0, 1100, 30), generator.uniform(0, 90, 30), np.tile([1, 2], 15)])
    points = points.astype(np.float32).astype(np.float64)
    case = AnnotatedImage("dots", np.zeros((3, 1100, 90), np.uint8), labels, None, points.astype(np.float32))
    squared = ((np.indices(labels.shape)[..., None] - points[:, :2].T[:, None, None]) ** 2).sum(axis=0)
    near, outlined = squared.min(axis=-1) <= 4**2, labels > 0
    class_of = points[squared.argmin(axis=-1), 2]
    first = int((outlined | (near & (class_of == 1))).sum())
    second = int((near & ~outlined & (class_of == 2)).sum())
    background = int(((squared.min(axis=-1) >= 9**2) & ~outlined).sum())
    expected = np.array([background, first, second])
    maps = MapSettings(dot_px=4.0, far_px=9.0)
    assert class_frequencies([case], 3, maps) == pytest.approx(expected / expected.sum())
    assert class_frequencies([case], 3) == pytest.approx([1 - 600 / labels.size, 600 / labels.size, 0])
