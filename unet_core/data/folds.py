"""Cross-validation folds of patients.

All images of a patient are in one fold, since images of one patient resemble each other more than those of two. Every
fold holds every class, else the score of that class on the fold is meaningless: the first of many shuffles with this
property is taken; if there is none, drawing folds is an error. Folds are written to a file and reused, so they do not
depend on the version of the library.

    kfold       equal numbers of patients             grouped     equal numbers of images, as far as patients allow
    stratified  equal shares of each stratum          temporal    by date, each fold later than the one before
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from unet_core.atomic_write import write_atomically
from unet_core.errors import AnnotationError
from unet_core.optional import TRAIN, optional_import

if TYPE_CHECKING:
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold

SHUFFLES = 200
_SHOWN = 5
_ANEW = "Delete the file to draw new folds (their results cannot be compared with earlier ones)"


class FoldSettings(BaseModel):
    """Settings for drawing folds. A column `fold` in the table of cases takes precedence."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["kfold", "grouped", "stratified", "temporal"] = "grouped"
    k: Annotated[int, Field(ge=2)] = 5
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


@dataclass(frozen=True, slots=True)
class FoldMember:
    """Properties of an annotated image that matter for folds; `classes` are those with at least one pixel."""

    name: str
    patient: str
    classes: frozenset[str] = frozenset()
    date: date | None = None
    stratum: str = ""
    fold: int | None = None


class Folds(BaseModel):
    """Fold of each image by name, and the method; "column" if the table of cases states the folds."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    method: Literal["kfold", "grouped", "stratified", "temporal", "column"]
    seed: int
    k: int
    folds: dict[str, int]

    @property
    def numbers(self) -> tuple[int, ...]:
        """Numbers of the folds, ascending."""
        return tuple(sorted(set(self.folds.values())))

    def split(self, held_back: int) -> tuple[list[str], list[str]]:
        """Return the names of the training images and of those held back.

        With temporal folds, only folds before the one held back are for training.

        Raises:
            AnnotationError: The fold does not exist, or leaves no training image.
        """
        if held_back not in self.numbers:
            raise AnnotationError(f"fold {held_back}: expected one of {', '.join(map(str, self.numbers))}")
        held = [name for name, fold in self.folds.items() if fold == held_back]
        rest = [name for name, fold in self.folds.items() if fold != held_back]
        if self.method == "temporal":
            rest = [name for name in rest if self.folds[name] < held_back]
        if not rest:
            raise AnnotationError(f"fold {held_back} is the earliest: nothing to train on. Hold back a later one")
        return rest, held


# ---- drawing -------------------------------------------------------------------------------------------------------


def assign_folds(members: Sequence[FoldMember], settings: FoldSettings) -> Folds:
    """Return the fold of each image: as the members state it, else drawn by the method of the settings.

    Raises:
        AnnotationError: There are fewer patients than folds, a member lacks what the method needs, or a fold would lack
            a class or split a patient.
        MissingLibraryError: scikit-learn is not installed and folds have to be drawn.
    """
    if any(member.fold is not None for member in members):
        return _by_column(members)
    _require_enough(members, settings)
    problem = ""
    for folds in _drawn(members, settings):
        found = next(_problems(folds, members, settings.method), "")
        if not found:
            named = {member.name: folds[member.name] for member in members}
            return Folds(method=settings.method, seed=settings.seed, k=settings.k, folds=named)
        problem = problem or found
    raise AnnotationError(
        f"no {settings.k} {settings.method} folds of these {len(members)} images: {problem}. Take fewer folds "
        f"(folds.k), annotate more patients, or give a column 'fold' in the table of cases"
    )


def check_folds(folds: Mapping[str, int], members: Sequence[FoldMember], method: str = "column") -> None:
    """Raise AnnotationError if a patient is in several folds, or a fold lacks a class."""
    for problem in _problems(folds, members, method):
        raise AnnotationError(f"folds: {problem}. Correct the column 'fold', or leave it out")


def _by_column(members: Sequence[FoldMember]) -> Folds:
    if without := [member.name for member in members if member.fold is None]:
        raise AnnotationError(
            f"column 'fold': expected a number for every image, found none for {_some(without)}. Fill it in, or leave "
            f"the column out"
        )
    folds = {member.name: member.fold for member in members if member.fold is not None}
    check_folds(folds, members)
    if (k := len(set(folds.values()))) < 2:
        raise AnnotationError("column 'fold': expected at least 2 folds, found 1: nothing could be held back")
    return Folds(method="column", seed=0, k=k, folds=folds)


def _require_enough(members: Sequence[FoldMember], settings: FoldSettings) -> None:
    patients = {member.patient for member in members}
    if len(patients) < settings.k:
        raise AnnotationError(
            f"expected at least as many patients as folds ({settings.k}), found {len(patients)} "
            f"({_some(sorted(patients))}): a patient is never split. Set folds.k={max(2, len(patients))} or less, or "
            f"annotate images of more patients"
        )
    needed = {"stratified": "stratum", "temporal": "date"}.get(settings.method)
    if needed and (without := [member.name for member in members if not getattr(member, needed)]):
        raise AnnotationError(
            f"{settings.method} folds need a {needed} for every image: none for {_some(without)}. Fill the column "
            f"{needed!r} of the table of cases, or choose folds.method=grouped"
        )
    for stratum in sorted({member.stratum for member in members}) if settings.method == "stratified" else ():
        having = {member.patient for member in members if member.stratum == stratum}
        if len(having) < settings.k:
            raise AnnotationError(
                f"stratum {stratum!r} has {len(having)} patients, fewer than {settings.k} folds: some fold would have "
                f"none. Set folds.k={max(2, len(having))}, or join strata"
            )


def _drawn(members: Sequence[FoldMember], settings: FoldSettings) -> Iterator[dict[str, int]]:
    """Yield candidate folds, those of the settings' own seed first; temporal folds have one candidate."""
    with optional_import(TRAIN, "drawing folds"):
        from sklearn.model_selection import KFold
    patients = sorted({member.patient for member in members})
    if settings.method == "temporal":
        in_time = sorted(patients, key=lambda patient: (_span(members, patient), patient))
        yield _of_patients(members, in_time, KFold(settings.k))
        return
    for shuffle in range(SHUFFLES):
        seed = settings.seed if shuffle == 0 else int(np.random.default_rng((settings.seed, shuffle)).integers(2**32))
        if settings.method == "kfold":
            yield _of_patients(members, patients, KFold(settings.k, shuffle=True, random_state=seed))
        else:
            yield _of_groups(members, patients, settings, seed)


