"""What there is to learn from: every pixel of every annotated image counted before the first step of training.

The one decision made here: everything is counted in whole numbers, window by window, so an image larger than memory
gives the same figures as one that is not, to the last pixel. What would make training pointless (a class without a
pixel, images of one colour) is refused; what is only odd is said.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.annotation_arrays import Windows, windows
from flows.annotations import Annotations, refusals
from flows.plain import printable
from pipeline.errors import ConfigError
from unet_core.folds import Folds, FoldSettings, Member, keep_folds
from unet_core.samples import Annotated

MOST_SHOWN = 20
_MUCH = 0.5
_APART = 1.05


@dataclass(frozen=True, slots=True)
class CaseFacts:
    """One annotated image, counted. ``class_px`` of background and of each class; sums over pixels, by channel."""

    name: str
    shape_yx: tuple[int, int]
    dtype: str
    in_memory: bool
    mpp: float | None
    class_px: tuple[int, ...]
    objects: int
    sums: tuple[int, ...]
    squares: tuple[int, ...]

    @property
    def pixels(self) -> int:
        """Of the image."""
        return self.shape_yx[0] * self.shape_yx[1]


@dataclass(frozen=True, slots=True)
class Summary:
    """A set of annotated images, counted. ``said``: what was taken for granted, and what is odd."""

    cases: tuple[CaseFacts, ...]
    class_names: tuple[str, ...]
    patients: int
    said: tuple[str, ...]

    @property
    def class_px(self) -> tuple[int, ...]:
        """Pixels of background and of each class."""
        return tuple(map(sum, zip(*(case.class_px for case in self.cases), strict=True)))

    @property
    def frequencies(self) -> tuple[float, ...]:
        """Share of all pixels that is background, and each class."""
        return tuple(count / sum(self.class_px) for count in self.class_px)

    @property
    def mean(self) -> tuple[float, ...]:
        """Of each channel over all pixels; the image's range is 0 to 1."""
        return statistics(self.cases)[0]

    @property
    def std(self) -> tuple[float, ...]:
        """As ``mean``, the standard deviation."""
        return statistics(self.cases)[1]


