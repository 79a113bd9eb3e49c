"""Meaning of mask values: the class of each pixel, and which pixels form one object.

The masks of a training set have one meaning, determined from all of them together. If two meanings are possible, the
error names the setting that decides; the meaning used is always reported.

    binary     0 and one more number (1, 255 or 65535): one class; its 8-connected components are the objects
    labels     0 and a number for each object: one class
    classes    0 and the number of each class, in the order of the names; components of one class are the objects
    colours    a table maps colours to classes; components of one class are the objects

The numbers of a palette image are its indices, unless a table of colours is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from unet_core.class_map import IGNORED
from unet_core.errors import AnnotationError
from unet_core.spec import Colour

Kind = Literal["binary", "labels", "classes", "colours"]
ONE_CLASS = ("object",)
ON = frozenset({1, 255, 65535})
"""Foreground values of a binary mask, for any number of bits."""
LEAST_LABELS, MOST_PIECES = 8, 1.2
"""Labels: at least so many numbers in some image, and at most so many pieces per number on average."""
MOST_LABEL = 2**31 - 1
_SHOWN = 8


class DataSettings(BaseModel):
    """How annotations are read.

    Attributes:
        mask: Kind of the masks; `auto`: determined from their values.
        classes: Names of the classes, in the order of their numbers.
        colours: Colour of each class, instead of `classes`.
        background: Colour of the background.
        ignore: Number, or colour, of pixels that are neither trained on nor scored.
        only: Cells that a row of the table of cases must have to be used.
        memory_gb: Images are held in memory up to this size; the others are read when needed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mask: Literal["auto", "binary", "labels", "classes", "colours"] = "auto"
    classes: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    colours: dict[str, Colour] = Field(default_factory=dict)
    background: Colour = (0, 0, 0)
    ignore: Annotated[int, Field(gt=0)] | Colour | None = None
    only: dict[str, str | int] = Field(default_factory=dict)
    memory_gb: Annotated[float, Field(ge=0)] = 2.0

    @model_validator(mode="after")
    def _names_and_colours_agree(self) -> Self:
        """Reject settings that give a pixel two classes, or a class two positions."""
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes: expected distinct names, found {list(self.classes)}")
        if len({self.background, *self.colours.values()}) < 1 + len(self.colours):
            raise ValueError("colours: expected a colour of its own for each class and for the background")
        if self.colours and self.classes and tuple(self.colours) != self.classes:
            raise ValueError(f"colours: expected those of classes {list(self.classes)}, found {list(self.colours)}")
        if len(self.class_names) >= IGNORED:
            raise ValueError(f"classes: expected at most {IGNORED - 1}, found {len(self.class_names)}")
        if self.ignore is not None and isinstance(self.ignore, int) is bool(self.colours):
            kind = "a colour, as colours has" if self.colours else "a number, as there are no colours"
            raise ValueError(f"ignore: expected {kind}, found {self.ignore}")
        taken = {self.background, *self.colours.values()} if self.colours else set(range(1, len(self.classes) + 1))
        if self.ignore in taken and len(self.class_names) > 1:
            raise ValueError(f"ignore: expected another than those of classes and background, found {self.ignore}")
        if self.colours and self.mask not in ("auto", "colours"):
            raise ValueError(f"mask={self.mask} has no use for colours: leave one of the two out")
        if self.mask == "colours" and not self.colours:
            raise ValueError("mask=colours: expected the colour of each class, such as colours={nucleus: [255, 0, 0]}")
        return self

    @property
    def ignored(self) -> int | None:
        """Ignored value of masks: a number, or a packed colour."""
        return pack(self.ignore) if isinstance(self.ignore, tuple) else self.ignore

    @property
    def blank(self) -> int:
        """Background: 0, or its packed colour."""
        return pack(self.background) if self.colours else 0

    @property
    def class_names(self) -> tuple[str, ...]:
        """Stated names of classes or of colours; one class otherwise."""
        return self.classes or tuple(self.colours) or ONE_CLASS