def _of_patients(members: Sequence[FoldMember], patients: Sequence[str], splitter: KFold) -> dict[str, int]:
    fold_of: dict[str, int] = {}
    for fold, (_, held) in enumerate(splitter.split(np.zeros((len(patients), 1)))):
        fold_of.update({patients[index]: fold for index in held})
    return {member.name: fold_of[member.patient] for member in members}


def _of_groups(
    members: Sequence[FoldMember], patients: Sequence[str], settings: FoldSettings, seed: int
) -> dict[str, int]:
    """Draw folds of images with patients as groups; GroupKFold is deterministic, so its groups are shuffled."""
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    order = np.random.default_rng(seed).permutation(len(patients))
    number = {patient: int(at) for patient, at in zip(patients, order, strict=True)}
    groups = np.array([number[member.patient] for member in members])
    strata = np.array([member.stratum for member in members])
    splitter: GroupKFold | StratifiedGroupKFold = GroupKFold(settings.k)
    if settings.method == "stratified":
        splitter = StratifiedGroupKFold(settings.k, shuffle=True, random_state=seed)
    splits: Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]] = splitter.split(groups[:, None], strata, groups)
    return {members[index].name: fold for fold, (_, held) in enumerate(splits) for index in held}


def _span(members: Sequence[FoldMember], patient: str) -> tuple[date, date]:
    """Return the first and last date of a patient's images."""
    dates = [member.date for member in members if member.patient == patient and member.date is not None]
    return min(dates), max(dates)


# ---- validity ------------------------------------------------------------------------------------------------------


def _problems(folds: Mapping[str, int], members: Sequence[FoldMember], method: str) -> Iterator[str]:
    yield from _parted(folds, members)
    yield from _lacking(folds, members, {member.name: member.classes for member in members}, "object of class")
    if method == "stratified":
        strata = {member.name: frozenset({member.stratum}) for member in members}
        yield from _lacking(folds, members, strata, "image of stratum")
    if method == "temporal":
        yield from _late(folds, members)


