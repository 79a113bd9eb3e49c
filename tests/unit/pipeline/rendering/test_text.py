"""Text in pictures: every character has its own glyph, and any text fits and can be drawn."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.rendering import text
from pipeline.rendering.drawing import scale_bar
from pipeline.rendering.text import FONT, REPLACEMENT, draw_text, drawable, shorten, text_width

SIZE_PX = 20
LETTERS = "aZ09?_\u00b5\u00b2\u00e9\u00fc\u00df\u0142\u0151\u0416\u0436\u044f\u042e\u03a9\u03bb\u03bc\u03b1"


def pixels(string: str) -> NDArray[np.uint8]:
    """Picture of a string with white around it."""
    picture = Image.new("RGB", (120, 40), (255, 255, 255))
    draw_text(ImageDraw.Draw(picture), (10, 28), string, SIZE_PX, (0, 0, 0))
    return np.asarray(picture)


def missing_glyph() -> NDArray[np.uint8]:
    """Picture of the box that the font has for missing characters."""
    picture = Image.new("RGB", (120, 40), (255, 255, 255))
    font = ImageFont.truetype(str(FONT), SIZE_PX, layout_engine=ImageFont.Layout.BASIC)
    ImageDraw.Draw(picture).text((10, 28), "\U0010ffff", font=font, fill=(0, 0, 0), anchor="ls")
    return np.asarray(picture)


@pytest.fixture
def _no_system_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(text, "_FONT_FOLDERS", ())
    _forget()
    yield
    _forget()


def _forget() -> None:
    for cached in (text._font_of, text._system_fonts, text._has_glyph, text._font):
        cached.cache_clear()


def test_each_character_has_its_own_glyph() -> None:
    drawn = {char: pixels(char).tobytes() for char in LETTERS + REPLACEMENT}
    drawn["missing glyph"] = missing_glyph().tobytes()
    drawn["nothing"] = pixels("").tobytes()
    lookalikes = {drawn["\u00b5"]: "\u03bc"}  # the micro sign is the Greek letter
    different = {drawing: char for char, drawing in drawn.items() if lookalikes.get(drawing) != char}
    assert len(different) == len(drawn) - len(lookalikes)


def test_units_are_drawn_in_full() -> None:
    micro, letter = (pixels(char).min(-1) < 128 for char in "\u00b5u")
    assert micro[30:].any(), "the stem of the micro sign goes below the baseline"
    assert not letter[30:].any()
    raised, figure = (np.flatnonzero((pixels(char).min(-1) < 128).any(axis=1)) for char in "\u00b22")
    assert raised.max() < figure.max() - 4
    assert raised.min() <= figure.min() + 2


@pytest.mark.usefixtures("_no_system_fonts")
def test_characters_without_a_glyph_become_a_visible_replacement() -> None:
    assert drawable("\u4e2d\u6587") == 2 * REPLACEMENT
    assert np.array_equal(pixels("\u4e2d"), pixels(REPLACEMENT))
    assert (pixels("\u4e2d") < 128).any()
    assert not np.array_equal(pixels("\u4e2d"), missing_glyph())


def test_missing_characters_come_from_a_font_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's font is made to lack a letter; a copy of it serves as the system font."""
    (tmp_path / "fonts" / "deep").mkdir(parents=True)
    shutil.copy(FONT, tmp_path / "fonts" / "deep" / "NotoSansCJK-Regular.ttc")
    for name in ("NotoSansBroken-Regular.ttf", "NotoSansCJK-Black.ttc"):
        (tmp_path / "fonts" / name).write_bytes(b"not a font")
    (tmp_path / "fonts" / "readme.txt").write_text("not a font either")
    has_glyph = text._has_glyph.__wrapped__
    monkeypatch.setattr(text, "_FONT_FOLDERS", (str(tmp_path / "absent"), str(tmp_path / "fonts")))
    monkeypatch.setattr(text, "_has_glyph", lambda file, char: (file, char) != (FONT, "Z") and has_glyph(file, char))
    text._font_of.cache_clear()
    text._system_fonts.cache_clear()
    try:
        expected = ["NotoSansCJK-Regular.ttc", "NotoSansCJK-Black.ttc", "NotoSansBroken-Regular.ttf"]
        assert [file.name for file in text._system_fonts()] == expected
        assert text._font_of("Z") == tmp_path / "fonts" / "deep" / "NotoSansCJK-Regular.ttc"
        assert [len(part) for _, part in text._parts("aZZb", SIZE_PX)] == [1, 2, 1]
        assert drawable("Z") == "Z"
        assert drawable("Z", system_fonts=False) == REPLACEMENT
        drawn = pixels("aZb")
    finally:
        monkeypatch.undo()
        _forget()
    assert np.array_equal(drawn, pixels("aZb"))


def test_drawable_text_is_one_line_in_composed_form() -> None:
    assert drawable("Ko\u0308ln \x1b[31m\n\u00b5\u3000\u202e\u00a0b") == "K\u00f6ln \ufffd[31m\ufffd\u00b5 \ufffd b"
    assert drawable("\u0416\u03a9 \u00e9") == "\u0416\u03a9 \u00e9"


def test_long_text_is_cut_in_the_middle() -> None:
    short = shorten("a" * 80 + "end.svs", SIZE_PX, 200)
    assert 200 - 2 * text_width("a", SIZE_PX) < text_width(short, SIZE_PX) <= 200
    assert short.startswith("aaaa")
    assert "..." in short
    assert short.endswith("svs")
    assert shorten("short", SIZE_PX, 200) == "short"


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=30), st.integers(0, 200))
@settings(max_examples=60, deadline=None)
def test_any_text_fits_and_is_drawn_as_wide_as_measured(string: str, width_px: int) -> None:
    short = shorten(string, SIZE_PX, width_px)
    assert text_width(short, SIZE_PX) <= max(width_px, text_width("...", SIZE_PX))
    picture = Image.new("RGB", (60, 40))
    end = draw_text(ImageDraw.Draw(picture), (5, 28), string, SIZE_PX, (255, 255, 255))
    assert text_width(string, SIZE_PX) - 1 < end - 5 <= text_width(string, SIZE_PX)


def test_a_scale_bar_names_micrometres() -> None:
    picture = Image.new("RGB", (400, 200), (90, 90, 90))
    scale_bar(picture, 0.5, part=0.25, size_px=SIZE_PX)
    dark = np.asarray(picture).max(-1) < 60
    bar = dark.sum(axis=1).max()
    assert bar == 100  # 50 um at 0.5 um a pixel


def test_the_font_comes_with_its_licence() -> None:
    assert "Bitstream Vera" in (FONT.parent / "DejaVuSans.LICENSE.txt").read_text(encoding="utf-8")
