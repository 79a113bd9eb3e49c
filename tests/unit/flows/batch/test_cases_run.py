"""A run with a cases table: slides with their own models and resolutions equal runs of each alone.

The numbers in results.csv are computed again from labels, table and manifest by independent code.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import zarr

from tests.support.commands import CLASSES, CONTEXT, Command, Ran, result_digests
from tests.support.faults.pictures import BLUE, DARK, RED, Disc, draw, red_and_blue, write

PATIENT = "Patient-4711-secret"
TABLE = f"""slide;model;mpp;patient;stain;priority;count;delta;regions
red.tif;;;{PATIENT};=HYPERLINK("x");;x;-0.5;
deep/dots;networks/context.safetensors;0.3;;IHC, weak;2.5;y;+1e-3;
red-fine.tif;;0.25;{PATIENT};@a;;;;
drawn.tif;;;;;-1;;;drawn/two.geojson
gone/away.svs;;;{PATIENT};;;;;
"""
OPTIONS = ("cluster.kind=serial", "tiles.block=512", "compute.precision=fp32", "tissue.min_area_um2=100.0")
SHAPE = (600, 1100)
BOXES = {"left": (0, 500), "right": (601, 1100)}
"""Regions of the slide ``drawn``: from and to which column they reach."""


@dataclass(frozen=True)
class CasesRun:
    """The result of the batch and its slides."""

    folder: Path
    ran: Ran

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def results(self) -> pd.DataFrame:
        return pd.read_csv(self.out / "results.csv", keep_default_na=False, na_values=[""])


@pytest.fixture(scope="module")
def cases_run(overtile: Command, tmp_path_factory: pytest.TempPathFactory) -> CasesRun:
    folder = tmp_path_factory.mktemp("cases")
    dark = [Disc(disc.y, disc.x, 12, DARK) for disc in red_and_blue(SHAPE, period_px=120)]
    write(folder / "slides" / "red.tif", draw(SHAPE, red_and_blue(SHAPE)))
    write(folder / "slides" / "red-fine.tif", draw(SHAPE, [Disc(200, 300, 90, RED), Disc(480, 700, 60, RED)]))
    write(folder / "slides" / "deep" / "dots.tif", draw(SHAPE, dark), mpp=None)
    write(folder / "slides" / "not-asked.tif", draw((100, 100), [Disc(50, 50, 20, BLUE)]))
    write(folder / "slides" / "drawn.tif", draw(SHAPE, red_and_blue(SHAPE)))
    draw_regions(folder / "tables" / "drawn" / "two.geojson")
    (folder / "tables" / "networks").mkdir(parents=True)
    shutil.copy(CONTEXT, folder / "tables" / "networks" / "context.safetensors")
    (folder / "tables" / "tonight.csv").write_text(TABLE, encoding="utf-8-sig")
    ran = segment(overtile, folder, folder / "tables" / "tonight.csv", "cluster.kind=local", "cluster.workers=2")
    return CasesRun(folder, ran)


def draw_regions(path: Path) -> None:
    """Regions as QuPath exports annotations."""
    features = []
    for name, (x0, x1) in BOXES.items():
        ring = [[x0, 0], [x1, 0], [x1, SHAPE[0]], [x0, SHAPE[0]], [x0, 0]]
        properties = {"objectType": "annotation", "name": name}
        geometry = {"type": "Polygon", "coordinates": [ring]}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def segment(overtile: Command, folder: Path, table: Path, *more: str) -> Ran:
    return overtile.segment(folder / "slides", folder / "out", "--cases", table, *OPTIONS, *more)


# ---- which slides, and how -------------------------------------------------------------------------------------------


def test_table_selects_and_orders_slides_and_missing_ones_are_named(cases_run: CasesRun) -> None:
    assert cases_run.ran.code == 3, cases_run.ran.transcript
    assert list(cases_run.ran.states().items()) == [
        ("deep/dots", "complete"),
        ("red", "complete"),
        ("red-fine", "complete"),
        ("gone/away.svs", "failed"),
        ("drawn", "complete"),
    ]
    assert "tonight.csv, line 6: no slide 'gone/away.svs'" in cases_run.ran.error_of("gone/away.svs")


@pytest.mark.parametrize(
    ("key", "model", "mpp"),
    [
        pytest.param("red", CLASSES, None, marks=pytest.mark.long),
        pytest.param("red-fine", CLASSES, "0.25", marks=pytest.mark.long),
        pytest.param("deep/dots", CONTEXT, "0.3", marks=pytest.mark.long),
    ],
)
def test_each_slide_equals_a_run_of_it_alone(
    cases_run: CasesRun, overtile: Command, tmp_path: Path, key: str, model: Path, mpp: str | None
) -> None:
    slide = (tmp_path / "slides" / key).with_suffix(".tif")
    slide.parent.mkdir(parents=True)
    shutil.copy((cases_run.folder / "slides" / key).with_suffix(".tif"), slide)
    resolution = [] if mpp is None else ["--mpp", mpp]
    ran = overtile.segment(tmp_path / "slides", tmp_path / "out", *resolution, *OPTIONS, model=model)
    assert ran.code == 0, ran.transcript
    assert result_digests(cases_run.out / key) == result_digests(tmp_path / "out" / key)


def test_patient_name_is_in_the_results_and_in_no_log(
    cases_run: CasesRun, overtile: Command, prefect_home: Path
) -> None:
    held = {path for path in files_below(cases_run.out) if PATIENT.encode() in path.read_bytes()}
    slides = ("red", "red-fine")
    allowed = {cases_run.out / "results.csv", *(cases_run.out / key / "manifest.json" for key in slides)}
    assert held == allowed | {cases_run.out / key / ".work" / "plan.json" for key in slides}
    assert PATIENT not in cases_run.ran.transcript
    homes = (overtile.folder.parent, prefect_home)
    databases = [path for home in homes for path in files_below(home) if path.suffix == ".db"]
    assert any(count_flows(path) for path in databases), "no Prefect database was looked into"
    for path in (one for database in databases for one in files_below(database.parent)):
        assert PATIENT.encode() not in path.read_bytes(), path


def files_below(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def count_flows(database: Path) -> int:
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        return int(connection.execute("select count(*) from flow_run").fetchone()[0])


# ---- results.csv -----------------------------------------------------------------------------------------------------


def test_results_have_one_row_per_slide_and_class_in_table_order(cases_run: CasesRun) -> None:
    rows = cases_run.results()
    found = rows[["slide", "region", "class", "state"]].fillna("").itertuples(index=False)
    assert [tuple(row) for row in found] == [
        ("deep/dots", "", "dark spot", "complete"),
        ("red", "", "red cell", "complete"),
        ("red", "", "blue cell", "complete"),
        ("red-fine", "", "red cell", "complete"),
        ("red-fine", "", "blue cell", "complete"),
        ("gone/away.svs", "", "", "failed"),
        *(("drawn", region, f"{colour} cell", "complete") for region in BOXES for colour in ("red", "blue")),
    ]
    missing = rows[rows["state"] == "failed"].iloc[0].dropna()
    assert missing.to_dict() == {"slide": "gone/away.svs", "patient": PATIENT, "state": "failed"}


def test_columns_of_the_table_are_copied_and_no_cell_is_a_formula(cases_run: CasesRun) -> None:
    rows = cases_run.results().groupby("slide", sort=False).first()
    carried = ["case_model", "case_mpp", "patient", "stain", "priority", "case_count", "delta", "regions"]
    assert list(rows.columns[:8]) == carried
    assert rows.loc["red", "stain"] == '\'=HYPERLINK("x")'
    assert rows.loc["red-fine", "stain"] == "'@a"
    assert rows.loc["deep/dots", "stain"] == "IHC, weak"
    assert rows.loc["red", "delta"] == -0.5
    assert rows.loc["deep/dots", "delta"] == 0.001
    assert rows.loc["red-fine", "case_mpp"] == 0.25
    assert rows.loc["red", "case_count"] == "x"


@pytest.mark.parametrize("key", ["red", "red-fine", "deep/dots", "drawn"])
def test_numbers_equal_those_computed_with_pandas(cases_run: CasesRun, key: str) -> None:
    rows, expected = cases_run.results(), recounted(cases_run.out / key)
    assert len(expected) == (rows["slide"] == key).sum()
    for row in rows[rows["slide"] == key].to_dict("records"):
        numbers = expected["" if pd.isna(row["region"]) else row["region"], row["class"]]
        found = {column: row[column] for column in numbers}
        assert {name: None if pd.isna(value) else value for name, value in found.items()} == numbers


def recounted(slide: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Numbers of each region and class from labels, object table and manifest, by pandas and NumPy."""
    manifest = json.loads((slide / "manifest.json").read_text())
    plan, mpp = manifest["plan"], manifest["plan"]["image"]["mpp"]
    objects = pd.read_parquet(slide / "objects.parquet")
    labels = np.asarray(zarr.open_array(slide / "slide.ome.zarr" / "labels" / "objects" / "0", mode="r")[:])
    ids, pixels = np.unique(labels[labels > 0], return_counts=True)
    assert ids.tolist() == objects["id"].tolist()
    flags = manifest["stages"]["tissue"]["facts"]["flags"]
    enlarged = ["enlarged"] if plan["image"]["slide_mpp"] > 1.05 * mpp else []
    tissue_px, found = tissue_of_regions(slide, manifest), {}
    for region, name in product(tissue_px, plan["model"]["spec"]["class_names"]):
        tissue_mm2 = tissue_px[region] * mpp**2 / 1e6
        mine = (objects["class"] == name).to_numpy() & (objects["region"] == region if region else True)
        count, area_mm2 = int(mine.sum()), int(pixels[mine].sum()) * mpp**2 / 1e6
        area, probability = objects["area_um2"][mine], objects["mean_probability"][mine]
        found[region, name] = {
            "tissue_mm2": tissue_mm2,
            "area_mm2": area_mm2,
            "fraction": area_mm2 / tissue_mm2,
            "count": count,
            "density_per_mm2": count / tissue_mm2,
            "mean_area_um2": float(np.mean(area.to_numpy())) if count else None,
            **quartiles("area_um2", area),
            "mean_probability": float(np.mean(probability.to_numpy())) if count else None,
            **quartiles("probability", probability),
            "flags": ";".join([*flags, *enlarged]) or None,
            "model": plan["model"]["name"],
            "sha256": plan["model"]["sha256"][:12],
            "plan": plan["hashes"]["measure"][:12],
            "mpp": mpp,
        }
    return found


