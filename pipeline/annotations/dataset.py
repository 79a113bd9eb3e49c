"""Open folders of images and masks as a dataset of annotated images that are read on demand.

All problems of a dataset are found before the first training step and raised as ConfigError, with the file and a fix.
Assumptions are recorded in ``remarks`` and displayed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.cases_table import AnnotationRow, read_table
from pipeline.annotations.dots import Dots, Points, points_in
from pipeline.annotations.lazy_arrays import (
    ClassOfObject,
    KnownClasses,
    MaskClasses,
    MaskValues,
    ReadBox,
    SlidePixels,
    Windows,
    content_of,
    no_objects,
)
from pipeline.annotations.lazy_components import LazyComponents
from pipeline.annotations.pairing import Pair, find_images, find_pairs
from pipeline.annotations.qupath_objects import QuPathObjects
from pipeline.annotations.resampling import NearestPixels, ScaledPixels, scale_of, scaled
from pipeline.errors import ConfigError, SlideError
from pipeline.geometry import Box
from pipeline.slides.resample import Resolution
from unet_core.data.mask_encoding import ONE_CLASS, DataSettings, Meaning, meaning_of
from unet_core.data.sampler import AnnotatedImage
from unet_core.errors import AnnotationError
from unet_core.mirror import ArrayLike

_CLASS, _IDS = np.dtype(np.uint8), np.dtype(np.int32)


@dataclass(frozen=True, slots=True)
class Dataset:
    """A set of annotated images.

    Attributes:
        cases: The images.
        class_names: Foreground classes in order.
        rows: Metadata by name of case.
        mpp: Resolution in um per pixel, as the file states it or as resampled, by name of case.
        remarks: Assumptions and remarks for the user.
        given: The images as they are annotated, where dots were turned into outlines since.
    """

    cases: tuple[AnnotatedImage, ...]
    class_names: tuple[str, ...]
    rows: Mapping[str, AnnotationRow]
    mpp: Mapping[str, float | None]
    remarks: tuple[str, ...]
    given: tuple[AnnotatedImage, ...] | None = None


@contextmanager
def as_config_errors() -> Iterator[None]:
    """Raise errors of slides and annotations as ConfigError."""
    try:
        yield
    except (SlideError, AnnotationError) as error:
        raise ConfigError(str(error)) from error


def open_dataset(
    images: Path,
    masks: Path,
    cases: Path | None = None,
    settings: DataSettings | None = None,
    mpp: float | None = None,
) -> Dataset:
    """Open every image that has a mask of the same name, or those that a table lists.

    Images that state another resolution than ``mpp`` are resampled to it. Images are read into memory up to
    ``settings.memory_gb``; the others are arrays that read windows on access.

    Args:
        images: Folder of images.
        masks: Folder of masks, with the same paths below it except for the extension.
        cases: CSV of metadata that also selects the images.
        settings: Meaning of masks.
        mpp: Resolution of the network in um per pixel; None for that of the files.

    Raises:
        ConfigError: The data cannot be used for training; the message names the file and a fix.
    """
    settings = settings or DataSettings()
    with as_config_errors():
        found = find_images(images, masks)
        rows = None if cases is None else read_table(cases, found, settings.only)
        chosen = [image for image in found if rows is None or image.key in rows]
        of_image = {image.key: rows[image.key] if rows else AnnotationRow(image.key) for image in chosen}
        pairs = [pair.with_mpp(of_image[pair.key].mpp) for pair in find_pairs(chosen, masks, strict=rows is None)]
        sources, names, remarks = _sources(pairs, settings)
        scales = {pair.key: scale_of(pair, mpp) for pair in pairs}
        built = [case for pair in pairs for case in _cases(pair, sources[pair.key], scales[pair.key])]
        weighted = [replace(case, weight=of_image[key].weight) for key, case in built]
        held = tuple(_held(weighted, settings.memory_gb))
    owner = {case.name: key for key, case in built}
    known = {pair.key: pair for pair in pairs}
    return Dataset(
        cases=held,
        class_names=names,
        rows={name: of_image[key] for name, key in owner.items()},
        mpp={name: mpp if scales[key] else known[key].mpp for name, key in owner.items()},
        remarks=(*_of_table(len(found), len(chosen), rows), *remarks, *_of_scales(pairs, scales, mpp)),
    )


# ---- what masks mean -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Source:
    """Annotations of a pair.

    Attributes:
        objects: Reads ids of objects.
        classes: Reads classes; None: all objects are of one class.
        parts: Annotated parts; empty when the whole image is annotated.
        points_N3: Dots: level-0 y, x and class; None: objects are outlined.
    """

    objects: ReadBox
    classes: ReadBox | None
    parts: tuple[Box, ...] = ()
    points_N3: Points | None = None

    def without(self, ignored: ReadBox) -> _Source:
        """The same with the class ``IGNORED`` where ``ignored`` is True."""
        return replace(self, classes=KnownClasses(self.classes, ignored))

    def scaled(self, scale: Resolution, shape_yx: tuple[int, int]) -> _Source:
        """The same at another resolution than level 0, whose shape is ``shape_yx``."""
        objects, classes = (
            read if read in (None, no_objects) else NearestPixels(read, scale, shape_yx)
            for read in (self.objects, self.classes)
        )
        assert objects is not None
        parts = tuple(scaled(part, scale) for part in self.parts)
        return replace(self, objects=objects, classes=classes, parts=parts)


def _sources(
    pairs: Sequence[Pair], settings: DataSettings
) -> tuple[dict[str, _Source], tuple[str, ...], tuple[str, ...]]:
    """Sources by key, the names of all classes, and remarks."""
    drawn = {pair.key: QuPathObjects.read(pair.mask, pair.shape_yx) for pair in pairs if pair.drawn}
    dots, repeated = _distinct(_dots(pairs, drawn))
    names, remarks = _names(pairs, drawn, settings)
    remarks = (*remarks, *_of_dots(dots, names, settings), *repeated)
    settings = settings if settings.class_names == names else settings.model_copy(update={"classes": names})
    by_colour, ignored, blank = bool(settings.colours), settings.ignored, settings.blank
    values = {
        pair.key: MaskValues(pair.mask, by_colour, ignored, blank) for pair in pairs if not (pair.drawn or pair.dotted)
    }
    meaning = meaning_of([content_of(one) for one in values.values()], settings) if values else None
    sources = {key: _of_drawn(one, names) for key, one in drawn.items()}
    if meaning is not None:
        shapes = {pair.key: pair.shape_yx for pair in pairs}
        sources |= {key: _of_mask(one, meaning, shapes[key]) for key, one in values.items()}
        remarks = (*remarks, meaning.remark)
    points = {key: one.numbered(names) for key, one in dots.items()}
    sources |= {pair.key: _Source(no_objects, None) for pair in pairs if pair.dotted}
    sources |= {key: replace(sources[key], points_N3=one) for key, one in points.items()}
    return sources, names, remarks


def _dots(pairs: Sequence[Pair], drawn: Mapping[str, QuPathObjects]) -> dict[str, Dots]:
    """Dots by key: of each table, and of the GeoJSON files that have any."""
    found = {pair.key: Dots.read_table(pair.mask, pair.shape_yx) for pair in pairs if pair.dotted}
    beside = {pair.key: Dots.of_drawn(pair.mask, drawn[pair.key], pair.shape_yx) for pair in pairs if pair.drawn}
    return found | {key: one for key, one in beside.items() if one.kinds}


def _distinct(dots: Mapping[str, Dots]) -> tuple[dict[str, Dots], list[str]]:
    """The dots without those that repeat another, and a remark on these."""
    distinct = {key: one.distinct() for key, one in dots.items()}
    repeated = sum(len(one.kinds) - len(distinct[key].kinds) for key, one in dots.items())
    return distinct, [f"{repeated} dots repeat another one and are left out"] if repeated else []


def _of_dots(dots: Mapping[str, Dots], names: tuple[str, ...], settings: DataSettings) -> list[str]:
    """Remarks on dots. Raises ConfigError for a class that the settings do not name."""
    if not dots:
        return []
    count = sum(len(one.kinds) for one in dots.values())
    remarks = [f"{len(dots)} images have dots, {count} in all: centres of objects without outlines"]
    kinds = {kind: where for one in dots.values() for kind, where in zip(one.kinds, one.where, strict=True)}
    if not (settings.classes or settings.colours):
        named = sorted(kind for kind in kinds if kind)
        if named and named != [names[0]]:
            remarks.append(
                f"dots of class {', '.join(named)} all count as {names[0]!r}. To learn the classes: --set "
                f"'data.classes=[{', '.join(named)}]'"
            )
        return remarks
    if unknown := [kind for kind in kinds if kind not in names and (kind or len(names) > 1)]:
        what = f"class {unknown[0]!r}" if unknown[0] else "a dot without a class"
        raise ConfigError(
            f"{kinds[unknown[0]]}: {what}, where data.classes names {', '.join(names)}. Name it there, or give the dot "
            f"one of these classes"
        )
    return remarks


def _of_mask(values: MaskValues, meaning: Meaning, shape_yx: tuple[int, int]) -> _Source:
    if meaning.kind == "labels":
        source = _Source(values, None)
    else:
        classes = MaskClasses(values, meaning)
        connected = LazyComponents.of(classes, shape_yx)
        source = _Source(connected.read, classes if len(meaning.class_names) > 1 else None)
    return source if values.ignore is None else source.without(values.ignored)


def _of_drawn(drawn: QuPathObjects, names: Sequence[str]) -> _Source:
    classes = None
    if len(names) > 1:
        classes = ClassOfObject(drawn.paint, (0, *(names.index(kind) + 1 for kind in drawn.kinds)))
    source = _Source(drawn.paint, classes, drawn.parts)
    return source.without(drawn.ignored) if drawn.holes else source


def _names(
    pairs: Sequence[Pair], drawn: Mapping[str, QuPathObjects], settings: DataSettings
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Class names, as configured or the only class of the QuPath objects; and remarks."""
    kinds = {kind: pair.mask for pair in pairs if pair.drawn for kind in drawn[pair.key].kinds}
    named = sorted(kind for kind in kinds if kind)
    if not drawn:
        return settings.class_names, ()
    if not (settings.classes or settings.colours):
        if len(named) > 1:
            raise ConfigError(
                f"{kinds[named[0]]}: annotations of {len(named)} classes, {', '.join(named)}: expected a list of "
                f"classes to learn. Set it in the intended order: --set 'data.classes=[{', '.join(named)}]'; areas of "
                f"class Ignore* are excluded"
            )
        names: tuple[str, ...] = (named[0],) if named else ONE_CLASS
    else:
        names = settings.class_names
    if unknown := [kind for kind in kinds if kind not in names and (kind or len(names) > 1)]:
        what = f"class {unknown[0]!r}" if unknown[0] else "an annotation without a class"
        raise ConfigError(
            f"{kinds[unknown[0]]}: {what}, where data.classes names {', '.join(names)}. Name it there, or give the "
            f"annotation one of these classes (or Ignore*) in QuPath"
        )
    parts = sum(len(one.parts) for one in drawn.values())
    whole = sum(not one.parts for one in drawn.values())
    remarks = ["annotations drawn in QuPath: a pixel belongs to the smallest area that holds its centre"]
    remarks += [f"{parts} areas of class Region* are annotated; the rest of those images is not used"] * bool(parts)
    holes = sum(len(one.holes) for one in drawn.values())
    remarks += [f"{holes} areas of class Ignore* or exclude: excluded from training and scores"] * bool(holes)
    remarks += [f"{whole} images have no area of class Region*: they count as annotated throughout"] * bool(whole)
    return names, tuple(remarks)


