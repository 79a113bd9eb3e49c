"""Redaction: a run on slides, folders and patients whose names may occur in the key file only.

Slides complete, fail, collide and are missing in every way that has a message of its own; then all files and messages
are searched for their names.
"""

from __future__ import annotations

import json
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows.batch.pseudonyms import open_key_file
from pipeline.errors import ConfigError, DiskError, LockedError, OvertileError, SlideError
from pipeline.redaction import Pseudonym, RedactErrors
from tests.security.test_permissions import other_group
from tests.support.commands import Command, Ran, is_complete
from tests.support.faults.pictures import draw, red_and_blue, write
from tests.support.leaks import words_held
from tests.support.make_slides import tile_span

SHAPE = (150, 210)
NAMES = {
    "whole": "KOWALSKI Anna/biopsy-4711",
    "damaged": "MUELLEROVA",
    "empty": "NOVAKOWA",
    "twin": "IVANOVA",
    "drawn": "WEBERIN",
    "undrawn": "HORVATOVA",
    "gone": "ROSSINI",
}
PATIENT = "DOE-1970-01-01"
SECRETS = ("KOWALSKI", "biopsy-4711", "MUELLEROVA", "NOVAKOWA", "IVANOVA", "WEBERIN", "HORVATOVA", "ROSSINI", PATIENT)


@dataclass(frozen=True, slots=True)
class Redacted:
    """The run, the key file, and pseudonyms by name."""

    ran: Ran
    file: Path
    slides: Path
    options: tuple[str | Path, ...]

    @property
    def out(self) -> Path:
        return self.ran.out

    def ids(self) -> dict[str, str]:
        lines = [json.loads(line) for line in self.file.read_text().splitlines()]
        return {line["name"]: line["id"] for line in lines if "name" in line}

    def id_of(self, kind: str) -> str:
        return self.ids()[NAMES[kind]]


@pytest.fixture(scope="module")
def redacted(overtile: Command, tmp_path_factory: pytest.TempPathFactory) -> Redacted:
    folder = tmp_path_factory.mktemp("redact")
    picture = draw(SHAPE, red_and_blue(SHAPE))
    slides = {kind: write(folder / "slides" / f"{name}.tif", picture) for kind, name in NAMES.items() if kind != "gone"}
    slides["empty"].write_bytes(b"")
    write(slides["twin"].with_suffix(".tiff"), picture)
    offset, _ = tile_span(slides["damaged"], 0)
    with slides["damaged"].open("r+b") as file:
        file.seek(offset + 5)
        file.write(b"\0" * 40)
    ring = [[0, 0], [200, 0], [200, 140], [0, 140], [0, 0]]
    feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    (folder / "drawn").mkdir()
    (folder / "drawn" / f"{NAMES['drawn']}.geojson").write_text(json.dumps(feature))
    rows = [
        f"{name},{PATIENT if kind == 'whole' else ''},{'drawn' if 'drawn' in kind else ''}"
        for kind, name in NAMES.items()
    ]
    (folder / "cases.csv").write_text("\n".join(["slide,patient,regions", *rows]))
    options = ("--cases", folder / "cases.csv", "--redact", folder / "names.json", "outputs.group_writable=true")
    (folder / "out").mkdir()
    with suppress(OSError):  # only where we are in a second group
        os.chown(folder / "out", -1, other_group())
    ran = overtile.segment([folder / "slides", slides["drawn"]], folder / "out", *options, "tissue=null")
    return Redacted(ran, folder / "names.json", folder / "slides", options)


def test_slides_have_pseudonyms_and_the_key_file_maps_them(redacted: Redacted) -> None:
    states = {
        name: redacted.ran.states()[found] for name, found in redacted.ids().items() if found.startswith("slide-")
    }
    complete = {NAMES["whole"], NAMES["drawn"]}
    assert states == {name: "complete" if name in complete else "failed" for name in NAMES.values()}, (
        redacted.ran.transcript
    )
    assert all(is_complete(redacted.out / redacted.id_of(kind)) for kind in ("whole", "drawn"))
    assert stat.S_IMODE(redacted.file.stat().st_mode) == 0o600
    paths = [json.loads(line).get("path", "") for line in redacted.file.read_text().splitlines()]
    assert str(redacted.out.parent / "slides" / f"{NAMES['whole']}.tif") in paths