def tissue_of_regions(slide: Path, manifest: dict[str, Any]) -> dict[str, int]:
    """Image pixels of the squares of tissue whose centre lies in a region; '' is the whole slide."""
    facts = manifest["stages"]["tissue"]["facts"]
    if slide.name != "drawn":
        return {"": facts["tissue_px"]}
    tissue = np.asarray(zarr.open_array(slide / "slide.ome.zarr" / "tissue", mode="r")[:])
    tops, starts = (np.arange(0, length, facts["factor"]) for length in SHAPE)
    heights, widths = (np.diff([*at, length]) for at, length in zip((tops, starts), SHAPE, strict=True))
    centres = starts + widths / 2
    inside = {region: (centres >= x0) & (centres <= x1) for region, (x0, x1) in BOXES.items()}
    return {region: int((tissue * np.outer(heights, widths))[:, mine].sum()) for region, mine in inside.items()}


def quartiles(name: str, column: pd.Series[float]) -> dict[str, float | None]:
    places = {"q25": 0.25, "median": 0.5, "q75": 0.75}
    return {
        f"{name}_{place}": float(column.quantile(share)) if len(column) else None for place, share in places.items()
    }


def test_class_without_objects_has_count_zero(cases_run: CasesRun) -> None:
    rows = cases_run.results()
    (row,) = rows[(rows["slide"] == "red-fine") & (rows["class"] == "blue cell")].to_dict("records")
    assert (row["count"], row["area_mm2"], row["fraction"], row["density_per_mm2"]) == (0, 0.0, 0.0, 0.0)
    assert pd.isna([row["mean_area_um2"], row["area_um2_median"], row["mean_probability"]]).all()


