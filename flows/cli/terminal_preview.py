"""A slide in a terminal, two pixels per character."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.style import Style
from rich.text import Text

from flows.reports.thumbnail import thumbnail
from pipeline.errors import DamagedError
from pipeline.printable import printable
from pipeline.storage.slide_store import SlideStore

MOST_COLUMNS, MOST_LINES = 96, 36
HALF = "\u2580"
"""The upper half block: the foreground colour is the upper pixel, the background colour the lower one."""


def show_preview(record: dict[str, Any], console: Console) -> None:
    """Print the slide of a complete record, or why it cannot be shown."""
    if console.color_system is None:
        console.print("  no preview: this terminal shows no colours", highlight=False)
        return
    if not record["pyramids"]["image"]:
        console.print("  no preview: the image was pruned", highlight=False)
        return
    most = 2 * MOST_LINES, min(MOST_COLUMNS, console.width)
    image, objects = (record["pyramids"][name] for name in ("image", "objects"))
    names = record["plan"]["image"]["channels"]
    tinted = objects[-1]["path"] if objects else None
    try:
        rgb = thumbnail(SlideStore(Path(record["path"])), names, image[-1]["path"], tinted, most)
    except DamagedError as error:
        console.print(f"  no preview: {printable(str(error))}", markup=False, highlight=False)
        return
    for line in half_blocks(rgb):
        console.print(line, soft_wrap=True)


def half_blocks(rgb: NDArray[np.uint8]) -> Iterator[Text]:
    """Lines of coloured text for an image (y, x, 3), two rows per line; the last line may hold one row."""
    for top in range(0, len(rgb), 2):
        line = Text("  ")
        for x, upper in enumerate(rgb[top]):
            below = rgb[top + 1, x] if top + 1 < len(rgb) else None
            line.append(HALF, Style(color=_hex(upper), bgcolor=None if below is None else _hex(below)))
        yield line


def _hex(pixel: NDArray[np.uint8]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*pixel.tolist())
