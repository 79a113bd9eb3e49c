"""Check a dataset before training: count all pixels, reject unusable data, report unusual data.

Each image is read once, and the same counts are used for training and for display. Data without information, such as a
class without a pixel or images of one colour, are rejected; unusual data are reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.annotations.dataset import Dataset, as_config_errors
from pipeline.annotations.lazy_arrays import Windows
from pipeline.errors import ConfigError
from unet_core.data.dataset_statistics import ImageStatistics
from unet_core.data.folds import FoldMember, Folds, FoldSettings, keep_folds
from unet_core.data.sampler import AnnotatedImage
from unet_core.training.dataset_spec import moments

_MUCH = 0.5
_APART = 1.05


@dataclass(frozen=True, slots=True)
class CaseFacts:
    """Counts of one annotated image.

    ``class_px`` are the pixels of background and of each class, ``dots`` the dots of each class; without a place for
    dots it is empty.
    """

    name: str
    in_memory: bool
    mpp: float | None
    class_px: tuple[int, ...]
    counted: ImageStatistics
    dots: tuple[int, ...] = ()

    def holds(self, number: int) -> bool:
        """Whether a class, 0 for background, has a pixel or a dot."""
        return self.class_px[number] > 0 or (number > 0 and bool(self.dots) and self.dots[number - 1] > 0)

    @property
    def shape_yx(self) -> tuple[int, int]:
        """Shape of the image."""
        height, width = self.counted.class_map.shape
        return height, width


@dataclass(frozen=True, slots=True)
class DatasetSummary:
    """Counts of a dataset. ``remarks`` are assumptions and unusual findings."""

    cases: tuple[CaseFacts, ...]
    class_names: tuple[str, ...]
    patients: int
    remarks: tuple[str, ...]

    @property
    def class_px(self) -> tuple[int, ...]:
        """Pixels of background and of each class."""
        return tuple(map(sum, zip(*(case.class_px for case in self.cases), strict=True)))

    @property
    def dots(self) -> tuple[int, ...]:
        """Dots of each class."""
        none = (0,) * len(self.class_names)
        return tuple(map(sum, zip(*(case.dots or none for case in self.cases), strict=True)))

    @property
    def frequencies(self) -> tuple[float, ...]:
        """Share of all pixels that is background, and each class."""
        return tuple(count / sum(self.class_px) for count in self.class_px)

    @property
    def mean(self) -> tuple[float, ...]:
        """Of each channel over all pixels; the image's range is 0 to 1."""
        return moments([case.counted for case in self.cases])[0]

    @property
    def std(self) -> tuple[float, ...]:
        """As ``mean``, the standard deviation."""
        return moments([case.counted for case in self.cases])[1]


def check_annotations(annotations: Dataset) -> DatasetSummary:
    """Count every pixel of a dataset.

    Raises:
        ConfigError: The data cannot be used for training; the message names a file and a fix.
    """
    with as_config_errors():
        facts = tuple(_facts(case, annotations) for case in annotations.cases)
    patients = {row.patient for row in annotations.rows.values()}
    summary = DatasetSummary(facts, annotations.class_names, len(patients), (*annotations.remarks, *_odd(facts)))
    _demand_classes(summary)
    if not any(summary.std):
        raise ConfigError(
            f"{facts[0].name}: every pixel of every image has one value: expected pictures. Export the images again, "
            f"or check that --images is not a folder of masks"
        )
    return summary


def draw_folds(path: Path, annotations: Dataset, summary: DatasetSummary, settings: FoldSettings) -> Folds:
    """Read folds from a file, or draw them and write the file.

    Raises:
        ConfigError: The file or the settings do not fit the dataset (see ``unet_core.data.folds``).
    """
    with as_config_errors():
        return keep_folds(path, members(annotations, summary), settings)


def members(annotations: Dataset, summary: DatasetSummary) -> list[FoldMember]:
    """The images as ``unet_core.data.folds`` divides them."""
    found = []
    for case in summary.cases:
        row = annotations.rows[case.name]
        classes = frozenset(name for number, name in enumerate(summary.class_names, 1) if case.holds(number))
        found.append(FoldMember(case.name, row.patient, classes, row.date, row.stratum, row.fold))
    return found


# ---- counting --------------------------------------------------------------------------------------------------------


def _facts(case: AnnotatedImage, annotations: Dataset) -> CaseFacts:
    counted = case.census()
    class_px = np.zeros(len(annotations.class_names) + 1, np.int64)
    class_px[: len(counted.counts)] = counted.counts.sum(axis=(1, 2))
    held = not isinstance(case.image_CYX, Windows)
    dots: tuple[int, ...] = ()
    if case.points_N3 is not None:
        dots = tuple(np.bincount(case.points_N3[:, 2].astype(int), minlength=len(class_px))[1:].tolist())
    return CaseFacts(case.name, held, annotations.mpp[case.name], tuple(class_px.tolist()), counted, dots)


def _demand_classes(summary: DatasetSummary) -> None:
    for number, name in enumerate(summary.class_names, 1):
        if not any(case.holds(number) for case in summary.cases):
            dot = " or dot" if any(case.dots for case in summary.cases) else ""
            some = ", ".join(case.name for case in summary.cases[:3])
            raise ConfigError(
                f"class {name!r} has not one pixel{dot} in {len(summary.cases)} masks ({some} ...): it cannot be "
                f"learnt. Annotate some, or leave it out of data.classes (data.colours)"
            )


# ---- unusual data ----------------------------------------------------------------------------------------------------


def _odd(cases: Sequence[CaseFacts]) -> Iterator[str]:
    flat = [case.name for case in cases if not any(moments([case.counted])[1])]
    if flat:
        yield f"{len(flat)} images have one value throughout: {', '.join(flat[:5])}"
    bare = [case.name for case in cases if not (case.counted.objects or any(case.dots))]
    if bare:
        yield f"{len(bare)} images have no object: {', '.join(bare[:5])}. They are used as background"
    pixels, ignored = sum(case.counted.pixels for case in cases), sum(case.counted.ignored for case in cases)
    if ignored:
        yield f"{ignored / pixels:.1%} of all pixels are ignored: excluded from training and scores"
    marked = sum(sum(case.class_px[1:]) for case in cases) / pixels
    if marked > _MUCH:
        yield f"{marked:.0%} of all pixels are objects: are objects and background exchanged?"
    stated = sorted({case.mpp for case in cases if case.mpp})
    if stated and stated[-1] > _APART * stated[0]:
        yield (
            f"images state {stated[0]:.3g} to {stated[-1]:.3g} um per pixel: objects differ in size, and one network "
            f"has one resolution. Set it (network.mpp) to resample all images to it"
        )
    outside = sum(not case.in_memory for case in cases)
    if outside:
        yield f"{outside} images do not fit into data.memory_gb and are read from disk, window by window"
