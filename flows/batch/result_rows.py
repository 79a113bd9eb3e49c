"""results.csv: one row for each slide, region and class, for whoever does the statistics.

The one decision made here: every number is taken from a slide's manifest, and a slide is never silently missing. One
that is not complete has one row that says so, with empty cells for numbers; zero objects are a row with count 0.
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
"""All but the cases table's, which stand after ``slide``."""

HASH_DIGITS = 12
ENLARGED = 1 / 1.05
"""An image whose pixels span less of the slide's than this was interpolated."""
ENLARGED_FLAG = "enlarged"
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.ASCII | re.IGNORECASE)


def manifest_rows(manifest: Mapping[str, Any]) -> list[Row]:
    """The rows of a complete slide. Without objects there is one for each region, of tissue alone.

    Areas are of the image at ``mpp``; density and fraction are of tissue, and empty where there is none.
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
    """What was measured of each region and class. Version 0.1.0 noted counts and areas only: the rest stays empty."""
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
    place = {"region": found["region"], "tissue_mm2": tissue_mm2}
    if "class" not in found:
        return place
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
    return place | {"class": found["class"]} | numbers | quartiles


def _quartiles(name: str, values: Sequence[float] | None) -> Row:
    places = (f"{name}_q25", f"{name}_median", f"{name}_q75")
    return dict(zip(places, values or (None, None, None), strict=True))


def tissue_areas_mm2(manifest: Mapping[str, Any]) -> dict[str | None, float]:
    """Tissue of each region; of the whole slide (None) where none are drawn."""
    plan, facts = manifest["plan"], manifest["stages"]["tissue"]["facts"]
    drawn = plan.get("regions")
    pixels = dict(zip(drawn["names"], facts["region_tissue_px"], strict=True)) if drawn else {None: facts["tissue_px"]}
    return {region: px * plan["image"]["mpp"] ** 2 / 1e6 for region, px in pixels.items()}


def flags(manifest: Mapping[str, Any]) -> list[str]:
    """What a slide's numbers should be read with caution for: every stage's flags, and ``enlarged``."""
    found = [flag for stage in manifest["stages"].values() for flag in stage["facts"].get("flags", ())]
    if min(manifest["plan"]["image"]["level0_from_image_yx"]) < ENLARGED:
        found.append(ENLARGED_FLAG)
    return list(dict.fromkeys(found))


def results_csv(rows: Iterable[Row], cases: Iterable[Mapping[str, str]]) -> str:
    """All rows as CSV. Numbers read back as the numbers they are, text is inert in a spreadsheet.

    ``cases`` holds, for each row, what the cases table says of its slide. A column of the table that is called like
    one of these is called ``case_`` and its name.
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
    """What each column of the cases table is called here: no two columns alike."""
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
    """A number of the user's is no formula, whatever its sign."""
    return text if _NUMBER.fullmatch(text) else _text(text)


def _text(text: str) -> str:
    return inert(printable(text))


def inert(cell: str) -> str:
    """Text that a spreadsheet does not take for a formula."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@")) else cell
