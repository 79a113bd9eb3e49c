"""report.html of a comparison: differing settings, agreement of slides, and pictures of the least similar ones.

Each side of a slide is shown by two pictures: the whole slide, and the cell with the most differing pixels at the
finest level that both have. They show whether objects moved, merged, appeared or disappeared.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flows.reports.batch_html import DotStrip, strip_of
from flows.reports.compare import Compared, ResultComparison, Side, as_csv
from flows.reports.html_page import PAGE, Picture, count, render
from flows.reports.thumbnail import jpeg, thumbnail, tint
from pipeline.errors import StoreError
from pipeline.geometry import Box
from pipeline.printable import printable
from pipeline.rendering.contrast import compose, windows
from pipeline.storage.atomic_files import write_bytes
from pipeline.storage.slide_store import SlideStore

MAX_WORST = 10
SIDE_PX, CELL_SIDE_PX = 260, 260
TABLE = "slides.csv"
PANELS = ("First", "Second", "First, largest difference", "Second, largest difference")


def write_comparison(comparison: ResultComparison, folder: Path) -> Path:
    """Write ``report.html`` and ``slides.csv``; return the path of the page."""
    write_bytes(folder / TABLE, as_csv(comparison).encode())
    write_bytes(folder / PAGE, render("compare.html.j2", content_of(comparison)).encode())
    return folder / PAGE


def content_of(comparison: ResultComparison) -> dict[str, Any]:
    """Return the variables of the template."""
    first, second = (printable(str(out)) for out in comparison.outs)
    left_out = [(slide.key, slide.note) for slide in comparison.slides if slide.agreement is None]
    for out, keys in zip((first, second), comparison.only, strict=True):
        left_out += [(key, f"only in {out}") for key in keys]
    worst = [slide for slide in comparison.worst()[:MAX_WORST] if slide.row.dice != 1.0]
    return {
        "title": "Comparison of two results",
        "first": first,
        "second": second,
        "lead": f"{len(comparison.compared)} of {len(comparison.slides)} common slides compared.",
        "marks": _marks(comparison),
        "differences": [(*map(printable, words), number) for *words, number in comparison.differences()],
        "left_out": [(printable(key), printable(why)) for key, why in left_out],
        "strips": list(_strips(comparison.compared)),
        "panels": PANELS,
        "worst": [(_row(slide), list(_pictures(slide))) for slide in worst],
        "slides": [_row(slide) for slide in comparison.compared],
    }


def _row(slide: Compared) -> dict[str, Any]:
    row = slide.row
    return {
        "key": printable(slide.key),
        "dice": row.dice,
        "counts": row.counts,
        "count_change": row.count_change,
        "areas": row.areas_mm2,
        "area_change": row.area_change,
        "classes": [(printable(slide.name), slide.dice) for slide in slide.class_rows]
        if len(slide.class_rows) > 1
        else [],
    }


def _marks(comparison: ResultComparison) -> Iterator[tuple[str, str]]:
    rows = [slide.row for slide in comparison.compared]
    dice = [row.dice for row in rows if row.dice is not None]
    if dice:
        yield f"{statistics.median(dice):.4f}", "median Dice per slide"
        yield f"{min(dice):.4f}", "lowest Dice per slide"
    yield f"{sum(value == 1.0 for value in dice)}", "identical slides"
    first, second = (sum(row.counts[side] for row in rows) for side in (0, 1))
    yield f"{count(first)} \u2192 {count(second)}", "objects"


def _strips(slides: Sequence[Compared]) -> Iterator[DotStrip]:
    """Dot strips of Dice and of the changes of number and area."""
    measures = {
        "Dice": {slide.key: slide.row.dice for slide in slides},
        "Change in number of objects, %": {slide.key: slide.row.count_change for slide in slides},
        "Change in object area, %": {slide.key: slide.row.area_change for slide in slides},
    }
    for name, numbers in measures.items():
        scale = 1 if name == "Dice" else 100
        if values := {key: scale * value for key, value in numbers.items() if value is not None}:
            yield strip_of(name, values)


# ---- pictures --------------------------------------------------------------------------------------------------------


def _pictures(slide: Compared) -> Iterator[Picture | None]:
    """Pictures in the order of PANELS; None if a level no longer exists."""
    assert slide.sides is not None and slide.agreement is not None, "only compared slides are shown"  # noqa: PT018  both at once
    for side in slide.sides:
        yield _picture(slide.key, _full_slide(side))
    for side in slide.sides:
        cell = slide.agreement.place
        yield None if cell is None else _picture(slide.key, _detail(side, _finest(slide.sides), cell))


def _picture(alt: str, rgb: NDArray[np.uint8] | None) -> Picture | None:
    if rgb is None:
        return None
    return Picture(alt, printable(alt), b"", jpeg=jpeg(Image.fromarray(rgb), quality=85))


def _levels(store: SlideStore, group: str) -> list[int]:
    """Existing levels of a pyramid, finest first."""
    folder = store.zarr / group
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()) if folder.exists() else []


def _finest(sides: Sequence[Side]) -> int | None:
    """The finest level of which both sides have image and labels."""
    levels = [set(_levels(side.store, group)) for side in sides for group in ("", "labels/objects")]
    return min(set.intersection(*levels), default=None)


def _full_slide(side: Side) -> NDArray[np.uint8] | None:
    images, labels = _levels(side.store, ""), _levels(side.store, "labels/objects")
    with suppress(StoreError, OSError):
        if images and labels:
            names, objects = side.plan["image"]["channels"], f"labels/objects/{labels[-1]}"
            return thumbnail(side.store, names, str(images[-1]), objects, (SIDE_PX, SIDE_PX))
    return None


def _detail(side: Side, level: int | None, cell: Box) -> NDArray[np.uint8] | None:
    """A box (pixels of level 0) at a pyramid level, with objects tinted."""
    with suppress(StoreError, OSError):
        if level is not None:
            image, labels = side.store.read(str(level)), side.store.read(f"labels/objects/{level}")
            edges = (
                edge >> level for edge in (cell.y0, cell.x0, cell.y1 + (1 << level) - 1, cell.x1 + (1 << level) - 1)
            )
            box = Box(*edges).intersect(Box(0, 0, *image.shape[-2:]))
            coarsest = side.store.read(str(_levels(side.store, "")[-1]))[:]
            if box is not None:
                names = side.plan["image"]["channels"]
                rgb = compose(image.read(box), names, windows(coarsest, names))
                return tint(rgb, labels.read(box) > 0)
    return None
