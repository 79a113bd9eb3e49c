"""The cases table: cells as written; malformed tables are refused with file, line and remedy."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import RunConfig, load_config
from pipeline.errors import ConfigError, SlideError
from pipeline.inputs.cases_table import Case, match_cases, read_cases
from pipeline.inputs.discovery import Candidate, find_slides


def table(folder: Path, text: str | bytes) -> Path:
    path = folder / "cases.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def slides(folder: Path, *names: str) -> list[Candidate]:
    for name in names:
        path = folder / "slides" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return find_slides([folder / "slides"], ["*.tif", "*.svs"], folder / "out")


def chosen(folder: Path, text: str, *names: str) -> list[Candidate]:
    return [candidate for candidate, _ in match_cases(read_cases(table(folder, text)), slides(folder, *names))]


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_columns_and_line_numbers_are_as_written(tmp_path: Path) -> None:
    one, two = read_cases(table(tmp_path, 'slide,stain,patient\na,"H&E, fresh",P 1\n\n"b ""x""\n.svs",,\n'))
    assert (one.line, one.slide, one.columns) == (2, "a", {"stain": "H&E, fresh", "patient": "P 1"})
    assert (two.line, two.slide, two.columns) == (4, 'b "x"\n.svs', {"stain": "", "patient": ""})


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
def test_delimiters_line_ends_and_byte_order_marks_are_accepted(
    tmp_path: Path, delimiter: str, end: str, mark: bytes
) -> None:
    lines = [["stain", "slide"], ["H,E", "a;b"], ["x\ty", "c"]]
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator=end).writerows(lines)
    cases = read_cases(table(tmp_path, mark + text.getvalue().encode()))
    assert [(case.slide, case.columns["stain"]) for case in cases] == [("a;b", "H,E"), ("c", "x\ty")]


cells = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t"), max_size=12)


@settings(deadline=None)
@given(
    delimiter=st.sampled_from(",;\t"),
    names=st.lists(cells.filter(lambda name: name.strip()), min_size=1, max_size=4, unique=True),
    data=st.data(),
)
def test_any_table_of_the_csv_module_round_trips(
    tmp_path_factory: pytest.TempPathFactory, delimiter: str, names: list[str], data: st.DataObject
) -> None:
    known = {"slide", "model", "mpp", "regions", "priority", "patient"}
    header = ["slide", *(name for name in names if name.strip().casefold() not in known)]
    width = len(header)
    rows = data.draw(st.lists(st.lists(cells, min_size=width, max_size=width), min_size=1, max_size=5))
    rows = [[row[0] + "x", *row[1:]] for row in rows]
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows([header, *rows])
    path = table(tmp_path_factory.mktemp("round"), text.getvalue())
    found = [[case.slide, *case.columns.values()] for case in read_cases(path)]
    assert found == rows
    assert all(list(case.columns) == header[1:] for case in read_cases(path))


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_table_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = table(tmp_path_factory.mktemp("bytes"), b"slide,mpp\n" + content)
    with suppress(ConfigError):
        assert read_cases(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["line 1", "'slide'"]),
        ("name,mpp\na,0.5\n", ["line 1", "'slide'", "'name,mpp'"]),
        ("slide\n", ["one line a slide", "none"]),
        ("slide,x\n,\n", ["one line a slide", "none"]),
        ("slide,x,x\na,1,2\n", ["line 1", "'x'", "2 times"]),
        ("slide,MPP\na,1\n", ["line 1", "'MPP'", "'mpp'"]),
        ("slide, model\na,1\n", ["line 1", "' model'", "'model'"]),
        ("slide,x\na\n", ["line 2", "expected 2 cells", "found 1"]),
        ("slide,x\n\na,1\nb,1,2\n", ["line 4", "expected 2 cells", "found 3"]),
        ("slide,x\n  ,1\n", ["line 2", "'slide' is empty"]),
        ('slide,x\na,"1\n', ["line 2", "quotation mark"]),
        ("slide,\na,1\n", ["line 2", "without a name"]),
        ("slide,mpp\na,0.5\nb,big\n", ["line 3", "0.05 to 10", "'big'", "native"]),
        ("slide;mpp\na;0,5\n", ["line 2", "decimal point", "'0,5'"]),
        ("slide,mpp\na,20\n", ["line 2", "'20'"]),
        ("slide,mpp\na,nan\n", ["line 2", "'nan'"]),
        ("slide,mpp\na,1_0\n", ["line 2", "'1_0'"]),
        ("slide,priority\na,first\n", ["line 2", "'first'", "larger"]),
        ("slide,priority\na,inf\n", ["line 2", "'inf'"]),
        (b"slide,x\na,1\nb,Pr\xe4p\n", ["line 3", "CSV UTF-8"]),
        ("slide,x\na,1\n".encode("utf-16"), ["CSV UTF-8"]),
        (b"slide\0,x\na,1\n", ["zero bytes", "CSV UTF-8"]),
    ],
)
def test_malformed_table_is_refused_with_line_and_remedy(tmp_path: Path, text: str, words: Sequence[str]) -> None:
    path = table(tmp_path, text)
    with pytest.raises(ConfigError) as refused:
        read_cases(path)
    for word in (str(path), *words):
        assert word in str(refused.value)


def test_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.csv: No such file"):
        read_cases(tmp_path / "nowhere.csv")


def test_empty_unnamed_columns_and_empty_lines_are_ignored(tmp_path: Path) -> None:
    (case,) = read_cases(table(tmp_path, "slide,x,,\na,1,,\n,,,\n"))
    assert case.columns == {"x": "1"}


# ---- order -----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.sampled_from(["", "0", "1", "-1", "2.5", "1e2", " 3 "]), min_size=1, max_size=8))
def test_larger_priorities_come_first_else_table_order(
    tmp_path_factory: pytest.TempPathFactory, priorities: list[str]
) -> None:
    text = "slide,priority\n" + "".join(f"s{number},{text}\n" for number, text in enumerate(priorities))
    found = [case.slide for case in read_cases(table(tmp_path_factory.mktemp("order"), text))]
    values = [float(text.strip() or 0) for text in priorities]
    expected = sorted(range(len(values)), key=lambda number: (-values[number], number))
    assert found == [f"s{number}" for number in expected]


# ---- matching lines and slides ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["deep/er/one", "deep/er/one.tif", "one.tif", "ABSOLUTE"])
def test_slide_can_be_named_in_four_ways(tmp_path: Path, name: str) -> None:
    text = str(tmp_path / "slides" / "deep" / ".." / "deep" / "er" / "one.tif") if name == "ABSOLUTE" else name
    (found,) = chosen(tmp_path, f"slide,x\n{text},7\n", "deep/er/one.tif", "two.tif")
    assert (found.key, found.case, found.refused) == ("deep/er/one", {"x": "7"}, None)


def test_table_selects_and_orders_slides(tmp_path: Path) -> None:
    found = chosen(tmp_path, "slide\nc\na\n", "a.tif", "b.tif", "c.tif")
    assert [candidate.key for candidate in found] == ["c", "a"]


def test_key_takes_precedence_over_file_name(tmp_path: Path) -> None:
    (found,) = chosen(tmp_path, "slide\na.tif\n", "a.tif.svs", "deep/a.tif")
    assert found.key == "a.tif"


def test_ambiguous_file_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"line 2: 2 slides are called 'a.tif': .*one/a.tif.*two/a.tif"):
        chosen(tmp_path, "slide\na.tif\n", "one/a.tif", "two/a.tif")


@pytest.mark.parametrize(("one", "two"), [("a", "a"), ("a", "a.tif"), ("absent", "absent")])
def test_two_lines_for_one_slide_are_refused(tmp_path: Path, one: str, two: str) -> None:
    with pytest.raises(ConfigError, match=f"line 4: '{two}' is the slide of line 2 too .'{one}'"):
        chosen(tmp_path, f"slide\n{one}\nb\n{two}\n", "a.tif", "b.tif")


def test_missing_slide_fails_by_name_and_others_continue(tmp_path: Path) -> None:
    missing, there = chosen(tmp_path, "slide,x\nbatch/on,1\nbatch/one,2\n", "batch/one.tif")
    assert there.refused is None
    assert (missing.key, missing.case) == ("batch/on", {"x": "1"})
    assert isinstance(missing.refused, SlideError)
    for word in ("cases.csv, line 2", "'batch/on'", "did you mean 'batch/one.tif'?", "absolute path"):
        assert word in str(missing.refused)


def test_colliding_slides_stay_refused(tmp_path: Path) -> None:
    by_key = chosen(tmp_path, "slide\na\n", "a.tif", "a.svs")
    assert [candidate.refused is None for candidate in by_key] == [False, False]
    (by_file,) = chosen(tmp_path, "slide\na.svs\n")
    assert by_file.path.name == "a.svs"
    assert by_file.refused is not None


def test_accents_are_normalised(tmp_path: Path) -> None:
    (found,) = chosen(tmp_path, f"slide\n{unicodedata.normalize('NFD', 'Präparat')}\n", "Präparat.tif")
    assert found.refused is None


# ---- configuration of one slide --------------------------------------------------------------------------------------


def case(**columns: str) -> Case:
    return Case(Path("/tables/cases.csv"), 2, "a", columns)


def test_case_replaces_model_and_resolution_of_its_slide_only() -> None:
    general = load_config(None, ["input.mpp=0.5", "tiles.block=1024", "input.pattern=[x]"])
    own = case(model=" own.safetensors", mpp="0.25 ").config(general)
    assert own.model.weights == "/tables/own.safetensors"
    assert own.input == general.input.model_copy(update={"mpp": 0.25})
    assert (own.tiles, own.objects) == (general.tiles, general.objects)
    assert case(model="nuclei", mpp="native").config(general).model.weights == "nuclei"
    assert case(model="nuclei", mpp="native").config(general).input.mpp == "native"
    assert case(model="/a/b.safetensors").config(general).model.weights == "/a/b.safetensors"
    assert case(regions="drawn/a.geojson").config(general).input == general.input.model_copy(
        update={"regions": "/tables/drawn/a.geojson"}
    )
    assert case(model="", mpp="", regions="", patient="P").config(general) == general


def test_case_values_are_validated() -> None:
    with pytest.raises(ConfigError, match=r"cases.csv, line 2: expected .* 0.05 to 10"):
        case(mpp="0.01").config(RunConfig())
