"""Comparison of two results folders: slides in both, differing settings, and agreement of their objects.

Pixels are compared as they are or not at all. Results with other sizes or resolutions, without objects or with pruned
labels are listed with the reason; they are never resampled or cropped.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flows.batch.result_records import run_settings, slides_of
from flows.batch.result_rows import inert, manifest_rows
from pipeline.errors import ConfigError, StoreError
from pipeline.evaluation.agreement import Agreement, Codes, compare_labels
from pipeline.objects.table_reader import read_objects
from pipeline.printable import printable
from pipeline.storage.layout import OBJECTS, TABLE
from pipeline.storage.manifest import read_manifest
from pipeline.storage.slide_store import SlideStore

SAME_MPP = 1e-6
COLUMNS = (
    *("slide", "class", "dice", "count_1", "count_2", "count_change"),
    *("area_mm2_1", "area_mm2_2", "area_change", "note"),
)


@dataclass(frozen=True, slots=True)
class Side:
    """One of two results of a slide: the parts of its manifest that describe the run and its results."""

    store: SlideStore
    manifest: Mapping[str, Any]

    @property
    def plan(self) -> Mapping[str, Any]:
        """The plan of the run."""
        found: Mapping[str, Any] = self.manifest["plan"]
        return found

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the object classes."""
        return tuple(self.plan["model"]["spec"]["class_names"])

    def totals(self, name: str | None) -> tuple[int, float]:
        """Number and area (mm2) of the objects of a class; of all classes if ``name`` is None."""
        rows = [row for row in manifest_rows(self.manifest) if "class" in row and name in (None, row["class"])]
        return sum(int(row["count"] or 0) for row in rows), sum(float(row["area_mm2"] or 0) for row in rows)

    def settings(self) -> Iterator[tuple[str, str]]:
        """Yield name and value of every setting of the run."""
        plan, model = self.plan, self.plan["model"]
        yield "model", f"{model['name']} {model['sha256'][:12]}"
        yield "threshold", f"{plan['threshold']:g}"
        yield "minimum object area, um2", f"{plan.get('min_area_um2', 0):g}"
        yield "um per px", f"{plan['image']['mpp']:g}"
        settings = {"compute": plan["compute"], **plan["config"]}
        yield from ((name, str(value)) for name, value in run_settings(settings))
        yield from ((f"version of {name}", str(version)) for name, version in self.manifest["software"].items())


@dataclass(frozen=True, slots=True)
class ComparedRow:
    """Dice, and number and area (mm2) of objects in both results, of a slide or of one class."""

    name: str
    dice: float | None
    counts: tuple[int, int]
    areas_mm2: tuple[float, float]

    @property
    def count_change(self) -> float | None:
        """Relative change from the first to the second; None if the first has no objects."""
        return _change(*self.counts)

    @property
    def area_change(self) -> float | None:
        """Relative change from the first to the second; None if the first has no objects."""
        return _change(*self.areas_mm2)


def _change(first: float, second: float) -> float | None:
    return second / first - 1 if first else None


@dataclass(frozen=True, slots=True)
class Compared:
    """A slide that is in both folders. ``agreement`` is None if it cannot be compared; ``note`` gives the reason."""

    key: str
    sides: tuple[Side, Side] | None
    agreement: Agreement | None
    note: str = ""

    @property
    def row(self) -> ComparedRow:
        """Comparison of all objects."""
        assert self.agreement is not None, "only compared slides have numbers"
        return self._row(self.key, self.agreement.dice, None)

    @property
    def class_rows(self) -> list[ComparedRow]:
        """Comparison of each class; empty if the classes differ."""
        if self.sides is None or self.agreement is None or self.sides[0].class_names != self.sides[1].class_names:
            return []
        names = self.sides[0].class_names
        if len(self.agreement.pixels) != len(names) + 1:
            return []
        return [self._row(name, self.agreement.dice_of(number), name) for number, name in enumerate(names, start=1)]

    def _row(self, name: str, dice: float | None, class_name: str | None) -> ComparedRow:
        assert self.sides is not None, "only compared slides have numbers"
        (count, area), (other_count, other_area) = (side.totals(class_name) for side in self.sides)
        return ComparedRow(name, dice, (count, other_count), (area, other_area))


@dataclass(frozen=True, slots=True)
class ResultComparison:
    """Comparison of two folders: slides in both, ordered by key, and the keys found in one only."""

    outs: tuple[Path, Path]
    slides: tuple[Compared, ...]
    only: tuple[tuple[str, ...], tuple[str, ...]]

    @property
    def compared(self) -> list[Compared]:
        """Slides whose pixels were compared."""
        return [slide for slide in self.slides if slide.agreement is not None]

    @property
    def whole(self) -> bool:
        """Whether every slide of both folders was compared."""
        return len(self.compared) == len(self.slides) and not any(self.only)

    def worst(self) -> list[Compared]:
        """Compared slides in order of increasing Dice; those without objects in either folder are last."""
        return sorted(self.compared, key=lambda one: (one.row.dice is None, one.row.dice or 0.0, one.key))

    def differences(self) -> list[tuple[str, str, str, int]]:
        """Return the settings that differ: name, first value, second value, number of slides."""
        found: Counter[tuple[str, str, str]] = Counter()
        for one in self.slides:
            if one.sides is not None:
                first, second = (dict(side.settings()) for side in one.sides)
                for name in sorted({*first, *second}):
                    values = first.get(name, "not set"), second.get(name, "not set")
                    found[(name, *values)] += values[0] != values[1]
        return [(*key, number) for key, number in sorted(found.items()) if number]