# ---- cases -----------------------------------------------------------------------------------------------------------


def _cases(pair: Pair, source: _Source, scale: Resolution | None) -> Iterator[tuple[str, AnnotatedImage]]:
    """The image, or each annotated part of it, with the key of the image. No pixels are read."""
    pixels: ReadBox = SlidePixels(pair.image) if scale is None else ScaledPixels(pair.image, scale)
    areas = source.parts or (Box.of_shape(pair.shape_yx),)
    if scale is not None:
        source = source.scaled(scale, pair.shape_yx)
        areas = source.parts or (Box.of_shape(scale.out_yx),)
    for number, area in enumerate(areas, 1):
        name = pair.key if not source.parts else f"{pair.key}#{number}"
        image = Windows(pixels, area, pair.dtype, pair.channels)
        classes = None if source.classes is None else Windows(source.classes, area, _CLASS)
        points = None
        if source.points_N3 is not None:
            factor_yx = (1.0, 1.0) if scale is None else scale.level0_from_image_yx
            points = points_in(area, source.points_N3, pair.shape_yx if scale is None else scale.out_yx, factor_yx)
        yield pair.key, AnnotatedImage(name, image, Windows(source.objects, area, _IDS), classes, points)


def _held(cases: Sequence[AnnotatedImage], memory_gb: float) -> Iterator[AnnotatedImage]:
    """Read cases into memory in their order as long as they fit; the others stay unread."""
    left = memory_gb * 1e9
    for case in cases:
        drawn = isinstance(case.labels_YX, Windows) and case.labels_YX.read is not no_objects
        arrays = [case.image_CYX, *([case.labels_YX] if drawn else [])]
        arrays += [] if case.classes_YX is None else [case.classes_YX]
        needed = sum(array.nbytes for array in arrays if isinstance(array, Windows))
        if needed > left:
            yield case
            continue
        left -= needed
        classes = None if case.classes_YX is None else _whole(case.classes_YX)
        labels = _whole(case.labels_YX) if drawn else case.labels_YX
        yield replace(case, image_CYX=_whole(case.image_CYX), labels_YX=labels, classes_YX=classes)


def _whole(array: ArrayLike) -> NDArray[Any]:
    return np.ascontiguousarray(array[tuple(slice(None) for _ in array.shape)])


# ---- remarks ---------------------------------------------------------------------------------------------------------


def _of_scales(pairs: Sequence[Pair], scales: Mapping[str, Resolution | None], mpp: float | None) -> Iterator[str]:
    off = [pair.mpp for pair in pairs if pair.mpp and scales[pair.key]]
    if off:
        yield (
            f"{len(off)} images of {min(off):.3g} to {max(off):.3g} um per pixel are resampled to the network's "
            f"{mpp:g} as segment does, their masks by the nearest pixel"
        )
    silent = sum(pair.mpp is None for pair in pairs)
    if mpp is not None and silent:
        yield f"{silent} images state no resolution and are taken for {mpp:g} um per pixel, the network's"


def _of_table(found: int, chosen: int, rows: Mapping[str, AnnotationRow] | None) -> Iterator[str]:
    if rows is None:
        yield (
            "no table of cases (--cases): every image counts as a patient of its own, so two images of one patient may "
            "be in both training and validation data"
        )
    elif chosen < found:
        yield f"{found - chosen} of {found} images are not in the table of cases and are not used"
