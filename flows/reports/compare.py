"""Two results folders side by side: which slides are in both, what was asked of each, and how far their objects agree.

The one decision made here: pixels are compared or they are not. Results of other sizes or resolutions, without objects
or with pruned ones, are named with the reason and never resampled, cropped or left out in silence.
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
    """One of two results of a slide; of its manifest what was run and what came out, not the list of files."""

    store: SlideStore
    manifest: Mapping[str, Any]

    @property
    def plan(self) -> Mapping[str, Any]:
        """What was run."""
        found: Mapping[str, Any] = self.manifest["plan"]
        return found

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of its objects."""
        return tuple(self.plan["model"]["spec"]["class_names"])

    def totals(self, name: str | None) -> tuple[int, float]:
        """Number and area (mm2) of the objects of a class; None: of all."""
        rows = [row for row in manifest_rows(self.manifest) if "class" in row and name in (None, row["class"])]
        return sum(int(row["count"] or 0) for row in rows), sum(float(row["area_mm2"] or 0) for row in rows)

    def settings(self) -> Iterator[tuple[str, str]]:
        """All that was asked of it, by name."""
        plan, model = self.plan, self.plan["model"]
        yield "model", f"{model['name']} {model['sha256'][:12]}"
        yield "threshold", f"{plan['threshold']:g}"
        yield "objects from, um2", f"{plan.get('min_area_um2', 0):g}"
        yield "um per px", f"{plan['image']['mpp']:g}"
        told = {"compute": plan["compute"], **plan["config"]}
        yield from ((name, str(value)) for name, value in run_settings(told))
        yield from ((f"version of {name}", str(version)) for name, version in self.manifest["software"].items())


@dataclass(frozen=True, slots=True)
class ComparedRow:
    """One slide, or one class of it: Dice, and number and area (mm2) of objects in both."""

    name: str
    dice: float | None
    counts: tuple[int, int]
    areas_mm2: tuple[float, float]

    @property
    def count_change(self) -> float | None:
        """Relative to the first; None where that has none."""
        return _change(*self.counts)

    @property
    def area_change(self) -> float | None:
        """Relative to the first; None where that has none."""
        return _change(*self.areas_mm2)


def _change(first: float, second: float) -> float | None:
    return second / first - 1 if first else None


@dataclass(frozen=True, slots=True)
class Compared:
    """A slide that is in both; without an agreement where its pixels cannot be compared, and ``note`` says why."""

    key: str
    sides: tuple[Side, Side] | None
    agreement: Agreement | None
    note: str = ""

    @property
    def row(self) -> ComparedRow:
        """All objects together."""
        assert self.agreement is not None, "only what could be compared has numbers"
        return self._row(self.key, self.agreement.dice, None)

    @property
    def class_rows(self) -> list[ComparedRow]:
        """Each class by itself, where both have the same."""
        if self.sides is None or self.agreement is None or self.sides[0].class_names != self.sides[1].class_names:
            return []
        names = self.sides[0].class_names
        if len(self.agreement.pixels) != len(names) + 1:
            return []
        return [self._row(name, self.agreement.dice_of(number), name) for number, name in enumerate(names, start=1)]

    def _row(self, name: str, dice: float | None, of: str | None) -> ComparedRow:
        assert self.sides is not None, "only what could be compared has numbers"
        (count, area), (other_count, other_area) = (side.totals(of) for side in self.sides)
        return ComparedRow(name, dice, (count, other_count), (area, other_area))


@dataclass(frozen=True, slots=True)
class ResultComparison:
    """Two folders: slides in both, in order of key, and keys that are in one of them only."""

    outs: tuple[Path, Path]
    slides: tuple[Compared, ...]
    only: tuple[tuple[str, ...], tuple[str, ...]]

    @property
    def compared(self) -> list[Compared]:
        """Those whose pixels could be compared."""
        return [slide for slide in self.slides if slide.agreement is not None]

    @property
    def whole(self) -> bool:
        """Whether every slide of either could be compared."""
        return len(self.compared) == len(self.slides) and not any(self.only)

    def worst(self) -> list[Compared]:
        """Those compared, the least alike first; those in which neither has objects last."""
        return sorted(self.compared, key=lambda one: (one.row.dice is None, one.row.dice or 0.0, one.key))

    def differences(self) -> list[tuple[str, str, str, int]]:
        """Settings that differ: name, in the first, in the second, in how many slides."""
        found: Counter[tuple[str, str, str]] = Counter()
        for one in self.slides:
            if one.sides is not None:
                first, second = (dict(side.settings()) for side in one.sides)
                for name in sorted({*first, *second}):
                    values = first.get(name, "not set"), second.get(name, "not set")
                    found[(name, *values)] += values[0] != values[1]
        return [(*key, number) for key, number in sorted(found.items()) if number]


def compare(outs: tuple[Path, Path], done: Callable[[Compared], object]) -> ResultComparison:
    """Compare what two folders hold; ``done`` is told of each slide that is in both.

    Raises ConfigError where one holds no results or no slide is in both.
    """
    first, second = (slides_of(out) for out in outs)
    keys = sorted(first.keys() & second.keys())
    if not keys:
        some = ", ".join((*sorted(first)[:3], *sorted(second)[:3]))
        raise ConfigError(f"{outs[0]} and {outs[1]}: expected slides that are in both, found none; in one only: {some}")
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
    """Raises StoreError for what cannot be compared, saying why."""
    manifest = read_manifest(store)
    if manifest is None:
        raise StoreError(f"it is not complete in {out}")
    if "label" not in manifest["plan"]["hashes"]:
        raise StoreError(f"it has no objects in {out}: they were switched off")
    if not (store.zarr / OBJECTS).exists() and "pruned" in manifest:
        raise StoreError(f"its labels were pruned in {out}")
    return Side(store, {name: manifest[name] for name in ("plan", "stages", "software")})


def _require_same_pixels(first: Side, second: Side) -> None:
    images = [side.plan["image"] for side in (first, second)]
    shapes, scales = ([image[name] for image in images] for name in ("shape_yx", "mpp"))
    if shapes[0] != shapes[1] or abs(scales[1] / scales[0] - 1) > SAME_MPP:
        told = " and ".join(f"{x} x {y} px at {mpp:g} um/px" for (y, x), mpp in zip(shapes, scales, strict=True))
        raise StoreError(
            f"expected the same pixels in both, found {told}: other slides, or models of other resolutions"
        )


def _codes(sides: tuple[Side, Side]) -> tuple[Codes, Codes] | None:
    """By id the class of each object; None where there is one class, other ones, or no table to read it from."""
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
    """A row for each slide, one for each of its classes where there are several, and for what is in one folder only."""
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
