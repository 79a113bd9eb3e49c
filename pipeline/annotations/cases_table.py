"""The table of annotated images: patient, date, stratum and fold of each image.

Everything that decides a split is stated in the table and never guessed. A date is complete and in ISO form, a name
that matches no image or two is an error that names the line, and images without a patient are reported.

    image      the file's name, with or without its extension, or its path below the folder of images
    patient    images of one patient are never in different folds; default: the slide, else the image itself
    date       2024-05-31; for temporal folds       stratum    for stratified folds       fold    overrides all methods
    mpp        um per pixel of level 0, where the file states none or a wrong one
    weight     how often the image is drawn in training, relative to the others; default 1

Other columns are free; ``data.only`` selects lines by the cells of any column.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.inputs.cases_table import decimal_number, read_rows
from pipeline.inputs.discovery import Candidate, key_of
from pipeline.slides.resample import MPP_RANGE_UM

IMAGE, SLIDE = "image", "slide"
COLUMNS = (IMAGE, "patient", SLIDE, "date", "stratum", "fold", "mpp", "weight")


@dataclass(frozen=True, slots=True)
class AnnotationRow:
    """Metadata of an image. Without a table each image is its own patient.

    ``mpp`` replaces the resolution that the file states, in um per pixel; ``weight`` is the frequency of draws.
    """

    patient: str
    slide: str = ""
    date: date | None = None
    stratum: str = ""
    fold: int | None = None
    mpp: float | None = None
    weight: float = 1.0


def read_table(path: Path, images: Sequence[Candidate], only: Mapping[str, str | int]) -> dict[str, AnnotationRow]:
    """Read the rows of the table.

    Args:
        path: CSV file.
        images: The images that rows may refer to.
        only: Values of columns that select rows.

    Returns:
        The selected rows by key of image.

    Raises:
        ConfigError: A row is invalid; the message names file and line.
    """
    rows: dict[str, AnnotationRow] = {}
    lines: dict[str, int] = {}
    names = _names(images)
    for line, cells in read_rows(path, IMAGE, COLUMNS):
        where = f"{path}, line {line}"
        if not _chosen(where, cells, only):
            continue
        key = _key(where, cells[IMAGE].strip(), names)
        if key in rows:
            raise ConfigError(f"{where}: {cells[IMAGE]!r} is the image of line {lines[key]} too. Keep one")
        rows[key], lines[key] = _row(where, key, {name: cell.strip() for name, cell in cells.items()}), line
    if not rows:
        chosen = f" with {dict(only)}" if only else ""
        raise ConfigError(f"{path}: expected one line an image{chosen}, found none. Correct data.only or the table")
    return rows


def _chosen(where: str, cells: Mapping[str, str], only: Mapping[str, str | int]) -> bool:
    for column in only:
        if column not in cells:
            raise ConfigError(f"{where}: data.only names the column {column!r}; there are {', '.join(cells)}")
    return all(cells[column].strip() == str(value) for column, value in only.items())


def _names(images: Sequence[Candidate]) -> dict[str, list[str]]:
    """Keys of images by every name that may refer to them."""
    names: dict[str, list[str]] = {}
    for image in images:
        for name in {image.key, image.path.name, key_of(Path(image.path.name)), _below(image)}:
            names.setdefault(name, []).append(image.key)
    return names


def _below(image: Candidate) -> str:
    """Path of an image below the folder of images."""
    return (Path(image.key).parent / image.path.name).as_posix()


def _key(where: str, name: str, names: Mapping[str, list[str]]) -> str:
    found = names.get(name, [])
    if len(found) > 1:
        raise ConfigError(f"{where}: {len(found)} images are called {name!r}: {', '.join(found)}. Give the path")
    if found:
        return found[0]
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    hint = f"did you mean {near[0]!r}?" if near else f"found for example {next(iter(names), 'nothing')!r}."
    raise ConfigError(
        f"{where}: no image {name!r} in the folder of images: {hint} Remove the line, or select lines, for example "
        f"--set 'data.only={{kind: he}}'"
    )


def _row(where: str, key: str, cells: Mapping[str, str]) -> AnnotationRow:
    slide = cells.get(SLIDE, "")
    patient = cells.get("patient", "")
    if "patient" in cells and not patient:
        raise ConfigError(f"{where}: the cell 'patient' is empty. Fill it in: images of one patient are never parted")
    return AnnotationRow(
        patient or slide or key,
        slide,
        _date(where, cells),
        cells.get("stratum", ""),
        _fold(where, cells.get("fold", "")),
        _mpp(where, cells.get("mpp", "")),
        _weight(where, cells.get("weight", "")),
    )


def _date(where: str, cells: Mapping[str, str]) -> date | None:
    text = cells.get("date", "")
    if not text:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"{where}: expected a date such as 2024-05-31 (year, month, day), found {text!r}") from error


def _fold(where: str, text: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"{where}: expected a whole number as fold, found {text!r}")
    return int(text)


def _mpp(where: str, text: str) -> float | None:
    if not text:
        return None
    low, high = MPP_RANGE_UM
    if low <= (mpp := decimal_number(text)) <= high:
        return mpp
    raise ConfigError(
        f"{where}: expected um per pixel from {low:g} to {high:g} with a decimal point, such as 0.25, as mpp, found "
        f"{text!r}. Leave the cell empty to use the file's own"
    )


def _weight(where: str, text: str) -> float:
    if not text:
        return 1.0
    if (weight := decimal_number(text)) > 0 and math.isfinite(weight):
        return weight
    raise ConfigError(f"{where}: expected a number above 0 as weight, found {text!r}. Leave out images not to be used")
