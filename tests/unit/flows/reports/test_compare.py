"""Comparison of two results: numbers equal numpy on whole arrays, incomparable slides are listed, names are escaped."""

from __future__ import annotations

import csv
import io
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas
import pytest
import zarr
from numpy.typing import NDArray
from PIL import Image

from flows.reports.compare import COLUMNS, ResultComparison, compare
from flows.reports.compare_html import PANELS, content_of
from pipeline.errors import ConfigError
from pipeline.runs.prune import prune_slide
from pipeline.storage.manifest import read_manifest, rewrite
from pipeline.storage.slide_store import SlideStore
from tests.support.commands import Command
from tests.support.run_slide import plans_of_discs, run
from tests.unit.flows.reporting import assert_alone

CLASSES = ("red cell", "blue cell")
HOSTILE = "<img src=x onerror=alert(1)>"


@dataclass(frozen=True)
class TwoResults:
    """Two results folders and the classes of their differing slide."""

    outs: tuple[Path, Path]

    def classes(self, side: int) -> NDArray[np.int64]:
        """Class of each pixel from the whole label array and the table; 0 for background."""
        root = self.outs[side] / "discs"
        labels = np.asarray(zarr.open_array(root / "slide.ome.zarr/labels/objects/0", mode="r")[:])
        table = pandas.read_parquet(root / "objects.parquet", columns=["id", "class"])
        number = {name: code for code, name in enumerate(CLASSES, start=1)}
        of_id = np.zeros(labels.max() + 1, np.int64)
        of_id[table["id"]] = [number[name] for name in table["class"]]
        return of_id[labels]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> TwoResults:
    folder = tmp_path_factory.mktemp("two")
    plan = plans_of_discs(folder, (300, 1100))
    outs = folder / "first", folder / "second"
    run(plan(), outs[0] / "discs")
    shutil.copytree(outs[0] / "discs", outs[1] / "discs")
    run(plan("objects.open_um={blue cell: 15}"), outs[1] / "discs")
    for key in ("same", HOSTILE, "pruned", "coarser", "begun"):
        for out in outs:
            shutil.copytree(outs[0] / "discs", out / key)
    shutil.copytree(outs[0] / "discs", outs[0] / "=new")
    prune_slide(SlideStore(outs[1] / "pruned"), {"tables", "image"})
    (outs[0] / "begun" / "manifest.json").unlink()
    coarser = SlideStore(outs[1] / "coarser")
    manifest = read_manifest(coarser)
    assert manifest is not None
    manifest["plan"]["image"]["mpp"] = 1.0
    rewrite(coarser, manifest)
    return TwoResults(outs)


@pytest.fixture(scope="module")
def comparison(two: TwoResults) -> ResultComparison:
    compared_keys: list[str] = []
    found = compare(two.outs, lambda slide: compared_keys.append(slide.key))
    assert (
        compared_keys
        == [slide.key for slide in found.slides]
        == sorted(["discs", "same", HOSTILE, "pruned", "coarser", "begun"])
    )
    return found


def test_numbers_equal_those_of_whole_arrays(two: TwoResults, comparison: ResultComparison) -> None:
    first, second = (two.classes(side) for side in (0, 1))
    (discs,) = (one for one in comparison.slides if one.key == "discs")
    both = ((first > 0) & (second > 0)).sum()
    assert discs.row.dice == 2 * both / ((first > 0).sum() + (second > 0).sum())
    assert 0.5 < discs.row.dice < 1
    for number, (name, row) in enumerate(zip(CLASSES, discs.class_rows, strict=True), start=1):
        one, other = first == number, second == number
        assert row.name == name
        assert row.dice == 2 * (one & other).sum() / (one.sum() + other.sum())
    counts = [len(pandas.read_parquet(out / "discs" / "objects.parquet")) for out in two.outs]
    assert list(discs.row.counts) == counts
    assert counts[0] > counts[1]
    assert discs.row.count_change == counts[1] / counts[0] - 1
    assert discs.row.areas_mm2 == pytest.approx([(one > 0).sum() * 0.5**2 / 1e6 for one in (first, second)])
    assert [one.key for one in comparison.worst()] == ["discs", HOSTILE, "same"]
    assert [one.row.dice for one in comparison.worst()[1:]] == [1.0, 1.0]


def test_incomparable_slides_are_listed_with_the_reason(two: TwoResults, comparison: ResultComparison) -> None:
    notes = {one.key: one.note for one in comparison.slides if one.agreement is None}
    assert notes == {
        "begun": f"not complete in {two.outs[0]}",
        "pruned": f"labels pruned in {two.outs[1]}",
        "coarser": "expected the same pixel grid in both, found 1100 x 300 px at 0.5 um/px and 1100 x 300 px at "
        "1 um/px: different slides, or models of different resolutions",
    }
    assert comparison.only == (("=new",), ())
    assert not comparison.whole
    apart = two.outs[0].parent / "apart"
    shutil.copytree(two.outs[0] / "=new", apart / "=new")
    with pytest.raises(ConfigError, match="expected common slides, found none; in one only: =new, <img"):
        compare((apart, two.outs[1]), lambda _: None)


def test_differing_settings_are_listed(comparison: ResultComparison) -> None:
    assert comparison.differences() == [
        ("objects.open_um", "0.0", "{'blue cell': 15.0}", 1),
        ("um per px", "0.5", "1", 1),
    ]


def test_command_writes_a_self_contained_page_and_a_table(
    two: TwoResults, overtile_alone: Command, tmp_path: Path
) -> None:
    ran = overtile_alone.run("compare", *two.outs, "--to", tmp_path)
    assert ran.code == 3, ran.transcript
    assert "same  Dice 1.0000" in ran.stdout
    assert f"pruned  labels pruned in {two.outs[1]}" in ran.stdout
    page = assert_alone(tmp_path / "report.html")
    assert "objects.open_um" in page.text
    assert f"only in {two.outs[0]}" in page.text
    assert HOSTILE in page.text
    assert page.tags.count("img") == 4, "one slide differs"
    rows = list(csv.DictReader(io.StringIO((tmp_path / "slides.csv").read_text())))
    assert tuple(rows[0]) == COLUMNS
    assert [row["slide"] for row in rows if row["class"] == CLASSES[1]] == sorted(["discs", "same", HOSTILE])
    assert {row["slide"]: row["dice"] for row in rows if not row["class"]}["same"] == "1.0"
    assert rows[-1]["slide"] == "'=new", "inert in a spreadsheet"
    assert rows[-1]["note"] == f"only in {two.outs[0]}"


def test_pictures_show_both_results_where_they_differ(two: TwoResults, comparison: ResultComparison) -> None:
    content = content_of(comparison)
    ((row, pictures),) = content["worst"]
    assert row["key"] == "discs"
    assert len(pictures) == len(PANELS) == 4
    (discs,) = (one for one in comparison.slides if one.key == "discs")
    cell = discs.agreement.place if discs.agreement else None
    assert cell is not None
    near = [np.asarray(Image.open(io.BytesIO(picture.jpeg))).astype(int) for picture in pictures[2:]]
    assert near[0].shape == (*cell.shape, 3)
    changed = np.abs(near[0] - near[1]).sum(axis=-1) > 60
    differs = (two.classes(0) != two.classes(1))[cell.slices]
    assert (changed & differs).sum() > 0.9 * differs.sum() > 0
    assert (changed & ~differs).sum() < 0.2 * differs.sum(), "JPEG rings around edges"
