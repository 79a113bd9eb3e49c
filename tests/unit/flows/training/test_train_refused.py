"""Data that cannot be used for training is rejected before the first step: one line, exit code 2, no run created."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from skimage import io

from tests.support.commands import Command
from tests.support.make_discs import SHAPE, Discs, drawn, write_discs

MakeInvalid = Callable[[Discs], Sequence[str]]
"""Makes the data invalid; returns further options of the command."""


def save(path: Path, mask: np.ndarray) -> None:
    io.imsave(path, mask, check_contrast=False)


def each_mask(discs: Discs, change: Callable[[int, np.ndarray], np.ndarray]) -> None:
    """Save every mask again, changed by a function of its number and object mask (y, x)."""
    for number, path in enumerate(sorted(discs.masks.iterdir())):
        save(path, change(number, drawn(number)[1] > 0))


def another_size(discs: Discs) -> Sequence[str]:
    save(discs.masks / "2.png", np.zeros((SHAPE[0] // 2, SHAPE[1] // 2), np.uint8))
    return ()


def unknown_values(discs: Discs) -> Sequence[str]:
    """Two classes, and one value that is neither."""
    each_mask(discs, lambda number, objects: objects * np.uint8(7 if number == 3 else 1 + number % 2))
    return ("--set", "data.classes=[tumour, stroma]")


def two_kinds(discs: Discs) -> Sequence[str]:
    each_mask(discs, lambda number, objects: objects * np.uint8(255 if number == 4 else 1))
    return ()


def colours_without_a_table(discs: Discs) -> Sequence[str]:
    each_mask(discs, lambda _, objects: np.stack([objects * np.uint8(255)] * 3, -1))
    return ()


def smoothed_colours(discs: Discs) -> Sequence[str]:
    """Red, black and intermediate colours, as left by JPEG or resampling."""
    shades = np.linspace(0, 255, 40).astype(np.uint8)

    def red(number: int, objects: np.ndarray) -> np.ndarray:
        pixels = np.zeros((*objects.shape, 3), np.uint8)
        pixels[..., 0] = objects * np.uint8(255)
        if number == 1:
            pixels[0, :40, 0] = shades
        return pixels

    each_mask(discs, red)
    return ("--set", "data.colours={disc: [255, 0, 0]}")


def an_image_without_a_mask(discs: Discs) -> Sequence[str]:
    (discs.masks / "5.png").unlink()
    return ()


def a_mask_without_an_image(discs: Discs) -> Sequence[str]:
    """Without a cases table; with one, unlisted masks may be left out on purpose."""
    (discs.images / "5.png").unlink()
    discs.cases.unlink()
    return ()


def an_empty_class(discs: Discs) -> Sequence[str]:
    each_mask(discs, lambda _, objects: objects * np.uint8(1))
    return ("--set", "data.classes=[tumour, stroma]")


def few_patients(discs: Discs) -> Sequence[str]:
    table(discs, [(f"{number}.png", f"p{number % 2}") for number in range(6)], "image", "patient")
    return ()


def a_patient_on_both_sides(discs: Discs) -> Sequence[str]:
    rows = [(f"{number}.png", f"p{number // 2}", number % 3) for number in range(6)]
    table(discs, rows, "image", "patient", "fold")
    return ()


def table(discs: Discs, rows: Sequence[Sequence[object]], *header: str) -> None:
    with discs.cases.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def assert_refused(command: Command, folder: Path, make_invalid: MakeInvalid, expected: Sequence[str]) -> None:
    """Require every expected pattern in the only error line, and no run in the folder."""
    discs, out = write_discs(folder), folder / "run"
    more = make_invalid(discs)
    cases = ("--cases", discs.cases) if discs.cases.exists() else ()
    given = ("--images", discs.images, "--masks", discs.masks, *cases, "--out", out)
    ran = command.run("train", *given, "--steps", "3", *more)
    assert ran.code == 2, ran.transcript
    for words in expected:
        assert re.search(words, ran.only_error), ran.transcript
    assert "Traceback" not in ran.transcript
    assert {path.name for path in out.iterdir()} <= {".work"}, ran.transcript


LONG = pytest.mark.long


@pytest.mark.parametrize(
    ("make_invalid", "expected"),
    [
        (another_size, [r"masks/2\.png: expected 80 x 64 px as \S*images/2\.png, found 40 x 32", "without resampling"]),
        pytest.param(unknown_values, [r"masks/3\.png: .*found also 7", "correct the mask"], marks=LONG),
        pytest.param(two_kinds, [r"masks/0\.png holds 0, 1, \S*masks/4\.png 0, 255", "one way"], marks=LONG),
        pytest.param(colours_without_a_table, [r"masks/0\.png: the mask is in colours", r"data\.colours="], marks=LONG),
        pytest.param(smoothed_colours, [r"masks/1\.png: .*found also \[6, 0, 0\]", "without smoothing"], marks=LONG),
        pytest.param(an_image_without_a_mask, [r"images/5\.png", r"without a mask"], marks=LONG),
        pytest.param(a_mask_without_an_image, [r"masks/5\.png", "Add the image"], marks=LONG),
        pytest.param(an_empty_class, [r"class 'stroma' has not one pixel", r"data\.classes"], marks=LONG),
    ],
)
def test_fault_61_unusable_masks_are_rejected_before_the_first_step(
    overtile_alone: Command, tmp_path: Path, make_invalid: MakeInvalid, expected: Sequence[str]
) -> None:
    assert_refused(overtile_alone, tmp_path, make_invalid, expected)


@pytest.mark.parametrize(
    ("make_invalid", "expected"),
    [
        (a_patient_on_both_sides, ["patient 'p0' is on both sides: 0 in fold 0, 1 in fold 1", "Correct the column"]),
        pytest.param(few_patients, [r"as many patients as folds \(5\), found 2 \(p0, p1\)", r"folds\.k=2"], marks=LONG),
    ],
)
def test_fault_62_folds_that_bias_scores_are_rejected_before_the_first_step(
    overtile_alone: Command, tmp_path: Path, make_invalid: MakeInvalid, expected: Sequence[str]
) -> None:
    assert_refused(overtile_alone, tmp_path, make_invalid, expected)