def test_no_file_or_message_contains_a_name(redacted: Redacted, overtile: Command, prefect_home: Path) -> None:
    assert words_held(redacted.out, SECRETS) == set()
    assert [word for word in SECRETS if word in redacted.ran.transcript] == []
    homes = [overtile.folder.parent, prefect_home]
    assert any(list(home.rglob("*.db")) for home in homes), "no Prefect database was looked into"
    assert [held for home in homes for held in words_held(home, SECRETS)] == []


def test_redacted_errors_still_state_the_cause(redacted: Redacted) -> None:
    errors = {kind: redacted.ran.error_of(redacted.id_of(kind)) for kind in ("damaged", "empty", "undrawn", "gone")}
    assert "level 0, tile (0, 0)" in errors["damaged"]
    assert "an empty file" in errors["empty"]
    assert f"no regions: expected {redacted.out.parent}/drawn/{redacted.id_of('undrawn')}.geojson" in errors["undrawn"]
    assert "no slide" in errors["gone"]
    twins = [line for line in redacted.ran.errors if line.startswith(redacted.id_of("twin"))]
    assert len(twins) == 2
    assert all("its output would be" in line for line in twins)


def test_results_have_patient_pseudonyms(redacted: Redacted) -> None:
    ids = redacted.ids()
    row = next(line for line in (redacted.out / "results.csv").read_text().splitlines() if ids[PATIENT] in line)
    assert row.startswith(redacted.id_of("whole"))


def test_pseudonyms_are_stable_and_accepted_by_commands(redacted: Redacted, overtile_alone: Command) -> None:
    """Rerun, status and retry without a flow and without names."""
    before, options = redacted.ids(), redacted.options[2:]
    again = overtile_alone.segment(redacted.slides, redacted.out, *options, "tissue=null", "input.pattern=['bio*.tif']")
    assert again.code == 0, again.transcript
    assert again.computed(redacted.id_of("whole")) == {}
    assert redacted.ids() == before
    status = overtile_alone.run("status", redacted.out, "--json")
    states = {slide["key"]: slide["state"] for slide in json.loads(status.stdout)["slides"]}
    assert states[redacted.id_of("damaged")] == "failed", "it did not vanish; its path is unknown"
    retried = overtile_alone.run("retry", redacted.out, redacted.id_of("damaged"))
    assert retried.code == 0, retried.transcript
    said = (redacted.out / "history.jsonl").read_text() + again.transcript + status.transcript + retried.transcript
    assert [word for word in SECRETS if word in said] == []


@pytest.mark.long
def test_read_only_commands_print_no_name(redacted: Redacted, overtile_alone: Command) -> None:
    drawn = redacted.slides / f"{NAMES['drawn']}.tif"
    ran = [overtile_alone.run(command, redacted.out) for command in ("status", "inspect", "verify")]
    ran.append(overtile_alone.segment(drawn, redacted.out, *redacted.options[2:], "--dry-run"))
    for one in ran:
        assert redacted.id_of("drawn") in one.stdout, one.transcript
        assert [word for word in SECRETS if word in one.transcript] == []


@pytest.mark.parametrize(
    ("place", "mode", "content", "phrase"),
    [
        ("out/names", 0o600, "", "outside of"),
        ("names", 0o640, "", "chmod 600"),
        ("names", 0o600, "something else", "expected a key file"),
        ("absent/names", None, "", "No such file"),
    ],
)
def test_invalid_key_file_is_rejected(tmp_path: Path, place: str, mode: int | None, content: str, phrase: str) -> None:
    (tmp_path / "out").mkdir()
    if mode is not None:
        (tmp_path / place).write_text(content)
        (tmp_path / place).chmod(mode)
    with pytest.raises(ConfigError, match=phrase), open_key_file(tmp_path / place, tmp_path / "out"):
        pytest.fail("it was opened")


