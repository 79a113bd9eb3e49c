"""results.csv: numbers round-trip, no cell is a formula, and every slide has a row."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.batch.result_rows import COLUMNS, Row, flags, manifest_rows, results_csv

IMAGE = {"mpp": 0.5, "level0_from_image_yx": [1.0, 1.0]}


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def manifest(**stages: dict[str, Any]) -> dict[str, Any]:
    return {"plan": {"image": IMAGE}, "stages": {name: {"facts": facts} for name, facts in stages.items()}}


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(0, 2**40))
def test_numbers_round_trip_exactly(number: float, count: int) -> None:
    (row,) = read(results_csv([{"slide": "a", "fraction": number, "count": count}], [{}]))
    assert float(row["fraction"]) == number
    assert math.copysign(1, float(row["fraction"])) == math.copysign(1, number)
    assert int(row["count"]) == count
    assert row["mean_area_um2"] == ""


names = st.lists(st.text(min_size=1, max_size=12), max_size=5, unique=True)


@given(names, st.text(max_size=20), st.data())
def test_no_cell_is_a_formula_or_has_control_characters(columns: list[str], slide: str, data: st.DataObject) -> None:
    case = {name: data.draw(st.text(max_size=20)) for name in columns}
    text = results_csv([{"slide": slide, "class": slide, "flags": slide}], [case])
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert len(rows) == 2
    assert len(rows[0]) == len(rows[1]) == len(COLUMNS) + len(columns)
    for cell in (cell for row in rows for cell in row):
        assert cell.isprintable()
        assert not cell.startswith(("=", "@"))
        assert not cell.startswith(("+", "-")) or math.isfinite(float(cell)), "a number of the user's is no formula"


@given(st.lists(st.sampled_from([*COLUMNS, *(f"case_{name}" for name in COLUMNS), "x", "case_x"]), unique=True))
def test_column_names_are_unique(columns: list[str]) -> None:
    text = results_csv([{"slide": "a"}], [{name: f"<{name}>" for name in columns}])
    header, row = csv.reader(io.StringIO(text))
    assert len(set(header)) == len(header)
    assert row[1 : 1 + len(columns)] == [f"<{name}>" for name in columns]
    assert [name for name in columns if name not in COLUMNS and not name.startswith("case_")] == [
        title for title in header[1 : 1 + len(columns)] if not title.startswith("case_")
    ]


def test_slides_of_different_tables_share_one_header() -> None:
    rows: list[Row] = [{"slide": "a"}, {"slide": "b"}, {"slide": "c"}]
    found = read(results_csv(rows, [{"stain": "HE"}, {}, {"day": "1", "stain": "PAS"}]))
    assert [(row["stain"], row["day"]) for row in found] == [("HE", ""), ("", ""), ("PAS", "1")]


def test_empty_results_have_a_header() -> None:
    assert results_csv([], []).strip().split(",") == list(COLUMNS)


@pytest.mark.parametrize(("span", "expected"), [((1.0, 1.0), []), ((0.5, 0.5), ["enlarged"]), ((2.0, 0.96), [])])
def test_an_interpolated_image_is_flagged(span: tuple[float, float], expected: list[str]) -> None:
    found = manifest(tissue={"flags": []})
    found["plan"]["image"] = IMAGE | {"level0_from_image_yx": list(span)}
    assert flags(found) == expected


def test_flags_of_all_stages_are_listed_once() -> None:
    found = manifest(tissue={"flags": ["pen", "blurred"]}, predict={}, overlay={"flags": ["pen"]})
    assert flags(found) == ["pen", "blurred"]


def test_manifest_of_version_0_1_0_gives_counts_and_areas() -> None:
    measure = {"objects": {"a": 4, "b": 0}, "area_um2": {"a": 100.0, "b": 0.0}}
    old = manifest(tissue={"flags": [], "tissue_px": 2_000_000}, measure=measure)
    old["plan"] |= {"model": {"name": "n@1", "sha256": "f" * 64}, "hashes": {"measure": "e" * 64}}
    first, second = manifest_rows(old)
    assert (first["class"], first["count"], first["mean_area_um2"], first["tissue_mm2"]) == ("a", 4, 25.0, 0.5)
    assert (second["count"], second["mean_area_um2"], second["area_um2_median"]) == (0, None, None)