# ---- later runs ------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_changed_metadata_reaches_the_results_without_computing(
    cases_run: CasesRun, overtile: Command, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(cases_run.folder, tmp_path / "again", symlinks=True))
    table = folder / "tables" / "tonight.csv"
    table.write_text(TABLE.replace("IHC, weak", "IHC, strong").replace("gone/away.svs", "not-asked"), "utf-8")
    before = {key: result_digests(folder / "out" / key) for key in ("red", "red-fine", "deep/dots", "drawn")}
    ran = segment(overtile, folder, table)
    assert ran.code == 0, ran.transcript
    assert {key: sum(ran.computed(key).values()) for key in before} == dict.fromkeys(before, 0)
    assert {key: result_digests(folder / "out" / key) for key in before} == before
    assert overtile.run("verify", folder / "out").code == 0
    again = overtile.segment(folder / "slides" / "red.tif", folder / "out", *OPTIONS)
    assert again.code == 0, again.transcript
    rows = CasesRun(folder, again).results().groupby("slide", sort=False).first()
    others = ["deep/dots", "drawn", "not-asked", "red-fine"]
    assert list(rows.index) == ["red", *others], "asked for first, then what lies there"
    assert rows.loc["deep/dots", "stain"] == "IHC, strong"
    assert rows.loc["red", "patient"] == PATIENT