@dataclass(slots=True)
class Content:
    """Values of a mask, gathered window by window.

    Attributes:
        file: Name of the file.
        coloured: Whether values are colours, packed as red * 65536 + green * 256 + blue.
        zero: Colour of 0 in a palette.
        values: Distinct values.
        pieces: Connected components of equal value, summed over windows.
        seen: Distinct values, summed over windows.
    """

    file: str
    coloured: bool = False
    zero: Colour | None = None
    values: set[int] = field(default_factory=set)
    pieces: int = 0
    seen: int = 0

    @property
    def marks(self) -> set[int]:
        """Values that are not 0."""
        return self.values - {0}


@dataclass(frozen=True, slots=True)
class Meaning:
    """How to read every mask of a set. `remark` is the report for the user."""

    kind: Kind
    class_names: tuple[str, ...]
    remark: str
    colours: tuple[int, ...] = ()

    def classes_of(self, values_YX: NDArray[Any]) -> NDArray[np.uint8]:
        """Return the class of each pixel, 0 for background, from checked numbers or packed colours."""
        if self.kind == "classes":
            return np.asarray(values_YX, np.uint8)
        if self.kind != "colours":
            return np.asarray(values_YX != 0, np.uint8)
        order = np.argsort(self.colours)
        keys = np.asarray(self.colours)[order]
        at = np.minimum(np.searchsorted(keys, values_YX), len(keys) - 1)
        return np.asarray(np.where(keys[at] == values_YX, order[at] + 1, 0), np.uint8)


def packed(rgb_3YX: NDArray[Any]) -> NDArray[np.int32]:
    """Return one number for each pixel's colour: red * 65536 + green * 256 + blue."""
    red, green, blue = rgb_3YX.astype(np.int32)
    result: NDArray[np.int32] = (red << 16) | (green << 8) | blue
    return result


def pack(colour: Colour) -> int:
    """Return one colour as one number, as `packed` does."""
    return (colour[0] << 16) | (colour[1] << 8) | colour[2]


def meaning_of(contents: Sequence[Content], settings: DataSettings) -> Meaning:
    """Return the meaning of masks.

    Raises:
        AnnotationError: No meaning fits, or two do; the message names a file and the setting that decides.
    """
    for content in contents:
        if content.values and min(content.values) < 0:
            raise AnnotationError(
                f"{content.file}: expected 0 and above, found {min(content.values)}: background is 0. Set it to 0"
            )
    kind = _stated_kind(contents, settings) or _found_kind(contents, settings)
    check, said = _KINDS[kind]
    for content in contents:
        check(content, settings)
    colours = tuple(map(pack, settings.colours.values())) if kind == "colours" else ()
    return Meaning(kind, settings.class_names, f"masks: {said}", colours)


# ---- which kind ----------------------------------------------------------------------------------------------------


def _stated_kind(contents: Sequence[Content], settings: DataSettings) -> Kind | None:
    """Return the kind that the settings determine; reject colours without a table of them."""
    coloured, plain = ([one for one in contents if one.coloured is wanted] for wanted in (True, False))
    if coloured and plain:
        raise AnnotationError(
            f"masks of two kinds: {coloured[0].file} holds colours, {plain[0].file} numbers. Save all of them one way"
        )
    if coloured and not settings.colours:
        raise AnnotationError(
            f"{coloured[0].file}: the mask is in colours, {_listed(coloured[0])}, and their meaning is unknown. Name "
            f"the classes, for example --set 'data.colours={{nucleus: [255, 255, 255]}}', or save masks of one channel"
        )
    if settings.colours and plain:
        raise AnnotationError(
            f"{plain[0].file}: data.colours is given, but the mask has one channel: {_listed(plain[0])}. Leave "
            f"data.colours out, or save masks as RGB"
        )
    if settings.colours:
        return "colours"
    for content in plain:
        if content.zero not in (None, (0, 0, 0)):
            raise AnnotationError(
                f"{content.file}: a palette whose number 0 is the colour {content.zero}, where background would be "
                f"black: its numbers may mean nothing. Give the colour of each class with data.colours"
            )
    return None if settings.mask == "auto" else settings.mask