def compare(outs: tuple[Path, Path], done: Callable[[Compared], object]) -> ResultComparison:
    """Compare the results in two folders.

    Args:
        outs: The two folders.
        done: Called with each slide that is in both, after its comparison.

    Raises:
        ConfigError: If one folder holds no results or no slide is in both.
    """
    first, second = (slides_of(out) for out in outs)
    keys = sorted(first.keys() & second.keys())
    if not keys:
        examples = ", ".join((*sorted(first)[:3], *sorted(second)[:3]))
        raise ConfigError(f"{outs[0]} and {outs[1]}: expected common slides, found none; in one only: {examples}")
    slides = []
    for key in keys:
        slides.append(_compare(key, (first[key], second[key]), outs))
        done(slides[-1])
    only = tuple(sorted(first.keys() - second.keys())), tuple(sorted(second.keys() - first.keys()))
    return ResultComparison(outs, tuple(slides), only)


def _compare(key: str, stores: tuple[SlideStore, SlideStore], outs: tuple[Path, Path]) -> Compared:
    sides = None
    try:
        first, second = (_side(store, out) for store, out in zip(stores, outs, strict=True))
        sides = first, second
        _require_same_pixels(first, second)
        labels = first.store.read(OBJECTS), second.store.read(OBJECTS)
        return Compared(key, sides, compare_labels(*labels, _codes(sides)))
    except StoreError as error:
        return Compared(key, sides, None, str(error))


def _side(store: SlideStore, out: Path) -> Side:
    """Open one side.

    Raises:
        StoreError: If it cannot be compared.
    """
    manifest = read_manifest(store)
    if manifest is None:
        raise StoreError(f"not complete in {out}")
    if "label" not in manifest["plan"]["hashes"]:
        raise StoreError(f"no objects in {out}: they were disabled in the configuration")
    if not (store.zarr / OBJECTS).exists() and "pruned" in manifest:
        raise StoreError(f"labels pruned in {out}")
    return Side(store, {name: manifest[name] for name in ("plan", "stages", "software")})


def _require_same_pixels(first: Side, second: Side) -> None:
    images = [side.plan["image"] for side in (first, second)]
    shapes, scales = ([image[name] for image in images] for name in ("shape_yx", "mpp"))
    if shapes[0] != shapes[1] or abs(scales[1] / scales[0] - 1) > SAME_MPP:
        sizes = " and ".join(f"{x} x {y} px at {mpp:g} um/px" for (y, x), mpp in zip(shapes, scales, strict=True))
        raise StoreError(
            f"expected the same pixel grid in both, found {sizes}: different slides, or models of different resolutions"
        )


def _codes(sides: tuple[Side, Side]) -> tuple[Codes, Codes] | None:
    """Class code by object id for both sides; None if there is one class, the classes differ, or a table is missing."""
    names = sides[0].class_names
    tables = [side.store.root / TABLE for side in sides]
    if len(names) == 1 or names != sides[1].class_names or not all(table.exists() for table in tables):
        return None
    first, second = (_codes_of(table, names) for table in tables)
    return first, second


def _codes_of(table: Path, names: Sequence[str]) -> Codes:
    found = read_objects(table, ("class",), names)["class"]
    return np.concatenate([np.zeros(1, np.uint8), found.astype(np.uint8) + 1])


def as_csv(comparison: ResultComparison) -> str:
    """Return CSV rows for each slide, for each of several classes, and for slides that are in one folder only."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for slide in comparison.slides:
        if slide.agreement is None:
            writer.writerow([_text(slide.key), *[""] * (len(COLUMNS) - 2), _text(slide.note)])
            continue
        rows = slide.class_rows if len(slide.class_rows) > 1 else []
        for name, row in (("", slide.row), *((row.name, row) for row in rows)):
            numbers = (*row.counts, row.count_change, *row.areas_mm2, row.area_change)
            writer.writerow([_text(slide.key), _text(name), *map(_number, (row.dice, *numbers)), ""])
    for out, keys in zip(comparison.outs, comparison.only, strict=True):
        for key in keys:
            writer.writerow([_text(key), *[""] * (len(COLUMNS) - 2), _text(f"only in {out}")])
    return text.getvalue()


def _number(value: float | None) -> str:
    return "" if value is None else repr(value)


def _text(text: str) -> str:
    return inert(printable(text))
