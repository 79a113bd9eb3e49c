"""Block-wise components and holes equal those of the whole image, with blocks of a few pixels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label

from pipeline.errors import SlideError
from pipeline.geometry import Box
from pipeline.objects import relabel
from pipeline.objects.components import BlockGraph, BlockPart, find_runs, join, label_pieces, object_part, rasterize
from pipeline.objects.holes import background_connectivity, fill_classes, fill_holes, hole_part
from pipeline.objects.relabel import Limits, MergedObjects, NumberedObjects, count_seam_objects, number_objects

SEED = 20261
HOPS = {4: 1, 8: 2}
Block = tuple[int, int]
Classes = NDArray[np.uint8]


def cores(shape: tuple[int, ...], block: Block) -> Iterator[list[Box]]:
    """Rows of blocks of any height and width."""
    for y in range(0, shape[0], block[0]):
        yield [
            Box(y, x, min(y + block[0], shape[0]), min(x + block[1], shape[1])) for x in range(0, shape[1], block[1])
        ]


def join_objects(classes: Classes, block: Block, connectivity: int) -> BlockGraph:
    """The pieces of all blocks, joined."""

    def part(core: Box) -> BlockPart:
        inside = classes[core.slices]
        kept = object_part(label_pieces(inside, connectivity), inside, core, classes.shape[1])
        return BlockPart.of_arrays(kept.arrays())

    return join(([part(core) for core in row] for row in cores(classes.shape, block)), connectivity)


def label_blocks(
    classes: Classes,
    block: Block,
    connectivity: int,
    limits: Limits = Limits(),  # noqa: B008  frozen
) -> tuple[NDArray[np.uint32], NumberedObjects]:
    """The label stage without files: pieces, join, numbering, labels."""
    joined = join_objects(classes, block, connectivity)
    whole = MergedObjects.of(joined)
    numbered = number_objects(whole, limits.hold(whole.columns["area"]))
    labels = np.zeros(classes.shape, np.uint32)
    for number, core in enumerate(itertools.chain.from_iterable(cores(classes.shape, block))):
        ids = numbered.ids[joined.starts[number] : joined.starts[number + 1]]
        pieces = label_pieces(classes[core.slices], connectivity)
        labels[core.slices] = rasterize(pieces, ids[pieces.label - 1], core.shape)
    return labels, numbered


def removed(classes: Classes, block: Block, connectivity: int, limits: Limits) -> int:
    """Number of merged objects outside the limits."""
    whole = MergedObjects.of(join_objects(classes, block, connectivity))
    return int((whole.stands & ~limits.hold(whole.columns["area"])).sum())


def fill_blocks(classes: Classes, block: Block, connectivity: int, max_px: int) -> Classes:
    """The hole stage without files."""
    rows = (
        [
            BlockPart.of_arrays(hole_part(classes[core.slices], core, classes.shape, connectivity).arrays())
            for core in row
        ]
        for row in cores(classes.shape, block)
    )
    joined = join(rows, background_connectivity(connectivity))
    fill = fill_classes(joined, max_px)
    filled = classes.copy()
    for number, core in enumerate(itertools.chain.from_iterable(cores(classes.shape, block))):
        mine = fill[joined.starts[number] : joined.starts[number + 1]]
        filled[core.slices] = fill_holes(classes[core.slices], mine, connectivity)
    return filled


def reference_limits(classes: Classes, connectivity: int, limits: Limits) -> NDArray[np.uint32]:
    """Labels of the whole image by skimage, filtered by area and numbered consecutively in the same order."""
    labels = label(classes, connectivity=HOPS[connectivity])
    area = np.bincount(labels.ravel())
    kept = (area >= limits.min_px) & (area <= (limits.max_px or area.max()))
    kept[0] = False
    return (np.cumsum(kept) * kept)[labels].astype(np.uint32)


def reference_fill(classes: Classes, connectivity: int, max_px: int) -> Classes:
    """Every background component of the whole image, dilated by one pixel to find its neighbours."""
    hops = HOPS[background_connectivity(connectivity)]
    pieces = label(classes == 0, connectivity=hops)
    filled = classes.copy()
    for number in range(1, pieces.max() + 1):
        mine = np.pad(pieces == number, 1)
        ring = ndimage.binary_dilation(mine, ndimage.generate_binary_structure(2, hops)) & ~mine
        if ring[0].any() or ring[-1].any() or ring[:, 0].any() or ring[:, -1].any():
            continue  # a component that reaches into the padding touches the border
        around = np.unique(np.pad(classes, 1)[ring])
        if mine.sum() <= max_px and len(around) == 1:
            filled[mine[1:-1, 1:-1]] = around[0]
    return filled


def reference_across(labels: NDArray[np.uint32], block: Block, connectivity: int) -> dict[str, int]:
    """Number of objects that cross seams, from every pair of neighbouring pixels."""
    found: dict[str, set[int]] = {"vertical": set(), "horizontal": set(), "corner": set()}
    height, width = labels.shape
    for y, x in np.ndindex(height, width):
        for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
            v, u = y + dy, x + dx
            if not (v < height and 0 <= u < width) or labels[y, x] == 0 or labels[y, x] != labels[v, u]:
                continue
            rows, cols = v // block[0] - y // block[0], u // block[1] - x // block[1]
            if rows and cols:
                found["corner"].add(labels[y, x])
            if connectivity == 4 and dy and dx:
                continue
            if rows:
                found["horizontal"].add(labels[y, x])
            elif cols:
                found["vertical"].add(labels[y, x])
    return {name: len(ids) for name, ids in found.items()}


small_classes = hnp.arrays(
    np.uint8,
    st.tuples(st.integers(1, 14), st.integers(1, 17)),
    elements=st.sampled_from([0, 0, 1, 1, 1, 2, 3]),
)
blocks = st.tuples(st.integers(1, 6), st.integers(1, 6))
connectivities = st.sampled_from([4, 8])


@given(small_classes, blocks, connectivities, st.integers(0, 6), st.none() | st.integers(6, 30))
@settings(max_examples=200, deadline=None)
def test_blocks_give_the_labels_of_the_whole_class_map(
    classes: Classes, block: Block, connectivity: int, low: int, high: int | None
) -> None:
    labels, numbered = label_blocks(classes, block, connectivity, Limits(low, high))
    expected = reference_limits(classes, connectivity, Limits(low, high))
    np.testing.assert_array_equal(labels, expected)
    everything = label(classes, connectivity=HOPS[connectivity])
    assert numbered.objects.sum() == expected.max()
    assert numbered.objects.sum() + removed(classes, block, connectivity, Limits(low, high)) == everything.max()
    np.testing.assert_array_equal(numbered.area_px, np.bincount(classes[expected > 0], minlength=len(numbered.area_px)))


@given(small_classes, blocks, connectivities)
@settings(max_examples=100, deadline=None)
def test_seam_crossings_equal_brute_force(classes: Classes, block: Block, connectivity: int) -> None:
    labels, numbered = label_blocks(classes, block, connectivity)
    assert count_seam_objects(join_objects(classes, block, connectivity), numbered.ids) == reference_across(
        labels, block, connectivity
    )


@given(small_classes, blocks, connectivities, st.integers(1, 30))
@settings(max_examples=200, deadline=None)
def test_holes_are_those_of_the_whole_class_map(classes: Classes, block: Block, connectivity: int, max_px: int) -> None:
    filled = fill_blocks(classes, block, connectivity, max_px)
    np.testing.assert_array_equal(filled, reference_fill(classes, connectivity, max_px))


@pytest.mark.parametrize("connectivity", [4, 8])
def test_random_masks_around_the_percolation_threshold_equal_skimage(connectivity: int) -> None:
    rng = np.random.default_rng(SEED)
    density = {4: 0.593, 8: 0.407}[connectivity]
    for case in range(600):
        height, width, rows, cols = rng.integers((4, 4, 3, 3), (16, 16, 8, 8))
        mask = (rng.random((height, width)) < density + rng.uniform(-0.1, 0.1)).astype(np.uint8)
        labels, _ = label_blocks(mask, (int(rows), int(cols)), connectivity)
        expected = label(mask, connectivity=HOPS[connectivity])
        assert np.array_equal(labels, expected), f"seed {SEED}, case {case}, block {rows} x {cols}:\n{mask}"


def spiral(side: int) -> Classes:
    """A line one pixel wide that winds inwards, with one pixel between its turns."""
    mask = np.zeros((side, side), np.uint8)
    y, x, dy, dx, length = 0, 0, 0, 1, side - 1
    mask[0, 0] = 1
    for turn in range(side):
        for _ in range(length):
            y, x = y + dy, x + dx
            mask[y, x] = 1
        dy, dx = dx, -dy
        length -= 2 if turn >= 2 and turn % 2 == 0 else 0
        if length <= 0:
            break
    return mask


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("block", [(3, 5), (7, 4), (16, 1), (64, 64)])
def test_a_spiral_is_one_object(connectivity: int, block: Block) -> None:
    mask = spiral(29)
    both = np.kron(mask, np.eye(2, dtype=np.uint8))  # the same line, now joined at corners only
    for classes in (mask, 1 - mask, both):
        labels, _ = label_blocks(classes, block, connectivity)
        np.testing.assert_array_equal(labels, label(classes, connectivity=HOPS[connectivity]))
    assert label_blocks(mask, block, connectivity)[0].max() == 1


@pytest.mark.parametrize("down", [True, False])
def test_objects_that_meet_at_a_four_block_corner_only(down: bool) -> None:
    mask = np.zeros((8, 8), np.uint8)
    mask[2:4, 2:4] = mask[4:6, 4:6] = 1
    mask = mask if down else mask[:, ::-1]
    assert label_blocks(mask, (4, 4), 8)[0].max() == 1
    assert label_blocks(mask, (4, 4), 4)[0].max() == 2
    ids = label_blocks(mask, (4, 4), 8)[1].ids
    assert count_seam_objects(join_objects(mask, (4, 4), 8), ids) == {"vertical": 0, "horizontal": 1, "corner": 1}


def test_touching_classes_are_not_joined_across_seams() -> None:
    classes = np.indices((9, 9)).sum(axis=0).astype(np.uint8) // 3 % 3 + 1
    for connectivity in (4, 8):
        np.testing.assert_array_equal(
            label_blocks(classes, (2, 3), connectivity)[0], label(classes, connectivity=HOPS[connectivity])
        )


def test_objects_are_numbered_by_first_pixel_not_by_block() -> None:
    mask = np.zeros((4, 8), np.uint8)
    mask[1, 0] = mask[0, 7] = mask[3, 1] = 1  # the right block's object comes first in the image
    labels, _ = label_blocks(mask, (4, 4), 8)
    assert (labels[0, 7], labels[1, 0], labels[3, 1]) == (1, 2, 3)


def test_area_limits_apply_to_merged_objects() -> None:
    mask = np.zeros((4, 12), np.uint8)
    mask[1, 1:11] = 1  # 10 px in three blocks, 3 to 4 in each
    mask[3, 0] = 1
    assert label_blocks(mask, (4, 4), 8, Limits(5, None))[0].max() == 1
    assert label_blocks(mask, (4, 4), 8, Limits(0, 4))[0].tolist()[3][0] == 1
    assert removed(mask, (4, 4), 8, Limits(0, 4)) == 1


def test_a_hole_at_the_border_is_not_filled() -> None:
    ring = np.ones((6, 6), np.uint8)
    ring[0, 2] = ring[3, 3] = 0
    filled = fill_blocks(ring, (3, 3), 8, 10)
    assert filled[0, 2] == 0
    assert filled[3, 3] == 1


def test_a_hole_between_two_classes_is_not_filled() -> None:
    classes = np.ones((6, 8), np.uint8)
    classes[:, 4:] = 2
    classes[2, 3] = classes[2, 1] = 0  # the first adjoins class 2 only across the seam
    filled = fill_blocks(classes, (6, 4), 8, 10)
    assert filled[2, 3] == 0
    assert filled[2, 1] == 1


def test_the_area_of_a_hole_is_that_of_all_blocks() -> None:
    classes = np.ones((8, 8), np.uint8)
    classes[3:5, 3:5] = 0
    assert fill_blocks(classes, (4, 4), 8, 3).min() == 0
    assert fill_blocks(classes, (4, 4), 8, 4).min() == 1


def test_diagonal_background_is_one_hole_only_for_4_connected_objects() -> None:
    classes = np.ones((6, 6), np.uint8)
    classes[2, 2] = classes[3, 3] = 0
    for connectivity, left in ((8, 0), (4, 2)):
        assert (fill_blocks(classes, (3, 3), connectivity, 1) == 0).sum() == left


def test_more_objects_than_ids_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relabel, "MAX_OBJECTS", 3)
    mask = np.zeros((4, 8), np.uint8)
    mask[::2, ::2] = 1
    with pytest.raises(SlideError, match="at most 3 objects, found 8"):
        label_blocks(mask, (2, 2), 8)


@given(hnp.arrays(np.int32, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.integers(0, 2)))
def test_rasterized_runs_equal_the_labels(labels: NDArray[np.int32]) -> None:
    runs = find_runs(labels)
    painted = np.zeros_like(labels)
    for value, y, x0, x1 in zip(runs.label, runs.y, runs.x0, runs.x1, strict=True):
        assert not painted[y, x0:x1].any()
        assert x0 == 0 or labels[y, x0 - 1] != value
        painted[y, x0:x1] = value
    np.testing.assert_array_equal(painted, labels)
    assert (np.diff(runs.y * labels.shape[1] + runs.x0) > 0).all()
    assert runs.length.sum() == np.count_nonzero(labels)
    np.testing.assert_array_equal(rasterize(runs, runs.label, labels.shape), labels)
