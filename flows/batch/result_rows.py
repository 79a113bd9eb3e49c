"""results.csv: one row for each slide, region and class.

Every number is taken from a slide's manifest, and every requested slide has a row. A slide that is not complete has one
row with its state and empty numbers; zero objects are a row with count 0.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.printable import printable

Cell = str | int | float | None
Row = dict[str, Cell]

FACTS = (
    *("tissue_mm2", "area_mm2", "fraction", "count", "density_per_mm2"),
    *("mean_area_um2", "area_um2_q25", "area_um2_median", "area_um2_q75"),
    *("mean_probability", "probability_q25", "probability_median", "probability_q75"),
    *("flags", "model", "sha256", "plan", "mpp", "state"),
)
COLUMNS = ("slide", "region", "class", *FACTS)
"""All columns except those of the cases table, which come after ``slide``."""

HASH_DIGITS = 12
ENLARGED = 1 / 1.05
"""Least pixels of level 0 per pixel of the image; images below it were enlarged by interpolation."""
ENLARGED_FLAG = "enlarged"
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.ASCII | re.IGNORECASE)


def manifest_rows(manifest: Mapping[str, Any]) -> list[Row]:
    """The rows of a complete slide. Without measured objects there is one row per region, with tissue only.

    Areas are those of the image at ``mpp``. Density and fraction are relative to tissue, and empty without tissue.
    """
    plan, stages = manifest["plan"], manifest["stages"]
    hashes = plan["hashes"]
    same = {
        "flags": ";".join(flags(manifest)),
        "model": plan["model"]["name"],
        "sha256": plan["model"]["sha256"][:HASH_DIGITS],
        "plan": hashes["measure" if "measure" in hashes else "predict"][:HASH_DIGITS],
        "mpp": plan["image"]["mpp"],
    }
    tissue_mm2 = tissue_areas_mm2(manifest)
    measured = (
        _measured(stages["measure"]["facts"]) if "measure" in stages else [{"region": name} for name in tissue_mm2]
    )
    return [_class_row(found, tissue_mm2[found["region"]]) | same for found in measured]


def _measured(facts: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Measures by region and class. Version 0.1.0 stored counts and areas only; other measures are then empty."""
    if "rows" in facts:
        rows: Sequence[Mapping[str, Any]] = facts["rows"]
        return rows
    unknown = dict.fromkeys(("area_um2_quartiles", "mean_probability", "probability_quartiles"))
    areas = facts["area_um2"]
    return [
        {"region": None, "class": name, "count": count, "area_um2": areas[name], **unknown}
        | {"mean_area_um2": areas[name] / count if count else None}
        for name, count in facts["objects"].items()
    ]


def _class_row(found: Mapping[str, Any], tissue_mm2: float) -> Row:
    region = {"region": found["region"], "tissue_mm2": tissue_mm2}
    if "class" not in found:
        return region
    area_mm2, count = found["area_um2"] / 1e6, found["count"]
    numbers = {
        "area_mm2": area_mm2,
        "fraction": area_mm2 / tissue_mm2 if tissue_mm2 else None,
        "count": count,
        "density_per_mm2": count / tissue_mm2 if tissue_mm2 else None,
        "mean_area_um2": found["mean_area_um2"],
        "mean_probability": found["mean_probability"],
    }
    areas, probabilities = found["area_um2_quartiles"], found["probability_quartiles"]
    quartiles = _quartiles("area_um2", areas) | _quartiles("probability", probabilities)
    return region | {"class": found["class"]} | numbers | quartiles


def _quartiles(name: str, values: Sequence[float] | None) -> Row:
    names = (f"{name}_q25", f"{name}_median", f"{name}_q75")
    return dict(zip(names, values or (None, None, None), strict=True))


def tissue_areas_mm2(manifest: Mapping[str, Any]) -> dict[str | None, float]:
    """Tissue area in mm2 by region, or of the slide (None) where no regions are drawn."""
    plan, facts = manifest["plan"], manifest["stages"]["tissue"]["facts"]
    drawn = plan.get("regions")
    pixels = dict(zip(drawn["names"], facts["region_tissue_px"], strict=True)) if drawn else {None: facts["tissue_px"]}
    return {region: px * plan["image"]["mpp"] ** 2 / 1e6 for region, px in pixels.items()}


def flags(manifest: Mapping[str, Any]) -> list[str]:
    """Quality flags of all stages, and ``enlarged`` for an interpolated image."""
    found = [flag for stage in manifest["stages"].values() for flag in stage["facts"].get("flags", ())]
    if min(manifest["plan"]["image"]["level0_from_image_yx"]) < ENLARGED:
        found.append(ENLARGED_FLAG)
    return list(dict.fromkeys(found))


def results_csv(rows: Iterable[Row], cases: Iterable[Mapping[str, str]]) -> str:
    """All rows as CSV. Numbers are written with full precision; text is never a formula in a spreadsheet.

    Args:
        rows: Rows of all slides.
        cases: For each row, the columns of its slide in the cases table. A column with the name of another column
            gets the prefix ``case_``.
    """
    pairs = list(zip(rows, cases, strict=True))
    names = dict.fromkeys(name for _, case in pairs for name in case)
    titles = _titles(list(names))
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([_text("slide"), *map(_text, titles.values()), *COLUMNS[1:]])
    for row, case in pairs:
        own = [_cell(row.get(name)) for name in COLUMNS]
        writer.writerow([own[0], *(_case_cell(case.get(name, "")) for name in titles), *own[1:]])
    return text.getvalue()


def _titles(names: Sequence[str]) -> dict[str, str]:
    """Unique titles of the columns of the cases table."""
    titles: dict[str, str] = {}
    for name in names:
        title = name
        while title in COLUMNS or title in titles.values() or (title != name and title in names):
            title = f"case_{title}"
        titles[name] = title
    return titles


def _cell(value: Cell) -> str:
    if isinstance(value, str):
        return _text(value)
    return "" if value is None else repr(value)


def _case_cell(text: str) -> str:
    """A cell of the cases table; a signed number is no formula."""
    return text if _NUMBER.fullmatch(text) else _text(text)


def _text(text: str) -> str:
    return inert(printable(text))


def inert(cell: str) -> str:
    """Text that a spreadsheet does not interpret as a formula."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@")) else cell
