"""The page of a night: the words of summary.md, and small pictures of what is new, inside the page."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
from PIL import Image

from flows.batch.batch import Batch, BatchRequest
from flows.batch.outcome import Outcome, State
from flows.reports.run_artifact import ACROSS, MOST, SIDE_PX, morning_page


def night(out: Path, slides: dict[str, State]) -> Batch:
    out.mkdir()
    (out / "summary.md").write_text("# night\n\n**all**\n")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (240, 160, 4), np.uint8)).save(out / "noise.png")
    for key in slides:
        (out / key).mkdir(parents=True)
        (out / key / "overview.png").hardlink_to(out / "noise.png")
    outcomes = [Outcome(key, Path(f"{key}.tif"), state) for key, state in slides.items()]
    return Batch(BatchRequest(inputs=(out,), out=out), {}, outcomes)


def pictures(page: str) -> list[Image.Image]:
    found = re.findall(r"\]\(data:image/jpeg;base64,([^)]+)\)", page)
    return [Image.open(io.BytesIO(base64.b64decode(one, validate=True))) for one in found]


def test_new_slides_have_a_picture_and_others_have_none(tmp_path: Path) -> None:
    batch = night(tmp_path / "out", {"new": "complete", "old": "complete before", "a|<b>": "complete", "bad": "failed"})
    page = morning_page(batch)
    assert page.startswith((tmp_path / "out" / "summary.md").read_text())
    assert [picture.size for picture in pictures(page)] == [(107, SIDE_PX)] * 2
    assert r"| new | a\|&lt;b&gt; |  |  |" in page
    (tmp_path / "out" / "new" / "overview.png").unlink()
    assert len(pictures(morning_page(batch))) == 1, "one that was not asked for is not there"


def test_a_night_without_new_slides_has_no_pictures(tmp_path: Path) -> None:
    assert "New slides" not in morning_page(night(tmp_path / "out", {"old": "complete before"}))


def test_there_are_never_so_many_that_the_page_grows_large(tmp_path: Path) -> None:
    """Of noise, which is worse than any slide."""
    page = morning_page(night(tmp_path / "out", {f"slide{number}": "complete" for number in range(MOST + 9)}))
    assert len(pictures(page)) == MOST
    rows = [line for line in page.split("## New slides")[1].splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {ACROSS + 1}
    assert len(page) < 400_000
