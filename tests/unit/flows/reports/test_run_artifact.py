"""Markdown page of a scheduled run: the text of summary.md, and embedded thumbnails of new slides."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
from PIL import Image

from flows.batch.batch import Batch, BatchRequest
from flows.batch.outcome import Outcome, State
from flows.reports.run_artifact import COLUMNS, MAX_PICTURES, SIDE_PX, scheduled_run_page


def batch_of(out: Path, slides: dict[str, State]) -> Batch:
    out.mkdir()
    (out / "summary.md").write_text("# batch\n\n**all**\n")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (240, 160, 4), np.uint8)).save(out / "noise.png")
    for key in slides:
        (out / key).mkdir(parents=True)
        (out / key / "overview.png").hardlink_to(out / "noise.png")
    outcomes = [Outcome(key, Path(f"{key}.tif"), state) for key, state in slides.items()]
    return Batch(BatchRequest(inputs=(out,), out=out), {}, outcomes)


def pictures(page: str) -> list[Image.Image]:
    found = re.findall(r"\]\(data:image/jpeg;base64,([^)]+)\)", page)
    return [Image.open(io.BytesIO(base64.b64decode(one, validate=True))) for one in found]


def test_only_new_slides_have_thumbnails(tmp_path: Path) -> None:
    batch = batch_of(
        tmp_path / "out", {"new": "complete", "old": "complete before", "a|<b>": "complete", "bad": "failed"}
    )
    page = scheduled_run_page(batch)
    assert page.startswith((tmp_path / "out" / "summary.md").read_text())
    assert [picture.size for picture in pictures(page)] == [(107, SIDE_PX)] * 2
    assert r"| new | a\|&lt;b&gt; |  |  |" in page
    (tmp_path / "out" / "new" / "overview.png").unlink()
    assert len(pictures(scheduled_run_page(batch))) == 1, "a missing overview is skipped"


def test_run_without_new_slides_has_no_thumbnails(tmp_path: Path) -> None:
    assert "New slides" not in scheduled_run_page(batch_of(tmp_path / "out", {"old": "complete before"}))


def test_number_of_thumbnails_is_limited(tmp_path: Path) -> None:
    """The pictures are noise, which compresses worse than any slide."""
    page = scheduled_run_page(
        batch_of(tmp_path / "out", {f"slide{number}": "complete" for number in range(MAX_PICTURES + 9)})
    )
    assert len(pictures(page)) == MAX_PICTURES
    rows = [line for line in page.split("## New slides")[1].splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {COLUMNS + 1}
    assert len(page) < 400_000
