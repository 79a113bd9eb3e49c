"""Text in pictures: which font draws a character, and measuring, shortening and drawing of text.

DejaVu Sans is part of the package and draws Latin, Greek, Cyrillic and symbols, so their pixels are the same on every
machine. A character that it lacks, such as a Chinese one, is drawn in the first font of the system that has it, and as
U+FFFD where there is none. Layout is Pillow's basic one, from left to right: it needs no further library, but neither
reorders nor joins Arabic letters.
"""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby
from pathlib import Path

from PIL import ImageDraw, ImageFont

from pipeline.rendering.contrast import Rgb

FONT = Path(__file__).with_name("fonts") / "DejaVuSans.ttf"
REPLACEMENT = "\ufffd"
"""Drawn instead of a character without a glyph."""

_FONT_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts")
_FONT_NAMES = re.compile(
    r"(noto|.*cjk|sourcehan|droidsansfallback|wqy|uming|ukai|ipa|takao|vl-?gothic|nanum|unifont|arialuni).*\.(ttf|otf|ttc)",
    re.IGNORECASE,
)
"""Fonts of many scripts, as Linux distributions name them."""

_UNASSIGNED = "\U0010ffff"  # a non-character: no font has a glyph for it


def drawable(text: str, *, system_fonts: bool = True) -> str:
    """Normalise text (NFC) and replace what cannot be drawn.

    Args:
        text: Any text, such as the name of a file.
        system_fonts: Whether characters count as drawable that only a font of the system has.

    Returns:
        One line: spaces of all kinds are U+0020; control characters and characters without a glyph are U+FFFD.
    """
    return "".join(_drawable_char(char, system_fonts=system_fonts) for char in unicodedata.normalize("NFC", text))


def shorten(text: str, size_px: int, width_px: int) -> str:
    """``drawable(text)``, cut in the middle until it is at most ``width_px`` wide."""
    text = short = drawable(text)
    keep = len(text)
    while keep > 0 and text_width(short, size_px) > width_px:
        keep -= 1
        short = f"{text[: keep - keep // 2]}...{text[len(text) - keep // 2 :]}"
    return short


def text_width(text: str, size_px: int) -> int:
    """Width of ``draw_text`` in pixels, rounded up."""
    return math.ceil(sum(font.getlength(part) for font, part in _parts(text, size_px)))


def draw_text(draw: ImageDraw.ImageDraw, at_xy: tuple[float, float], text: str, size_px: int, colour: Rgb) -> float:
    """Draw ``drawable(text)`` on the baseline from ``at_xy``; returns the x at which it ends."""
    x, y = at_xy
    for font, part in _parts(text, size_px):
        draw.text((x, y), part, font=font, fill=colour, anchor="ls")
        x += font.getlength(part)
    return x


# ---- fonts ----------------------------------------------------------------------------------------------------------


def _parts(text: str, size_px: int) -> Iterator[tuple[ImageFont.FreeTypeFont, str]]:
    """The text in parts of one font each."""
    for file, chars in groupby(drawable(text), key=_font_of):
        yield _font(file or FONT, size_px), "".join(chars)


def _drawable_char(char: str, *, system_fonts: bool) -> str:
    if unicodedata.category(char) == "Zs":
        return " "
    has_glyph = char.isprintable() and (_has_glyph(FONT, char) or (system_fonts and _font_of(char) is not None))
    return char if has_glyph else REPLACEMENT


@lru_cache(maxsize=4096)
def _font_of(char: str) -> Path | None:
    """The first font that has the character: the package's own, then the system's."""
    if _has_glyph(FONT, char):
        return FONT
    return next((file for file in _system_fonts() if _has_glyph(file, char)), None)


@lru_cache(maxsize=1)
def _system_fonts() -> tuple[Path, ...]:
    """Fonts of other scripts, CJK and regular weights first. Folders are searched once, when a font is needed."""
    folders = [Path(os.path.expanduser(folder)) for folder in _FONT_FOLDERS]  # Path.expanduser fails without a home
    files = [file for folder in folders for file in folder.rglob("*") if _FONT_NAMES.fullmatch(file.name)]
    return tuple(sorted(files, key=_preference))


def _preference(file: Path) -> tuple[bool, bool, Path]:
    name = file.name.lower()
    return "cjk" not in name, "regular" not in name, file


@lru_cache(maxsize=4096)
def _has_glyph(file: Path, char: str) -> bool:
    """Whether the character is drawn otherwise than a character that no font has."""
    try:
        font = _font(file, 20)
    except OSError:  # damaged, or of bitmaps that cannot be scaled
        return False
    drawn, missing = (font.getmask(one) for one in (char, _UNASSIGNED))
    return (drawn.size, bytes(drawn)) != (missing.size, bytes(missing))


@lru_cache(maxsize=64)
def _font(file: Path, size_px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(file), size_px, layout_engine=ImageFont.Layout.BASIC)
