"""Objects of an image in memory equal those of their definition, flooded pixel by pixel."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import find_boundaries

from pipeline.config import ObjectsSection
from tests.unit.unet_core.training_runs import case
from unet_core.data.sampler import AnnotatedImage
from unet_core.object_labels import LARGEST_PX, LARGEST_UM, area_range_px, label_objects, split_by_map
from unet_core.spec import ObjectSettings, UNetSpec
from unet_core.training.model_selection import select_objects, unselected

Array = NDArray[np.integer]


def maxima_of(height: Array, inside: NDArray[np.bool_], depth: int) -> int:
    """Number of summits that are more than `depth` above the saddle to any higher one, by lowering a water level.

    The highest summit counts always; of two that join, the lower one counts if it rises more than `depth` above.
    """
    eight = np.ones((3, 3))
    summits: list[int] = []
    components: dict[int, int] = {}
    previous = np.zeros(height.shape, int)
    for level in sorted({int(v) for v in height[inside]}, reverse=True):
        labels, count = ndimage.label(inside & (height >= level), eight)
        peaks: dict[int, int] = {}
        for number in range(1, count + 1):
            before = {int(one) for one in previous[labels == number]} - {0}
            heights = sorted((components[one] for one in before), reverse=True)
            peaks[number] = heights[0] if heights else level
            summits += [peak for peak in heights[1:] if peak - level > depth]
        previous, components = labels, peaks
    return len(summits) + len(components)


def test_objects_have_as_many_parts_as_summits() -> None:
    generator = np.random.default_rng(0)
    split = 0
    for trial, depth in itertools.product(range(12), (1, 20, 60)):
        size = 12 + trial
        smooth = ndimage.gaussian_filter(generator.normal(size=(size, size)), 1.5)
        height = np.clip(128 + 900 * smooth, 0, 255).astype(np.uint8)
        mask = ndimage.gaussian_filter(generator.normal(size=(size, size)), 2) > -0.02
        labels = ndimage.label(mask, np.ones((3, 3)))[0]
        parts = split_by_map(labels, height, depth)
        np.testing.assert_array_equal(parts > 0, labels > 0)
        for number in range(1, labels.max() + 1):
            own = labels == number
            found = np.unique(parts[own])
            assert len(found) == maxima_of(height.astype(int), own, depth)
            for part in found:
                assert ndimage.label(parts == part, np.ones((3, 3)))[1] == 1
            split += len(found) > 1
    assert split > 20


def test_the_parts_of_an_object_do_not_depend_on_its_surroundings() -> None:
    generator = np.random.default_rng(1)
    height = np.clip(128 + 60 * ndimage.gaussian_filter(generator.normal(size=(60, 60)), 2) * 8, 0, 255).astype(
        np.uint8
    )
    labels = ndimage.label(ndimage.gaussian_filter(generator.normal(size=(60, 60)), 3) > 0, np.ones((3, 3)))[0]
    whole = split_by_map(labels, height, 10)
    for number in range(1, labels.max() + 1):
        alone = split_by_map(np.where(labels == number, 1, 0), np.where(labels == number, height, 255 - height), 10)
        own = labels == number
        pairs = set(zip(whole[own].tolist(), alone[own].tolist(), strict=True))
        assert len(pairs) == len({one for one, _ in pairs}) == len({other for _, other in pairs})


def test_an_object_beyond_the_limit_stays_whole() -> None:
    labels = np.ones((3, LARGEST_PX + 1), np.int32)
    height = np.full(labels.shape, 10, np.uint8)
    height[:, 100] = height[:, 900] = 200
    assert split_by_map(labels, height, 20).max() == 1
    assert split_by_map(labels[:, :LARGEST_PX], height[:, :LARGEST_PX], 20).max() == 2


def test_objects_of_another_class_do_not_split_or_join_parts() -> None:
    """Two summits of one object, of which one meets a higher object of another class."""
    planes = np.zeros((3, 12, 40), np.uint8)
    planes[0, 2:10, 2:22], planes[1, 2:10, 22:38] = 200, 200
    planes[2, :, 2:12], planes[2, :, 12:14], planes[2, :, 14:22], planes[2, :, 22:38] = 150, 60, 180, 250
    spec = UNetSpec(
        classes=3, class_names=("a", "b"), maps=("distance",), objects=ObjectSettings(method="seeds", depth=0.2)
    )
    labels, classes = label_objects(planes, spec)
    assert [len(np.unique(labels[classes == number])) for number in (1, 2)] == [2, 1]
    alone = planes.copy()
    alone[1] = 0
    np.testing.assert_array_equal(label_objects(alone, spec)[0] > 0, classes == 1)
    assert label_objects(alone, spec)[0].max() == 2


@pytest.mark.parametrize(("mpp", "length", "parts"), [(0.5, 400, 2), (0.5, 401, 1), (None, 201, 1), (0.1, 1024, 2)])
def test_long_objects_stay_whole_as_segment_keeps_them(mpp: float | None, length: int, parts: int) -> None:
    planes = np.zeros((2, 3, length), np.uint8)
    planes[0] = 255
    planes[1, :, 50], planes[1, :, 150] = 200, 200
    spec = UNetSpec(maps=("distance",), mpp=mpp, objects=ObjectSettings(method="seeds", depth=0.2))
    assert label_objects(planes, spec)[0].max() == parts
    assert ObjectsSection().split_max_um == LARGEST_UM


def test_limits_of_areas_are_inclusive_whatever_the_rounding() -> None:
    limits = ObjectSettings(method="seeds", max_area_um2=1.0)
    spec = UNetSpec(maps=("distance",), mpp=0.3, min_area_um2=0.27, objects=limits)
    assert area_range_px(spec)[0] == 3
    assert area_range_px(spec.model_copy(update={"mpp": 0.2}))[1] >= 25


def outputs(labels: Array) -> tuple[NDArray[np.uint8], UNetSpec]:
    """The outputs of a perfect network with a distance map, and its spec."""
    depth = np.zeros(labels.shape)
    for number in range(1, labels.max() + 1):
        own = ndimage.distance_transform_edt(labels == number)
        depth += own / max(own.max(), 1)
    planes = np.stack([np.where(labels > 0, 255, 0), 255 * depth]).round().astype(np.uint8)
    return planes, UNetSpec(maps=("distance",), objects=ObjectSettings(method="seeds", depth=0.2))


def test_touching_objects_come_apart_by_seeds_only() -> None:
    true = case(1).labels_YX[:, :]
    planes, spec = outputs(true)
    found, classes = label_objects(planes, spec)
    assert found.max() == len(np.unique(true)) - 1
    np.testing.assert_array_equal(classes, true > 0)
    assert label_objects(planes, spec.model_copy(update={"objects": None}))[0].max() < found.max()


def test_objects_outside_the_range_of_areas_are_dropped() -> None:
    planes, spec = outputs(case(1).labels_YX[:, :])
    every = label_objects(planes, spec)[0]
    areas = np.bincount(every.ravel())[1:]
    low, high = np.quantile(areas, (0.3, 0.7))
    settings = ObjectSettings(method="seeds", depth=0.2, max_area_um2=float(high) * 0.25)
    limited = spec.model_copy(update={"mpp": 0.5, "min_area_um2": float(low) * 0.25, "objects": settings})
    kept = np.unique(label_objects(planes, limited)[0])[1:]
    np.testing.assert_array_equal(kept, np.flatnonzero((areas >= low) & (areas <= high)) + 1)


def test_seeds_are_chosen_where_they_separate_what_is_annotated() -> None:
    one = case(1)
    planes, spec = outputs(one.labels_YX[:, :])
    chosen = select_objects([planes], [one], spec)
    assert chosen.objects is not None
    assert chosen.objects.method == "seeds"
    assert chosen.objects.max_area_um2 is not None
    assert unselected(spec.model_copy(update={"objects": None})).objects == ObjectSettings(method="seeds")


def test_a_threshold_is_chosen_with_seeds_that_fit() -> None:
    """Shallow dents within objects split them at low thresholds only; deeper seeds make the lower one the better."""
    true = np.zeros((60, 60), np.int32)
    planes = np.zeros((2, 60, 60), np.uint8)
    for number, (y, x) in enumerate(itertools.product((2, 22, 42), repeat=2), start=1):
        true[y : y + 14, x : x + 14] = number
        planes[0, y : y + 14, x : x + 14] = 140
        planes[0, y + 1 : y + 13, x + 1 : x + 11] = (
            250  # above 0.55 three fifths of the object are left, without a dent
        )
        planes[1, y : y + 14, x : x + 14] = 200
        planes[1, y : y + 14, x + 11] = 160
    case_ = AnnotatedImage("a", np.zeros((1, 60, 60), np.uint8), true)
    chosen = select_objects([planes], [case_], UNetSpec(maps=("distance",)))
    assert chosen.threshold is not None
    assert chosen.threshold < 0.56
    np.testing.assert_array_equal(label_objects(planes, chosen)[0] > 0, true > 0)
    assert label_objects(planes, chosen)[0].max() == 9


def test_components_are_chosen_where_seeds_only_break_objects() -> None:
    one = case(1)
    planes, spec = outputs(one.labels_YX[:, :])
    joined = ndimage.label(one.labels_YX[:, :] > 0, np.ones((3, 3)))[0].astype(np.int32)
    generator = np.random.default_rng(0)
    planes[1] = np.where(planes[0] > 0, generator.integers(0, 256, planes[1].shape), 0)
    chosen = select_objects([planes], [type(one)(one.name, one.image_CYX, joined)], spec)
    assert chosen.objects is not None
    assert chosen.objects.method == "components"


def test_outlines_separate_what_is_annotated() -> None:
    true = case(1).labels_YX[:, :]
    edge = find_boundaries(true, mode="inner") & (true > 0)
    planes = np.stack([np.where(true > 0, 255, 0), np.where(edge, 255, 0)]).astype(np.uint8)
    spec = UNetSpec(maps=("boundary",))
    assert unselected(spec).objects == ObjectSettings(method="boundary")
    chosen = select_objects([planes], [case(1)], spec)
    assert chosen.objects is not None
    assert chosen.objects.method == "boundary"
    inside = [np.unique(label_objects(planes, chosen)[0][(true == number) & ~edge]) for number in np.unique(true)[1:]]
    whole = [one for one in inside if len(one)]  # a thin object is outline alone
    assert len(whole) > 8
    assert all(len(one) == 1 for one in whole)
    assert len({int(one[0]) for one in whole}) == len(whole)


def test_an_empty_image_beside_dots_does_not_decide_the_threshold() -> None:
    """A false object of two pixels in an image without objects costs as much as if that image had a table of dots."""
    true = case(1).labels_YX[:, :]
    planes = np.where(true > 0, 120, 0).astype(np.uint8)[None]
    centres = ndimage.center_of_mass(true > 0, true, np.unique(true)[1:])
    dots = np.column_stack((np.array(centres), np.ones(len(centres)))).astype(np.float32)
    nothing = np.zeros_like(true)
    false = np.zeros_like(planes)
    false[0, 5, 5:7] = 190
    dotted = AnnotatedImage("dots", planes, nothing, points_N3=dots)
    chosen = [
        select_objects(
            [planes, false], [dotted, AnnotatedImage("empty", planes, nothing, points_N3=points)], UNetSpec()
        )
        for points in (None, dots[:0])
    ]
    assert chosen[0] == chosen[1]
    assert chosen[0].threshold is not None
    assert chosen[0].threshold < 0.48


@pytest.mark.parametrize("maps", [(), ("centre",)])
def test_a_method_needs_its_map(maps: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected the map 'distance' among maps"):
        UNetSpec.model_validate({"maps": maps, "objects": {"method": "seeds"}})
