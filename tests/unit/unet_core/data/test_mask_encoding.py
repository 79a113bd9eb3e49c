"""The kind of masks follows from all of them; ambiguous masks are rejected."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from unet_core.data.mask_encoding import Content, DataSettings, Kind, meaning_of, pack, packed
from unet_core.errors import AnnotationError

RED, GREEN, BLACK, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 0), (255, 255, 255)
TWO = DataSettings(classes=("tumour", "stroma"))
TABLE = DataSettings(colours={"tumour": RED, "stroma": GREEN})


def numbers(*values: int, pieces: int = 0, file: str = "m.png") -> Content:
    marks = len(set(values) - {0})
    return Content(file, values=set(values), pieces=pieces or marks, seen=marks)


def colours(*values: tuple[int, int, int], file: str = "c.png") -> Content:
    return Content(file, coloured=True, values=set(map(pack, values)))


@pytest.mark.parametrize(
    ("contents", "chosen", "kind"),
    [
        ([numbers(0, 1), numbers(0)], DataSettings(), "binary"),
        ([numbers(0, 255), numbers(255)], DataSettings(), "binary"),
        ([numbers(0, 65535)], DataSettings(), "binary"),
        ([numbers(0)], DataSettings(), "binary"),
        ([numbers(0, 7)], DataSettings(mask="binary"), "binary"),
        ([numbers(*range(30)), numbers(0, 1)], DataSettings(), "labels"),
        ([numbers(0, 1, 2)], DataSettings(mask="labels"), "labels"),
        ([numbers(0, 1, 2, pieces=40)], DataSettings(mask="labels"), "labels"),
        ([numbers(0, 1, 2, pieces=40), numbers(0, 2)], TWO, "classes"),
        ([numbers(0, 1)], TWO, "classes"),
        ([colours(BLACK, RED), colours(BLACK, GREEN, RED)], TABLE, "colours"),
        ([colours(WHITE, RED)], DataSettings(colours={"tumour": RED}, background=WHITE), "colours"),
    ],
)
def test_kinds_of_masks_are_distinguished(contents: list[Content], chosen: DataSettings, kind: Kind) -> None:
    meaning = meaning_of(contents, chosen)
    assert meaning.kind == kind
    assert meaning.class_names == chosen.class_names
    assert meaning.remark.startswith("masks: ")


@pytest.mark.parametrize(
    ("contents", "chosen", "message"),
    [
        ([numbers(0, 1), numbers(0, 255, file="n.png")], DataSettings(), r"m\.png holds 0, 1, n\.png 0, 255"),
        ([numbers(0, 1, 2)], DataSettings(), r"m\.png: it holds 0, 1, 2, .*data\.mask=labels .* or data\.classes="),
        ([numbers(0, 9)], DataSettings(), r"m\.png: it holds 0, 9, and fewer than 8 numbers"),
        ([numbers(*range(40), pieces=400)], DataSettings(), r"in all\), and a number has 10\.3 separate pieces"),
        ([colours(BLACK, WHITE)], DataSettings(), r"c\.png: the mask is in colours, \[0, 0, 0\], \[255, 255, 255\]"),
        ([colours(RED), numbers(0, 1)], TABLE, r"c\.png holds colours, m\.png numbers"),
        ([numbers(0, 1)], TABLE, r"m\.png: data\.colours is given, but the mask has one channel"),
        ([colours(BLACK, RED, WHITE)], TABLE, r"c\.png: .*found also \[255, 255, 255\] \(1 in all\)"),
        ([numbers(0, 1, 3)], TWO, r"m\.png: expected numbers of classes, 0 to 2 .*found also 3"),
        ([numbers(0, 1, 2)], DataSettings(mask="binary"), r"m\.png: expected 0 and one other number"),
        ([numbers(0, 2**31)], DataSettings(mask="labels"), r"m\.png: .*up to 2147483647, found 2147483648"),
        ([numbers(-1, 0)], DataSettings(), r"m\.png: expected 0 and above, found -1"),
        ([numbers(0, 1)], TWO.model_copy(update={"mask": "labels"}), r"data\.mask=labels is for one class"),
    ],
)
def test_fault_61_invalid_or_ambiguous_masks_are_rejected_by_file(
    contents: list[Content], chosen: DataSettings, message: str
) -> None:
    with pytest.raises(AnnotationError, match=message):
        meaning_of(contents, chosen)


def test_a_palette_with_non_black_zero_is_rejected() -> None:
    content = Content("p.png", zero=WHITE, values={0, 1}, pieces=1, seen=1)
    with pytest.raises(AnnotationError, match=r"p\.png: a palette whose number 0 is the colour \(255, 255, 255\)"):
        meaning_of([content], DataSettings())
    content.zero = BLACK
    assert meaning_of([content], DataSettings()).kind == "binary"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=12, max_size=12), st.permutations([RED, GREEN, WHITE, (1, 2, 3)]))
def test_colours_map_to_the_number_of_their_class(places: list[int], table: list[tuple[int, int, int]]) -> None:
    chosen = DataSettings(colours={f"class {i}": colour for i, colour in enumerate(table)})
    meaning = meaning_of([colours(BLACK, *table)], chosen)
    drawn = np.array([BLACK, *table], np.uint8)[np.array(places).reshape(3, 4)]
    assert np.array_equal(meaning.classes_of(packed(drawn.transpose(2, 0, 1))).ravel(), places)


def test_numbers_become_classes() -> None:
    values = np.array([[0, 1], [2, 2]], np.int64)
    assert meaning_of([numbers(0, 1, 2)], TWO).classes_of(values).tolist() == [[0, 1], [2, 2]]
    assert meaning_of([numbers(0, 255)], DataSettings()).classes_of(values * 255).tolist() == [[0, 1], [1, 1]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"classes": ["a", "a"]},
        {"colours": {"a": RED, "b": RED}},
        {"colours": {"a": BLACK}},
        {"colours": {"a": RED}, "classes": ["b"]},
        {"colours": {"a": RED}, "mask": "labels"},
        {"mask": "colours"},
        {"colours": {"a": (0, 0, 256)}},
        {"masks": "labels"},
        {"memory_gb": -1},
    ],
)
def test_contradictory_settings_are_rejected(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DataSettings.model_validate(wrong)
