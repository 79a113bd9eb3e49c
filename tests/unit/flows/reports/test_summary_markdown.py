"""summary.md: grouped causes first, density outliers, and escaped names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.batch.outcome import Outcome, State
from flows.batch.result_records import Record
from flows.reports.summary_markdown import FAR, Summary


def outcome(key: str, state: State = "complete", cause: str = "") -> Outcome:
    return Outcome(key, Path("slides") / f"{key}.tif", state, stage="ingest", cause=cause)


def record(key: str, density: float = 100.0, **figures: Any) -> Record:
    known = {"model": "m", "tissue_mm2": 2.0, "objects": 2 * density, "objects_per_mm2": density}
    rows = ({"class": "cell", "count": 2 * density, "tissue_mm2": 2.0, "area_mm2": 0.5},)
    return Record(key, "complete", {}, {**known, "flags": [], "masked": [], "warnings": [], **figures}, rows)


def page(outcomes: list[Outcome], *records: Record, **more: Any) -> str:
    return Summary("batch", outcomes, {one.key: one for one in records}, more.pop("seconds", 3600.0), **more).markdown()


def section(text: str, name: str) -> list[str]:
    """The lines below a heading."""
    found = text.split(f"## {name}\n\n")
    return found[1].split("\n\n## ")[0].splitlines() if len(found) > 1 else []


def test_headline_states_counts_duration_and_throughput() -> None:
    text = page([outcome("a"), outcome("b", "complete before"), outcome("c", "failed", "x")], record("a"), record("b"))
    assert "**2 of 3 slides complete**, 1 failed." in text
    assert "Took 60 min. Written 2" in text
    assert "Completed in this run: 1 slide (1 per hour, 2 mm2 of tissue per hour)." in text


@pytest.mark.parametrize(
    ("left", "words"),
    [(None, "time left not known yet"), (45.0, "about 45 s left"), (25500.0, "about 7 h 05 min left")],
)
def test_running_batch_states_the_time_left(left: float | None, words: str) -> None:
    text = page([outcome("a", "waiting")], running=True, left_s=left, seconds=700.0)
    assert f"Running for 12 min, {words}. Written 2" in text
    assert "**0 of 1 slides complete**, 1 waiting." in text
    assert section(text, "Needs attention") == []


def test_causes_differing_only_in_names_and_numbers_are_grouped() -> None:
    causes = {f"s{n}": f"slides/s{n}.tif: tile {n} of level {n + 1} is damaged" for n in range(14)}
    outcomes = [
        outcome("other", "failed", "something else"),
        *(outcome(key, "failed", why) for key, why in causes.items()),
    ]
    lines = section(page(outcomes, command="overtile segment slides"), "Needs attention")
    assert lines[0] == "- **14 slides failed** at ingest: tile 0 of level 1 is damaged"
    assert lines[1] == f"  ({', '.join(f's{n}' for n in range(10))} and 4 more)"
    assert lines[2].startswith("- **1 slide failed** at ingest: something else")
    assert "    overtile segment slides" in lines


def test_waiting_slide_with_a_cause_needs_attention() -> None:
    lines = section(page([outcome("a", "waiting", "no space below outputs.max_gb")]), "Needs attention")
    assert lines[0] == "- **1 slide waiting** at ingest: no space below outputs.max_gb"


def test_flags_and_warnings_list_their_slides() -> None:
    one = record("a", flags=["blurred", "pen", "enlarged"], warnings=["slides/a.tif: enlarged 1.5 times"])
    two = record("b", flags=["pen"], warnings=["slides/b.tif: enlarged 2.0 times"])
    lines = section(page([outcome("a"), outcome("b")], one, two), "Needs attention")
    assert lines == [
        "- **1 slide flagged blurred**: a",
        "- **2 slides flagged pen**: a, b",
        "- 2 slides: for example enlarged 1.5 times (a, b)",
    ]


def test_classes_are_summed_over_complete_slides() -> None:
    text = page([outcome("a"), outcome("b"), outcome("c", "kept")], record("a"), record("b", 50.0), record("c", 9e9))
    assert section(text, "Classes")[-1] == "| cell | 2 | 300 | 75.0 | 4.0000 | 1.0000 |"


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=30))
def test_outliers_follow_the_modified_z_score(densities: list[float]) -> None:
    keys = [f"s{number}" for number in range(len(densities))]
    text = page(list(map(outcome, keys)), *(record(key, value) for key, value in zip(keys, densities, strict=True)))
    named = {line.split(":")[0].removeprefix("- ") for line in section(text, "Outliers")}
    values = np.array(densities)
    distance = np.abs(values - np.median(values))
    spread = float(np.median(distance))
    far = distance * 0.6745 / spread > FAR if spread > 0 and len(values) >= 5 else np.zeros(len(values), bool)
    expected = {key for key, is_far in zip(keys, far, strict=True) if is_far}
    assert named <= expected
    assert len(named) == min(10, len(expected))


def test_slides_of_different_models_are_not_compared() -> None:
    keys = [f"s{number}" for number in range(12)]
    records = [record(key, 100.0 + number, model="m") for number, key in enumerate(keys[:6])]
    records += [record(key, 9000.0 + number, model="n") for number, key in enumerate(keys[6:])]
    assert section(page(list(map(outcome, keys)), *records), "Outliers") == []


MARKUP = ["<script>", "a|b", "`c`", "[x](javascript:1)", "![x](http://y)", "\x1b[2J", "**bold**", "&lt;"]


@pytest.mark.parametrize("text", MARKUP)
def test_names_and_causes_are_escaped(text: str) -> None:
    outcomes = [outcome(text), outcome("b", "failed", text)]
    shown = page(outcomes, record(text, flags=[text], warnings=[text], model=text))
    assert "<script" not in shown
    assert "\x1b" not in shown
    assert "**bold" not in shown
    assert "`c`" not in shown
    assert "[x](" not in shown.replace("\\[x](", "")
    rows = [line for line in section(shown, "Slides") if line.startswith("| ")]
    assert {line.count("|") - line.count("\\|") for line in rows} == {7}