def test_pseudonyms_depend_on_the_key_file_and_survive_a_torn_line(tmp_path: Path) -> None:
    found = []
    for name in ("one", "one", "two"):
        with open_key_file(tmp_path / name, tmp_path / "out") as names:
            found.append(names.id_of("slide", "SMITH"))
        with (tmp_path / name).open("a") as file:
            file.write('{"id": "slide-')
    assert found[0] == found[1] != found[2]
    assert (tmp_path / "one").read_text().count("SMITH") == 1
    assert stat.S_IMODE((tmp_path / "one").stat().st_mode) == 0o600
    with open_key_file(tmp_path / "none", tmp_path / "out", writing=False) as names:
        assert names.id_of("slide", "SMITH") not in found
    assert not (tmp_path / "none").exists()


# ---- one folder, several users ---------------------------------------------------------------------------------------


def test_group_of_out_may_change_all_files(redacted: Redacted) -> None:
    group = other_group()
    for path in (redacted.out, *redacted.out.rglob("*")):
        found = path.stat()
        assert found.st_gid == group, path
        wanted = stat.S_ISGID | 0o070 if path.is_dir() else 0o060
        assert found.st_mode & wanted == wanted, f"{path} {oct(found.st_mode)}"


# ---- words -----------------------------------------------------------------------------------------------------------


def test_redaction_replaces_paths_and_whole_words_but_no_short_numbers(tmp_path: Path) -> None:
    os.symlink(tmp_path / "ELSEWHERE.svs", tmp_path / "SMITH 12.svs")
    alias = Pseudonym.of("slide-1", "case/SMITH 12", tmp_path / "SMITH 12.svs")
    for told in (
        tmp_path / "SMITH 12.svs",
        tmp_path / "SMITH 12" / "Data.dat",
        "SMITH 12",
        "case/SMITH 12",
        "ELSEWHERE.svs",
    ):
        assert "SMITH" not in alias.redact(f"'{told}' is cut")
        assert "ELSEWHERE" not in alias.redact(f"'{told}' is cut")
    assert (
        Pseudonym.of("slide-1", "12", Path("in/12.svs")).redact("in/12.svs: row 12 of 12.svs")
        == "slide-1: row 12 of slide-1"
    )
    assert (
        Pseudonym.of("slide-1", "2012", Path("in/2012.svs")).redact("see 2012, not 20123") == "see slide-1, not 20123"
    )
    assert Pseudonym.of("slide-1", "le", Path("in/le.svs")).redact("level le") == "level slide-1"


def raise_chained(kind: type[OvertileError], text: str = "in/SMITH.svs: cannot be read") -> None:
    try:
        raise OSError(2, "No such file", "in/SMITH.svs")
    except OSError as error:
        raise kind(text) from error


def test_redacted_error_keeps_its_type_and_drops_its_cause() -> None:
    alias = Pseudonym.of("slide-1", "SMITH", Path("in/SMITH.svs"))
    for kind in (SlideError, DiskError, LockedError):
        with pytest.raises(kind) as told, RedactErrors(alias):
            raise_chained(kind)
        assert str(told.value) == "slide-1: cannot be read"
        assert told.value.__cause__ is None
        assert told.value.__suppress_context__
    with pytest.raises(OvertileError, match=r"^FileNotFoundError: .*'slide-1'$"), RedactErrors(alias):
        Path("in/SMITH.svs").read_bytes()


def test_logged_errors_contain_no_control_characters() -> None:
    with pytest.raises(SlideError) as told, RedactErrors(None, lambda text: text.replace("\x1b", "?")):
        raise_chained(SlideError, "\x1b[31m.svs: cut")
    assert str(told.value) == "?[31m.svs: cut"
    with pytest.raises(SlideError) as kept, RedactErrors(None):
        raise_chained(SlideError)
    assert isinstance(kept.value.__cause__, OSError), "where names may be told, what led to it is too"
