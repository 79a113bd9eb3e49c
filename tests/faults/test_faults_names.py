"""Slide names that collide, and names that would be harmful if interpreted.

One folder holds them all, as sound and as broken slides, so that names reach tables, error lines and reports; one
command is run on it.
"""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from pipeline.storage.layout import OWN_NAMES
from tests.support.commands import Command, Ran, is_complete
from tests.support.faults.pictures import BLUE, Disc, draw, write
from tests.support.make_slides import tile_span, write_svs

PICTURE = draw((120, 150), [Disc(60, 70, 25, BLUE)])
HOSTILE = {
    "markup": "<img src=x onerror=alert(1)>",
    "shell": "$(touch pwned-by-dollar)",
    "backticks": "`touch pwned-by-backtick`",
    "semicolon": "; touch pwned-by-semicolon; #",
    "escape": "\x1b[31mred\x1b[0m\x1b]0;title\x07",
    "newline": "two\nerror: lines",
    "formula": '=HYPERLINK("http:x")',
    "dash": "-rf",
    "rich": "[link=x][bold]name",
    "table": "a | b `c`",
    "percent": "%s %n {key}",
    "spaces": "  two  spaces ",
    "unicode": "Prä­parat № 7 ‮txet",
    "long": "n" * 246,
    "latin_1": os.fsdecode(b"Pr\xe4parat"),
}
"""Names by what they attack, or by what is unusual in them."""
BROKEN = {kind: f"{name[0]}broken {name[1:]}"[:246] for kind, name in HOSTILE.items()}
TORN = "\x1b[31mtorn"
"""Opens as a valid slide and fails when read, so that its error passes through Prefect."""
NEWEST_FIRST = {"artifacts": "CREATED_DESC", "task_runs": "EXPECTED_START_TIME_DESC", "logs": "TIMESTAMP_DESC"}
OWN = ("batch.json.tif", "Results.CSV.tif", "summary.md.tif", "manifest.json.tif", "report.html/a.tif")
"""Slides whose output would have the name of a file of the results."""
TWINS = ("twin.svs", "twin.tif", "Case.tif", "case.tif", "nest.tif", "nest/inside.tif")