def _found_kind(contents: Sequence[Content], settings: DataSettings) -> Kind:
    """The kind that all masks together can only be."""
    if len(settings.class_names) > 1:
        return "classes"
    marks = [content.marks for content in contents]
    together = set[int]().union(*marks)
    if len(together) <= 1 and together <= ON:
        return "binary"
    if all(len(one) <= 1 for one in marks) and together <= ON:
        first, other = (
            next(content for content in contents if value in content.values) for value in sorted(together)[:2]
        )
        raise AnnotationError(
            f"masks of two kinds: {first.file} holds {_listed(first)}, {other.file} {_listed(other)}. Save all of "
            f"them one way, or set data.mask=binary if every number is object"
        )
    pieces, seen = sum(content.pieces for content in contents), sum(content.seen for content in contents)
    if max(map(len, marks)) >= LEAST_LABELS and pieces <= MOST_PIECES * seen:
        return "labels"
    raise _undecided(contents, pieces, seen)


def _undecided(contents: Sequence[Content], pieces: int, seen: int) -> AnnotationError:
    most = max(contents, key=lambda content: len(content.values))
    if pieces > MOST_PIECES * seen:
        reason = (
            f"a number has {pieces / max(1, seen):.1f} separate pieces on average, as for classes, or for edges that "
            f"resampling or JPEG has smoothed"
        )
    else:
        reason = f"fewer than {LEAST_LABELS} numbers may be objects as well as classes"
    return AnnotationError(
        f"{most.file}: it holds {_listed(most)}, and {reason}. Set data.mask=labels if each number is "
        f"one object, or data.classes='[name of 1, name of 2, ...]' if each is one class"
    )


# ---- valid values of each kind -------------------------------------------------------------------------------------


def _require_binary(content: Content, settings: DataSettings) -> None:
    _require_one_class("binary", settings)
    if len(content.marks) > 1:
        raise AnnotationError(
            f"{content.file}: expected 0 and one other number (data.mask=binary), found {_listed(content)}. Save it "
            f"without smoothing, or set data.mask=labels or classes"
        )


def _require_labels(content: Content, settings: DataSettings) -> None:
    _require_one_class("labels", settings)
    if content.values and max(content.values) > MOST_LABEL:
        raise AnnotationError(
            f"{content.file}: expected numbers of objects up to {MOST_LABEL}, found {max(content.values)}. Number them "
            f"from 1"
        )


def _require_classes(content: Content, settings: DataSettings) -> None:
    most = len(settings.class_names)
    if unknown := sorted(value for value in content.values if value > most):
        raise AnnotationError(
            f"{content.file}: expected numbers of classes, 0 to {most} ({', '.join(settings.class_names)}), found also "
            f"{', '.join(map(str, unknown[:_SHOWN]))}. Name all classes in data.classes, or correct the mask"
        )


def _require_colours(content: Content, settings: DataSettings) -> None:
    known = {pack(settings.background), *map(pack, settings.colours.values())}
    if unknown := sorted(content.values - known):
        colours = ", ".join(map(_colour, unknown[:_SHOWN]))
        raise AnnotationError(
            f"{content.file}: expected the colours of data.colours and {_colour(pack(settings.background))} for "
            f"background, found also {colours} ({len(unknown)} in all). Name them, or save the mask without smoothing"
        )


def _require_one_class(kind: str, settings: DataSettings) -> None:
    if len(settings.class_names) > 1:
        raise AnnotationError(
            f"data.mask={kind} is for one class, and data.classes names {list(settings.class_names)}. Save classes "
            f"as numbers (data.mask=classes), as colours (data.colours), or draw them in QuPath"
        )


_KINDS = {
    "binary": (_require_binary, "0 and one more number; 8-connected components are the objects"),
    "labels": (_require_labels, "a number for each object"),
    "classes": (_require_classes, "a number for each class; 8-connected components of a class are the objects"),
    "colours": (_require_colours, "a colour for each class; 8-connected components of a class are the objects"),
}


def _listed(content: Content) -> str:
    values = sorted(content.values)
    texts = [_colour(value) if content.coloured else str(value) for value in values[:_SHOWN]]
    return f"{', '.join(texts)}{f' ... ({len(values)} in all)' if len(values) > _SHOWN else ''}"


def _colour(value: int) -> str:
    return f"[{value >> 16}, {value >> 8 & 255}, {value & 255}]"
