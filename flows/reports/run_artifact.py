"""The page of a night: its summary, and a small picture of each slide that is new, for Prefect's pages.

The one decision made here: pictures are inside the page, few and small, for whoever reads it in a browser may not reach
the files; they are the overviews that lie in OUT, and the words are those of ``summary.md``: nothing is said twice.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from flows.batch.batch import Batch
from flows.reports.summary_markdown import plain
from flows.reports.thumbnail import jpeg
from pipeline.runs.slide_run import slide_root
from pipeline.storage.layout import OVERVIEW

MOST, ACROSS, SIDE_PX = 24, 4, 160
"""Pictures on a page and in a row, and the longer side of each: some 5 kB, so a page stays below 200 kB."""


def morning_page(batch: Batch) -> str:
    """``summary.md`` of a batch that has ended, with its pictures."""
    summary = (batch.request.out / "summary.md").read_text("utf-8")
    return "\n".join([summary, *_gallery([*_pictures(batch)])])


def _pictures(batch: Batch) -> Iterator[tuple[str, str]]:
    """Name and picture of the first slides that were completed in this run."""
    new = [outcome.key for outcome in batch.outcomes if outcome.state == "complete"]
    places = [(key, slide_root(batch.request.out, key) / OVERVIEW) for key in new]
    return ((plain(key), f"![]({_small(place)})") for key, place in [one for one in places if one[1].exists()][:MOST])


def _small(overview: Path) -> str:
    """A picture as an address that holds it."""
    with Image.open(overview) as opened:
        opened.thumbnail((SIDE_PX, SIDE_PX))
        content = jpeg(opened.convert("RGB"), quality=75)
    return f"data:image/jpeg;base64,{b64encode(content).decode()}"


def _gallery(pictures: Sequence[tuple[str, str]]) -> Iterator[str]:
    """A table: rows of names, each above a row of pictures."""
    if not pictures:
        return
    yield from ("## New slides", "", "| " * ACROSS + "|", "|---" * ACROSS + "|")
    for start in range(0, len(pictures), ACROSS):
        row = [*pictures[start : start + ACROSS], *[("", "")] * ACROSS][:ACROSS]
        for cells in zip(*row, strict=True):
            yield "| " + " | ".join(cells) + " |"
