"""Pages, histograms and CSV of the viewer's object table compared with sorting all rows."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.view.objects_table import COLUMNS, NUMBERS, ROWS, Filter, ViewedObjects
from pipeline.storage.slide_store import SlideStore
from tests.support.make_store import put_objects

SEED = 20261122


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ViewedObjects:
    """A table with many ties."""
    store = SlideStore(tmp_path_factory.mktemp("table"))
    rng = np.random.default_rng(SEED)
    labels = np.zeros((90, 90), np.uint32)
    places = rng.permutation(30 * 30)[:230]
    for identity, at in enumerate(places, 1):
        y, x = divmod(int(at), 30)
        labels[3 * y : 3 * y + 1 + identity % 2, 3 * x : 3 * x + 1 + identity % 3] = identity
    put_objects(store, labels, {"a": range(1, 100), "=b": range(100, 231)}, 0.5)
    return ViewedObjects.read(store.root / "objects.parquet", ("a", "=b"))


def chosen_by_hand(path: Path, chosen: Filter) -> list[dict[str, Any]]:
    rows = pq.read_table(path).to_pylist()
    if chosen.ids:
        return [row for row in rows if row["id"] in chosen.ids]
    for name, least, most in chosen.bounds():
        rows = [row for row in rows if least is None or row[name] >= least]
        rows = [row for row in rows if most is None or row[name] <= most]
    return rows


FILTERS = st.builds(
    Filter,
    *(st.one_of(st.none(), st.sampled_from([0.25, 0.5, 0.75, 1.0, 1.5])),) * 2,
    *(st.one_of(st.none(), st.floats(0.4, 1)),) * 2,
    st.one_of(st.just(()), st.lists(st.integers(1, 300), max_size=4).map(tuple)),
)


@given(FILTERS, st.sampled_from(COLUMNS), st.booleans(), st.integers(0, 5))
@settings(deadline=None, max_examples=150)
def test_pages_equal_pages_of_all_rows_sorted(
    table: ViewedObjects, chosen: Filter, column: str, descending: bool, number: int
) -> None:
    rows = chosen_by_hand(table.path, chosen)
    codes = {"a": 0, "=b": 1}
    key = {row["id"]: codes[row["class"]] if column == "class" else row[column] for row in rows}
    rows.sort(key=lambda row: (-key[row["id"]] if descending else key[row["id"]], row["id"]))
    found = table.page(chosen, f"-{column}" if descending else column, number)
    assert found["total"] == len(rows)
    shown = rows[number * ROWS : (number + 1) * ROWS]
    assert [row["id"] for row in found["rows"]] == [row["id"] for row in shown]
    for mine, theirs in zip(found["rows"], shown, strict=True):
        assert mine["class"] == theirs["class"]
        assert all(mine[name] == pytest.approx(theirs[name], abs=1e-4) for name in NUMBERS)


@given(FILTERS)
@settings(deadline=None, max_examples=40)
def test_csv_has_every_column_of_the_selected_objects(table: ViewedObjects, chosen: Filter) -> None:
    rows = chosen_by_hand(table.path, chosen)
    text = b"".join(table.csv(chosen)).decode()
    read = list(csv.DictReader(io.StringIO(text)))
    assert text.count('"id"') == 1
    assert [int(row["id"]) for row in read] == [row["id"] for row in rows]
    for mine, theirs in zip(read, rows, strict=True):
        assert mine["class"] == {"a": "a", "=b": "'=b"}[theirs["class"]], "no formula in a spreadsheet"
        assert float(mine["area_um2"]) == theirs["area_um2"]
        assert float(mine["bbox_x1_px"]) == theirs["bbox_x1_px"]


def test_histograms_count_every_object_once(table: ViewedObjects) -> None:
    chosen = Filter(least_area=0.5)
    rows = chosen_by_hand(table.path, chosen)
    found = table.histograms(chosen)
    for name, edges_end in (("area_um2", max(row["area_um2"] for row in rows)), ("mean_probability", 1.0)):
        counts, edges = found[name]["counts"], found[name]["edges"]
        assert sum(counts) == len(rows)
        assert (edges[0], edges[-1]) == (0, edges_end)
        values = np.array([row[name] for row in rows])
        assert counts == np.histogram(values, np.array(edges))[0].tolist()
    empty = table.histograms(Filter(least_area=1e6))
    assert sum(empty["area_um2"]["counts"]) == 0
    assert table.row(0) is None
    assert table.row(231) is None