def statistics(cases: Sequence[CaseFacts]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels of some images of one dtype, range 0 to 1."""
    full, pixels = int(np.iinfo(cases[0].dtype).max), sum(case.pixels for case in cases)
    sums = [sum(column) for column in zip(*(case.sums for case in cases), strict=True)]
    squares = [sum(column) for column in zip(*(case.squares for case in cases), strict=True)]
    spread = [pixels * square - total**2 for total, square in zip(sums, squares, strict=True)]  # whole numbers: exact
    return (
        tuple(total / (pixels * full) for total in sums),
        tuple(math.sqrt(one) / (pixels * full) for one in spread),
    )


def check_annotations(annotations: Annotations) -> Summary:
    """Count every pixel. Raises ConfigError for what nobody could learn from, naming a file and the cure."""
    with refusals():
        facts = tuple(_facts(case, annotations) for case in annotations.cases)
    patients = {row.patient for row in annotations.rows.values()}
    summary = Summary(facts, annotations.class_names, len(patients), (*annotations.said, *_odd(facts)))
    _demand_classes(summary)
    if not any(summary.std):
        raise ConfigError(
            f"{facts[0].name}: every pixel of every image has one value: expected pictures. Export the images again, "
            f"or check that --images is not a folder of masks"
        )
    return summary


def draw_folds(path: Path, annotations: Annotations, summary: Summary, settings: FoldSettings) -> Folds:
    """The folds in a file, or new ones written to it. Raises ConfigError as ``unet_core.folds`` refuses."""
    with refusals():
        return keep_folds(path, members(annotations, summary), settings)


def members(annotations: Annotations, summary: Summary) -> list[Member]:
    """What folds are drawn from."""
    found = []
    for case in summary.cases:
        row = annotations.rows[case.name]
        held = zip(summary.class_names, case.class_px[1:], strict=True)
        classes = frozenset(name for name, count in held if count)
        found.append(Member(case.name, row.patient, classes, row.date, row.stratum, row.fold))
    return found


# ---- counting --------------------------------------------------------------------------------------------------------


def _facts(case: Annotated, annotations: Annotations) -> CaseFacts:
    height, width = case.image_CYX.shape[-2:]
    classes = len(annotations.class_names) + 1
    class_px = np.zeros(classes, np.int64)
    objects: set[int] = set()
    sums, squares, dtype = [0] * case.image_CYX.shape[0], [0] * case.image_CYX.shape[0], np.dtype(np.uint8)
    for window in windows((height, width)):
        pixels_CYX = np.asarray(case.image_CYX[(slice(None), *window)])
        dtype = pixels_CYX.dtype
        for channel, (total, square) in enumerate(map(_moments, pixels_CYX)):
            sums[channel] += total
            squares[channel] += square
        labels_YX = np.asarray(case.labels_YX[window])
        class_px += np.bincount(_classes(case, labels_YX, window).ravel(), minlength=classes)
        objects.update(np.unique(labels_YX).tolist())
    return CaseFacts(
        name=case.name,
        shape_yx=(height, width),
        dtype=str(dtype),
        in_memory=not isinstance(case.image_CYX, Windows),
        mpp=annotations.mpp[case.name],
        class_px=tuple(class_px.tolist()),
        objects=len(objects - {0}),
        sums=tuple(sums),
        squares=tuple(squares),
    )


def _classes(case: Annotated, labels_YX: NDArray[Any], window: tuple[slice, slice]) -> NDArray[Any]:
    if case.classes_YX is None:
        return (labels_YX > 0).astype(np.uint8)
    return np.where(labels_YX > 0, np.asarray(case.classes_YX[window]), 0)


def _moments(pixels_YX: NDArray[Any]) -> tuple[int, int]:
    """Sum and sum of squares: whole numbers, which 64 bits hold for any window."""
    values = pixels_YX.astype(np.int64).ravel()
    return int(values.sum()), int(values @ values)


def _demand_classes(summary: Summary) -> None:
    for name, count in zip(summary.class_names, summary.class_px[1:], strict=True):
        if not count:
            some = ", ".join(case.name for case in summary.cases[:3])
            raise ConfigError(
                f"class {name!r} has not one pixel in {len(summary.cases)} masks ({some} ...): nobody can learn it. "
                f"Annotate some, or leave it out of data.classes (data.colours)"
            )


# ---- what is odd -----------------------------------------------------------------------------------------------------


def _odd(cases: Sequence[CaseFacts]) -> Iterator[str]:
    flat = [case.name for case in cases if not any(statistics([case])[1])]
    if flat:
        yield f"{len(flat)} images have one value throughout: {', '.join(flat[:5])}"
    bare = [case.name for case in cases if not case.objects]
    if bare:
        yield f"{len(bare)} images have no object: {', '.join(bare[:5])}. They teach what background looks like"
    marked = sum(sum(case.class_px[1:]) for case in cases) / sum(case.pixels for case in cases)
    if marked > _MUCH:
        yield f"{marked:.0%} of all pixels are objects: are objects and background exchanged?"
    stated = sorted({case.mpp for case in cases if case.mpp})
    if stated and stated[-1] > _APART * stated[0]:
        yield (
            f"images state {stated[0]:.3g} to {stated[-1]:.3g} um per pixel: objects differ in size, and one network "
            f"has one resolution. Bring them to one (network.mpp) if that is not wanted"
        )
    outside = sum(not case.in_memory for case in cases)
    if outside:
        yield f"{outside} images do not fit into data.memory_gb and are read from disk, window by window"


# ---- shown -----------------------------------------------------------------------------------------------------------


def show_summary(summary: Summary, console: Console) -> None:
    """Print images, classes and remarks for a person."""
    console.print(_case_table(summary))
    if len(summary.cases) > MOST_SHOWN:
        console.print(f"  and {len(summary.cases) - MOST_SHOWN} more images", highlight=False)
    console.print(_class_table(summary))
    for remark in summary.said:
        console.print(f"  note: {escape(printable(remark))}", soft_wrap=True, highlight=False)


def _case_table(summary: Summary) -> Table:
    table = Table("image", "px", "type", "um/px", "mean", "std", "objects", "% of px")
    for case in summary.cases[:MOST_SHOWN]:
        mean, std = (" ".join(f"{value:.2f}" for value in values) for values in statistics([case]))
        size = f"{case.shape_yx[1]} x {case.shape_yx[0]}"
        mpp = f"{case.mpp:.3g}" if case.mpp else ""
        share = f"{100 * sum(case.class_px[1:]) / case.pixels:.1f}"
        table.add_row(escape(printable(case.name)), size, case.dtype, mpp, mean, std, str(case.objects), share)
    return table


def _class_table(summary: Summary) -> Table:
    title = f"{len(summary.cases)} images of {summary.patients} patients"
    table = Table("class", "px", "% of px", "images", title=title, title_justify="left")
    for number, name in enumerate(("background", *summary.class_names)):
        holding = sum(case.class_px[number] > 0 for case in summary.cases)
        share = f"{100 * summary.frequencies[number]:.2f}"
        table.add_row(escape(printable(name)), str(summary.class_px[number]), share, str(holding))
    return table
