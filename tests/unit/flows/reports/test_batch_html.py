"""report.html of a batch: content equals the results in OUT, no network requests, escaped names."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from flows.batch.history import note
from flows.reports.batch_html import MAX_PICTURES, content_of, strip_of, write_report
from flows.reports.summary_markdown import outliers
from pipeline.errors import ConfigError
from pipeline.storage.manifest import read_manifest, write_manifest
from pipeline.storage.slide_store import SlideStore
from tests.conftest import skip_or_fail
from tests.support.browser import Page, browser, page_of
from tests.support.commands import Command
from tests.support.faults.trees import Finished

HOSTILE = "<img src=x onerror=alert(1)>"
SLIDES = ("a", "b", "c", "d", "e", "far", HOSTILE)


class Seen(HTMLParser):
    """Tags, text, and attributes that load or run something."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.active: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.active += [f"{name}={value}" for name, value in attrs if name.startswith("on") or name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


@dataclass(frozen=True)
class Batch:
    """A results folder of several slides and its page."""

    out: Path
    page: str


def add(out: Path, finished: Finished, key: str, times: float) -> None:
    """Add a copy of a slide with the number of objects multiplied."""
    root = out / key
    shutil.copytree(finished.result, root)
    store = SlideStore(root)
    manifest = read_manifest(store)
    assert manifest is not None
    facts = manifest["stages"]["measure"]["facts"]
    for row in facts["rows"]:
        row["count"] = round(row["count"] * times)
    label = manifest["stages"]["label"]["facts"]
    label["objects"] = round(label["objects"] * times)
    write_manifest(store, manifest["plan"] | {"key": key}, manifest["stages"])


@pytest.fixture(scope="module")
def batch(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Batch:
    out = tmp_path_factory.mktemp("batch") / "results"
    for number, key in enumerate(SLIDES):
        add(out, finished, key, 20 if key == "far" else 1 + number / 50)
    failed = SlideStore(out / "torn")
    failed.work.mkdir(parents=True)
    cause = {"stage": "ingest", "cause": f"{HOSTILE}.svs: tile 7 cannot be decoded", "slide": "torn.svs"}
    (failed.work / "failure.json").write_text(json.dumps(cause))
    run = {"run": "1", "who": "me", "host": "here", "pid": 1, "slides": 8, "batch": "", "models": [], "force": []}
    note(out, "began", {**run, "command": ["/bin/overtile", "segment", "slides; rm -rf", "--out", "results"]})
    note(out, "ended", {"run": "1", "exit_code": 3, "states": {}, "not_complete": {}, "recovered": []})
    return Batch(out, write_report(out).read_text("utf-8"))


def test_page_equals_the_results(batch: Batch) -> None:
    content, text = content_of(batch.out), Seen(batch.page).text
    assert "7 of 8 slides complete, 1 failed." in text
    assert [slide["key"] for slide in content["slides"]] == sorted([*SLIDES, "torn"])
    records = [read_manifest(SlideStore(batch.out / key)) for key in SLIDES]
    objects = sum(one["stages"]["label"]["facts"]["objects"] for one in records if one)
    assert f"{objects:,}".replace(",", "\u202f") in text
    assert "tile 7 cannot be decoded" in text
    assert "overtile segment 'slides; rm -rf' --out results" in text
    assert "exit 3" in text
    stages = {name: seconds for name, seconds, _ in content["stages"]}
    spent = sum(run["seconds"] for one in records if one for run in one["stages"]["predict"]["runs"])
    assert stages["predict"] == pytest.approx(spent)
    assert sum(share for _, _, share in content["stages"]) == pytest.approx(1)
    (configuration,) = content["configurations"]
    assert configuration["slides"] == 7
    assert ("tiles.block", "512") in configuration["settings"]


def test_outliers_are_listed_and_shown_first(batch: Batch) -> None:
    content = content_of(batch.out)
    assert [line.split(":")[0] for line in content["outliers"]] == ["far", "far"]  # more objects, each smaller
    assert "Objects per mm\u00b2 of tissue" in content["outliers"][0]
    assert content["pictures"][0][0]["key"] == "far"
    assert len(content["pictures"]) == 7 <= MAX_PICTURES
    (density,) = [strip for strip in content["strips"] if strip.name == "Objects per mm\u00b2 of tissue"]
    assert [dot.key for dot in density.dots if dot.is_outlier] == ["far"]


def test_dot_strip_orders_slides_by_value() -> None:
    strip = strip_of("x", {"a": 2.0, "b": 4.0, "c": 3.0, "d": 2.001})
    assert [(dot.key, dot.x, dot.y) for dot in strip.dots] == [
        ("a", 0, 0),
        ("d", 0.0005, 1),
        ("c", 0.5, 0),
        ("b", 1, 0),
    ]
    assert (strip.low, strip.median, strip.high) == (2, pytest.approx(2.5005), 4)
    alone = strip_of("x", {"a": 5.0})
    assert [(dot.x, dot.is_outlier) for dot in alone.dots] == [(0, False)]


def test_outliers_are_computed_from_medians() -> None:
    values = {"a": 10.0, "b": 11, "c": 12, "d": 13, "e": 90}
    assert outliers(values) == {"e": pytest.approx(0.6745 * 78 / 1)}
    assert outliers({key: values[key] for key in "abce"}) == {}, "too few values"
    assert outliers(dict.fromkeys("abcdef", 1.0)) == {}


def test_names_are_escaped_and_no_request_is_made(batch: Batch) -> None:
    seen = Seen(batch.page)
    assert HOSTILE in seen.text
    assert not [address for address in seen.active if not address.startswith(("src=data:image/", "href=data:,"))]
    assert seen.tags.count("img") == len(SLIDES)
    assert not re.search(r"https?://", batch.page)
    assert "default-src 'none'" in unescape(batch.page)


def test_folder_without_results_is_rejected(tmp_path: Path, overtile_alone: Command) -> None:
    ran = overtile_alone.run("report", tmp_path)
    assert ran.code == 2
    assert "holds no results" in ran.only_error
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError):
        content_of(tmp_path)


def test_batch_writes_the_page_at_its_end(finished: Finished) -> None:
    page = (finished.result.parent / "report.html").read_text("utf-8")
    assert "1 of 1 slides complete" in page
    assert "exit 0" in page, "the run that wrote the page has ended"


@pytest.fixture(scope="module")
def opened(batch: Batch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if browser() is None:
        skip_or_fail("no chromium here")
    with page_of(batch.out / "report.html", tmp_path_factory.mktemp("browser") / "profile") as page:
        yield page


def test_page_opens_without_requests_or_browser_errors(opened: Page, batch: Batch) -> None:
    requests = [url for url in opened.requests if not url.startswith("data:")]
    assert requests == [(batch.out / "report.html").resolve().as_uri()]
    assert opened.complaints == []
    images = "[...document.images].every(one => one.complete && one.naturalWidth > 0)"
    assert opened.value(images) is True
    assert opened.value("document.images.length") == len(SLIDES)


def test_table_sorts_by_column(opened: Page) -> None:
    column = "[...document.querySelectorAll('table.sortable tbody tr')].map(row => row.cells[0].textContent)"
    opened.value("document.querySelectorAll('table.sortable button')[3].click()")
    names: Any = opened.value(column)
    assert names[0] == "far"
    assert names[-1] == "torn", "missing values are last"