def test_summary_lists_failures_first(cases_run: CasesRun) -> None:
    page = (cases_run.out / "summary.md").read_text()
    lines = page.splitlines()
    assert lines[2] == "**4 of 5 slides complete**, 1 failed."
    attention = page[page.index("## Needs attention") : page.index("## Slides")]
    assert "no slide 'gone/away.svs'" in attention
    assert "    overtile segment " in attention
    assert "- 1 slide: enlarged 1.20 times" in attention
    assert "(deep/dots)" in attention
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ")][1:6] == [
        f"| {key}" for key in ("deep/dots", "red", "red-fine", "gone/away.svs", "drawn")
    ]


# ---- refused as a whole ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("slide,mpp\nred.tif,1000\n", ["line 2", "0.05 to 10"]),
        ("slide,model\nred.tif,\nred-fine.tif,nuclie\n", ["line 3", "nuclie", "nuclei@1"]),
        ("slide,model\nred.tif,networks/gone.safetensors\n", ["line 2", "networks/gone.safetensors"]),
        ("slide\nred.tif\nred\n", ["line 3", "line 2"]),
        ("slide\nabsent\n", ["line 2", "no slide 'absent'"]),
    ],
)
def test_invalid_table_starts_nothing(
    cases_run: CasesRun, overtile_alone: Command, tmp_path: Path, text: str, words: list[str]
) -> None:
    table = tmp_path / "wrong.csv"
    table.write_text(text)
    ran = overtile_alone.segment(cases_run.folder / "slides", tmp_path / "out", "--cases", table, *OPTIONS)
    assert ran.code == 2, ran.transcript
    for word in ("wrong.csv", *words):
        assert word in ran.only_error
    assert not (tmp_path / "out").exists()


def test_dry_run_writes_nothing(cases_run: CasesRun, overtile_alone: Command, tmp_path: Path) -> None:
    table = cases_run.folder / "tables" / "tonight.csv"
    ran = overtile_alone.segment(cases_run.folder / "slides", tmp_path / "out", "--cases", table, "--dry-run", *OPTIONS)
    assert ran.code == 0, ran.transcript
    assert "deep/dots" in ran.stdout
    assert not (tmp_path / "out").exists()
