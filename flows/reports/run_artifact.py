"""The Markdown page of a scheduled run for Prefect: its summary and thumbnails of new slides.

Thumbnails are embedded, few and small, because a reader in a browser may not have access to the files. They are made
from the overviews in OUT, and the text is that of ``summary.md``.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from flows.batch.batch import Batch
from flows.reports.summary_markdown import escape_markdown
from flows.reports.thumbnail import jpeg
from pipeline.runs.slide_run import slide_root
from pipeline.storage.layout import OVERVIEW

MAX_PICTURES, COLUMNS, SIDE_PX = 24, 4, 160
"""Pictures on a page and in a row, and their longer side in px: about 5 kB each, so a page stays below 200 kB."""


def scheduled_run_page(batch: Batch) -> str:
    """Return ``summary.md`` of a finished batch followed by thumbnails of the slides completed in this run."""
    summary = (batch.request.out / "summary.md").read_text("utf-8")
    return "\n".join([summary, *_gallery([*_pictures(batch)])])


def _pictures(batch: Batch) -> Iterator[tuple[str, str]]:
    """Name and picture of the first slides completed in this run."""
    new = [outcome.key for outcome in batch.outcomes if outcome.state == "complete"]
    paths = [(key, slide_root(batch.request.out, key) / OVERVIEW) for key in new]
    existing = [(key, path) for key, path in paths if path.exists()][:MAX_PICTURES]
    return ((escape_markdown(key), f"![]({_data_uri(path)})") for key, path in existing)


def _data_uri(overview: Path) -> str:
    """A thumbnail of an overview as a data URI."""
    with Image.open(overview) as opened:
        opened.thumbnail((SIDE_PX, SIDE_PX))
        content = jpeg(opened.convert("RGB"), quality=75)
    return f"data:image/jpeg;base64,{b64encode(content).decode()}"


def _gallery(pictures: Sequence[tuple[str, str]]) -> Iterator[str]:
    """A table with alternating rows of names and pictures."""
    if not pictures:
        return
    yield from ("## New slides", "", "| " * COLUMNS + "|", "|---" * COLUMNS + "|")
    for start in range(0, len(pictures), COLUMNS):
        row = [*pictures[start : start + COLUMNS], *[("", "")] * COLUMNS][:COLUMNS]
        for cells in zip(*row, strict=True):
            yield "| " + " | ".join(cells) + " |"