def _parted(folds: Mapping[str, int], members: Sequence[FoldMember]) -> Iterator[str]:
    first: dict[str, FoldMember] = {}
    for member in members:
        other = first.setdefault(member.patient, member)
        if folds[other.name] != folds[member.name]:
            yield (
                f"patient {member.patient!r} is on both sides: {other.name} in fold {folds[other.name]}, "
                f"{member.name} in fold {folds[member.name]}"
            )


def _lacking(
    folds: Mapping[str, int], members: Sequence[FoldMember], held: Mapping[str, frozenset[str]], what: str
) -> Iterator[str]:
    everything = sorted(frozenset[str]().union(*held.values()))
    for fold in sorted(set(folds.values())):
        here = frozenset[str]().union(*(held[member.name] for member in members if folds[member.name] == fold))
        yield from (f"fold {fold} has no {what} {name!r}" for name in everything if name not in here)


def _late(folds: Mapping[str, int], members: Sequence[FoldMember]) -> Iterator[str]:
    """Yield a problem if an image is later than one of a later fold."""
    dated = sorted((folds[member.name], member.date, member.name) for member in members if member.date is not None)
    latest: tuple[int, date, str] | None = None
    for here in dated:
        if latest and latest[0] < here[0] and latest[1] > here[1]:
            yield (
                f"{latest[2]} ({latest[1]}) of fold {latest[0]} is later than {here[2]} ({here[1]}) of fold {here[0]}: "
                f"its patient has images before and after those of others"
            )
        if latest is None or here[1] > latest[1]:
            latest = here


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


# ---- the file ------------------------------------------------------------------------------------------------------


def keep_folds(path: Path, members: Sequence[FoldMember], settings: FoldSettings) -> Folds:
    """Return the folds in `path` if it exists, else draw and write them.

    Raises:
        AnnotationError: As for `assign_folds`, or the file belongs to other images or settings.
        MissingLibraryError: scikit-learn is not installed and folds have to be drawn.
    """
    if not path.exists():
        folds = assign_folds(members, settings)
        write_folds(path, folds)
        return folds
    folds = read_folds(path)
    _require_same(path, folds, members, settings)
    for problem in _problems(folds.folds, members, folds.method):
        raise AnnotationError(f"{path}: {problem}. The table of cases changed since they were drawn. {_ANEW}")
    return folds


def read_folds(path: Path) -> Folds:
    """Read the folds in a file.

    Raises:
        AnnotationError: `write_folds` did not write the file.
    """
    try:
        return Folds.model_validate_json(path.read_bytes())
    except OSError as error:
        raise AnnotationError(f"{path}: the folds cannot be read ({error.strerror})") from error
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"])) or "the file"
        raise AnnotationError(f"{path}: expected folds, found something else ({where}: {fault['msg']}). {_ANEW}") from (
            error
        )


def write_folds(path: Path, folds: Folds) -> None:
    """Write the file atomically; equal folds give equal bytes."""
    content = json.dumps(folds.model_dump(), indent=1, ensure_ascii=False) + "\n"
    write_atomically(path, content.encode())


def _require_same(path: Path, folds: Folds, members: Sequence[FoldMember], settings: FoldSettings) -> None:
    names = {member.name for member in members}
    for what, odd in (("are new", names - folds.folds.keys()), ("are gone", folds.folds.keys() - names)):
        if odd:
            raise AnnotationError(
                f"{path}: expected folds of these {len(names)} images, found others: {_some(sorted(odd))} {what}. "
                f"Train into another folder, or {_ANEW[0].lower()}{_ANEW[1:]}"
            )
    stated = {member.name: member.fold for member in members if member.fold is not None}
    if stated or folds.method == "column":
        agree = stated == folds.folds
        wanted, found = "those of the column 'fold'", f"{folds.method} ones"
    else:
        agree = (folds.method, folds.k, folds.seed) == (settings.method, settings.k, settings.seed)
        wanted = f"folds of method={settings.method}, k={settings.k}, seed={settings.seed}"
        found = f"method={folds.method}, k={folds.k}, seed={folds.seed}"
    if not agree:
        raise AnnotationError(f"{path}: expected {wanted}, found {found}, which differ. {_ANEW}")
