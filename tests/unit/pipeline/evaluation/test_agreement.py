"""Agreement of two masks equals numpy over the whole arrays, for any blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import DamagedError
from pipeline.evaluation.agreement import compare_labels
from pipeline.geometry import Box
from pipeline.storage.slide_store import SlideStore
from tests.support.make_store import put_array

SHAPE = (1100, 1300)
SEED = 20261122


def stored(folder: Path, name: str, labels: np.ndarray, block_px: int = 512) -> SlideStore:
    store = SlideStore(folder / name)
    put_array(store, "labels/objects/0", labels.astype(np.uint32), "a" * 64, block_px)
    return store


@pytest.mark.parametrize("blocks", [(512, 512), (512, 1024), (1024, 512)])
@pytest.mark.parametrize("classes", [None, 3])
def test_agreement_equals_numpy_over_the_whole(tmp_path: Path, blocks: tuple[int, int], classes: int | None) -> None:
    rng = np.random.default_rng(SEED)
    first, second = (rng.integers(1, 200, SHAPE) * (rng.random(SHAPE) < share) for share in (0.3, 0.5))
    second[700:900, 600:1000] = 0  # most differs in the cell at (512, 512)
    first[700:900, 600:1000] = 7
    codes = None
    kinds = [(one > 0).astype(int) for one in (first, second)]
    if classes is not None:
        codes = tuple(np.concatenate([[0], rng.integers(1, classes + 1, 199)]).astype(np.uint8) for _ in range(2))
        kinds = [code[labels].astype(int) for code, labels in zip(codes, (first, second), strict=True)]
    stores = [stored(tmp_path, str(n), one, b) for n, (one, b) in enumerate(zip((first, second), blocks, strict=True))]
    found = compare_labels(*(store.read("labels/objects/0") for store in stores), codes)  # type: ignore[arg-type]  # two of them
    size = (classes or 1) + 1
    expected = np.array([[((kinds[0] == i) & (kinds[1] == j)).sum() for j in range(size)] for i in range(size)])
    assert np.array_equal(found.pixels, expected)
    inside = [one > 0 for one in (first, second)]
    assert found.dice == 2 * (inside[0] & inside[1]).sum() / (inside[0].sum() + inside[1].sum())
    for number in range(1, size):
        one, other = (kind == number for kind in kinds)
        assert found.dice_of(number) == 2 * (one & other).sum() / (one.sum() + other.sum())
    assert found.place == Box(512, 512, 1024, 1024)


def test_equal_masks_agree_for_any_ids_and_empty_ones_are_undefined(tmp_path: Path) -> None:
    labels = np.zeros((600, 520), np.uint32)
    labels[10:50, 500:520], labels[590:600, :30] = 1, 2
    one, other = stored(tmp_path, "a", labels), stored(tmp_path, "b", np.where(labels > 0, 9 - labels, 0))
    found = compare_labels(one.read("labels/objects/0"), other.read("labels/objects/0"), None)
    assert (found.dice, found.place) == (1.0, None)
    empty = stored(tmp_path, "c", np.zeros_like(labels)).read("labels/objects/0")
    assert compare_labels(empty, empty, None).dice is None
    assert compare_labels(empty, one.read("labels/objects/0"), None).dice == 0.0


def test_different_shapes_and_unknown_objects_are_rejected(tmp_path: Path) -> None:
    small, large = (stored(tmp_path, str(side), np.full((side, side), 3)) for side in (20, 30))
    first, second = (store.read("labels/objects/0") for store in (small, large))
    with pytest.raises(ValueError, match=r"expected labels of one shape, found \(20, 20\) and \(30, 30\)"):
        compare_labels(first, second, None)
    known, unknown = np.array([0, 1, 1, 1], np.uint8), np.array([0, 1, 1], np.uint8)
    with pytest.raises(DamagedError, match="object 3 is not in the table"):
        compare_labels(first, first, (known, unknown))
