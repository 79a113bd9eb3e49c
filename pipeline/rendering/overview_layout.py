"""Layout of the overview page: title, notes, overview, fields beside or below it, legend.

Fields are placed to the right of a tall overview and below a wide one, where they fill the same length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from pipeline.rendering.contrast import Rgb
from pipeline.rendering.drawing import INK, PALE, WHITE, ramp
from pipeline.rendering.text import draw_text, shorten, text_width

_MARGIN, _GAP = 36, 20
_TITLE_PX, _TEXT_PX, _NOTE_PX = 32, 22, 18
_LEAST_WIDTH = 720


@dataclass(frozen=True, slots=True)
class Note:
    """A short text, with a square of the colour that it explains."""

    text: str
    colour: Rgb | None = None


@dataclass(frozen=True, slots=True)
class Legend:
    """Legend of the tint: one colour scale for each class, and the text to the left and right of them."""

    colours: tuple[Rgb, ...]
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Caption:
    """All text of a page."""

    title: str
    notes: Sequence[Note]
    legend: Legend | None


@dataclass(frozen=True, slots=True)
class Panel:
    """A picture and the text below it."""

    picture: Image.Image
    text: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, text included."""
        return self.picture.width, self.picture.height + (_NOTE_PX + 12 if self.text else 0)

    def paste(self, page: Image.Image, x: int, y: int) -> None:
        """Paste the panel with its upper left corner at (x, y)."""
        page.paste(self.picture, (x, y))
        draw_text(ImageDraw.Draw(page), (x, y + self.picture.height + _NOTE_PX + 4), self.text, _NOTE_PX, INK)


def lay_out(overview: Panel, fields: Sequence[Panel], caption: Caption) -> Image.Image:
    """Draw the page."""
    offsets, (width, height) = _arrange(overview, fields)
    page_width = max(_LEAST_WIDTH, width + 2 * _MARGIN)
    lines = _wrap(caption.notes, page_width - 2 * _MARGIN)
    top = _MARGIN + _TITLE_PX + 18 + len(lines) * (_TEXT_PX + 12) + 12
    bottom = (_NOTE_PX + 24) if caption.legend else 0
    page = Image.new("RGB", (page_width, top + height + bottom + _MARGIN), WHITE)
    draw = ImageDraw.Draw(page)
    title = shorten(caption.title, _TITLE_PX, page_width - 2 * _MARGIN)
    draw_text(draw, (_MARGIN, _MARGIN + _TITLE_PX * 0.8), title, _TITLE_PX, INK)
    for number, line in enumerate(lines):
        _write_line(draw, line, _MARGIN + _TITLE_PX + 18 + number * (_TEXT_PX + 12) + _TEXT_PX)
    for panel, (x, y) in zip((overview, *fields), offsets, strict=True):
        panel.paste(page, _MARGIN + x, top + y)
    if caption.legend:
        _draw_legend(page, caption.legend, top + height + 20)
    return page


def _arrange(overview: Panel, fields: Sequence[Panel]) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Offset (x, y) of each panel, and (width, height) of all of them."""
    width, height = overview.size
    offsets = [(0, 0)]
    if not fields:
        return offsets, (width, height)
    beside = height > width
    lengths = [field.size[1 if beside else 0] for field in fields]
    spare = (height if beside else width) - sum(lengths)
    gap = max(_GAP, min(2 * _GAP, spare // max(1, len(fields) - 1)))
    along = 0
    for length in lengths:
        offsets.append((width + _GAP, along) if beside else (along, height + _GAP))
        along += length + gap
    wide, high = max(field.size[0] for field in fields), max(field.size[1] for field in fields)
    if beside:
        return offsets, (width + _GAP + wide, max(height, along - gap))
    return offsets, (max(width, along - gap), height + _GAP + high)


def _wrap(notes: Sequence[Note], width_px: int) -> list[list[Note]]:
    lines: list[list[Note]] = [[]]
    used = 0
    for note in notes:
        shortened = Note(shorten(note.text, _TEXT_PX, width_px - 2 * _TEXT_PX), note.colour)
        note_px = _note_width(shortened)
        if lines[-1] and used + note_px > width_px:
            lines.append([])
            used = 0
        lines[-1].append(shortened)
        used += note_px
    return lines


def _note_width(note: Note) -> int:
    return text_width(note.text, _TEXT_PX) + (_TEXT_PX + 8 if note.colour else 0) + 36


def _write_line(draw: ImageDraw.ImageDraw, notes: Sequence[Note], baseline: float) -> None:
    x = float(_MARGIN)
    for note in notes:
        start = x
        if note.colour:
            side = _TEXT_PX * 0.75
            draw.rectangle((x, baseline - side, x + side, baseline), fill=note.colour)
            x += _TEXT_PX + 8
        draw_text(draw, (x, baseline), note.text, _TEXT_PX, INK)
        x = start + _note_width(note)


def _draw_legend(page: Image.Image, legend: Legend, top: int) -> None:
    draw = ImageDraw.Draw(page)
    baseline = top + _NOTE_PX
    x = round(draw_text(draw, (_MARGIN, baseline), legend.before, _NOTE_PX, PALE)) + 10
    strip = max(3, _NOTE_PX // len(legend.colours))
    for number, colour in enumerate(legend.colours):
        page.paste(ramp(colour, 180, strip), (x, top + 2 + number * strip))
    draw.rectangle((x - 1, top + 1, x + 180, top + 2 + strip * len(legend.colours)), outline=PALE)
    draw_text(draw, (x + 190, baseline), legend.after, _NOTE_PX, PALE)