@pytest.fixture(scope="module")
def names(overtile: Command, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("names")
    for name in HOSTILE.values():
        write(folder / "slides" / f"{name}.tif", PICTURE)
    for name in BROKEN.values():
        (folder / "slides" / f"{name}.tif").write_bytes(b"")
    torn = write(folder / "slides" / f"{TORN}.tif", PICTURE)
    content = torn.read_bytes()
    offset, count = tile_span(torn, 0)
    torn.write_bytes(content[: offset + 5] + b"\0" * (count - 5) + content[offset + count :])
    for name in (*TWINS, *OWN):
        path = folder / "slides" / name
        path.parent.mkdir(exist_ok=True)
        write_svs(path, PICTURE, mpp=0.5) if path.suffix == ".svs" else write(path, PICTURE)
    by_itself = (
        folder / "slides" / f"{HOSTILE['latin_1']}.tif"
    )  # so that the name is also an argument of the command and the flow
    return overtile.segment([folder / "slides", by_itself], folder / "out")


def printable(name: str) -> str:
    """Return a name as it may be printed: every unprintable character replaced."""
    return "".join(char if char.isprintable() else "?" for char in name)


def test_fault_35_colliding_keys_fail_by_name_and_the_others_go_on(names: Ran) -> None:
    assert names.code == 3, names.transcript
    collided = {"twin": 2, "Case": 1, "case": 1, "nest": 1, "nest/inside": 1}
    for key, count in collided.items():
        lines = [line for line in names.errors if line.startswith(f"{key}: failed at plan: ")]
        assert len(lines) == count, names.transcript
        assert all("its output would be" in line for line in lines)
        assert not is_complete(names.out / key)
    (case,) = (line for line in names.errors if line.startswith("Case: "))
    assert "Case.tif" in case
    assert "case.tif" in case


def test_fault_35_batch_of_colliding_keys_only_is_a_usage_error(
    names: Ran, overtile_alone: Command, tmp_path: Path
) -> None:
    slides = names.out.parent / "slides"
    ran = overtile_alone.segment([slides / "twin.svs", slides / "twin.tif"], tmp_path / "out")
    assert ran.code == 2
    assert "twin.svs" in ran.only_error
    assert "twin.tif" in ran.only_error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", OWN)
def test_fault_35_a_slide_with_a_name_of_the_results_fails_by_name(names: Ran, name: str) -> None:
    key = name.removesuffix(".tif")
    assert "is a name of files of the results. Rename the slide" in names.error_of(key)
    assert not (names.out / key / "manifest.json").exists()
    written = {path.name for path in names.out.iterdir() if path.is_file()}
    assert "results.csv" in written
    assert {one for one in written if not one.startswith(".")} <= OWN_NAMES


@pytest.mark.parametrize("kind", HOSTILE)
def test_fault_37_66_a_slide_of_any_name_is_complete(names: Ran, kind: str) -> None:
    assert names.outcome(HOSTILE[kind])["state"] == "complete", names.transcript
    assert is_complete(names.out / HOSTILE[kind])


@pytest.mark.parametrize("kind", BROKEN)
def test_fault_37_66_a_broken_slide_of_any_name_has_one_error_line(names: Ran, kind: str) -> None:
    (line,) = (line for line in names.errors if line.startswith(f"{printable(BROKEN[kind])}: failed at plan: "))
    assert "an empty file" in line


def test_fault_66_no_name_was_executed(names: Ran, overtile: Command) -> None:
    for folder in (names.out.parent, overtile.folder):
        assert not [path for path in folder.rglob("pwned*")]


def test_fault_66_no_control_character_reaches_terminal_log_or_report(names: Ran) -> None:
    reports = {name: (names.out / name).read_text() for name in ("summary.md", "failures.csv")}
    for text in (names.stdout, names.stderr, *reports.values()):
        assert all(char.isprintable() or char == "\n" for char in text.replace("\r\n", "\n"))
    failing = len(BROKEN) + len(TWINS) + len(OWN) + 1
    assert len(names.errors) == names.stderr.count("\n") == failing, "a newline in a name does not start a new line"
    assert "<img" not in reports["summary.md"]
    assert "&lt;img src=x" in reports["summary.md"]
    rows = [line for line in reports["summary.md"].splitlines() if line.startswith("| ")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {7}, "a bar in a name does not add a column"


def test_fault_66_tables_hold_no_formula_and_json_holds_the_name_itself(names: Ran) -> None:
    with (names.out / "failures.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(BROKEN) + len(TWINS) + len(OWN) + 1
    assert not [row for row in rows for cell in row.values() if cell[:1] in ("=", "+", "-", "@")]
    keys = {outcome["key"] for outcome in json.loads((names.out / "batch.json").read_text())["run"]["outcomes"]}
    assert set(HOSTILE.values()) | set(BROKEN.values()) <= keys
    manifest = json.loads((names.out / HOSTILE["markup"] / "manifest.json").read_text())
    assert manifest["plan"]["key"] == HOSTILE["markup"]


def test_fault_66_prefects_pages_hold_names_as_text(names: Ran, overtile: Command) -> None:
    def query(what: str, limit: int = 200) -> list[dict[str, Any]]:
        body = json.dumps({"limit": limit, "sort": NEWEST_FIRST[what]}).encode()
        address = f"{overtile.environment['PREFECT_API_URL']}/{what}/filter"
        with urlopen(Request(address, body, {"Content-Type": "application/json"}), timeout=60) as response:
            return list(json.load(response))

    pages = [page for page in query("artifacts") if "img src=x" in page["data"]]
    assert len(pages) == 1
    assert not [text for page in pages for text in (page["data"], page["description"]) if "<img" in text]
    texts = [run["name"] for run in query("task_runs")] + [line["message"] for line in query("logs")]
    texts += [run["state"]["message"] or "" for run in query("task_runs")]
    assert any(HOSTILE["shell"] in text for text in texts)
    assert [text for text in texts if f"{printable(TORN)}.tif: level 0, tile" in text]
    assert not [text for text in texts if "\x1b" in text or "\x07" in text]


def test_fault_66_inspect_verify_and_status_escape_names(names: Ran, overtile_alone: Command) -> None:
    inspected = overtile_alone.run("inspect", names.out)
    verified = overtile_alone.run("verify", names.out)
    status = overtile_alone.run("status", names.out)
    assert verified.code == 0, verified.transcript
    for ran in (inspected, verified, status):
        assert "\x1b" not in ran.transcript
        assert printable(HOSTILE["escape"]) in ran.stdout
        assert HOSTILE["rich"] in ran.stdout
