"""The cases table: a CSV that selects slides, orders them, and sets values for single slides.

Nothing in the table is guessed. An ambiguous or malformed entry (a column or a slide twice, an empty name, a
resolution that is no number) refuses the whole table, by file and line, before a slide is read. A slide in the table
that does not exist is one failed slide; the others are segmented.

    slide          the key, the path below the input folder, the file name where it is unique, or an absolute path
    model          a built-in name, or a .safetensors file; replaces --model for this slide
    mpp            micrometres per pixel of the slide, or native; replaces --mpp for this slide
    regions        a GeoJSON file, or a folder of <key>.geojson; replaces input.regions for this slide
    priority       a number, larger first, empty is 0; equal ones in the order of the table
    patient, and any other column: copied to the results unchanged

Relative paths start at the folder of the table.
"""

from __future__ import annotations

import csv
import difflib
import io
import math
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from pipeline.config import InputSection, ModelSection, RunConfig
from pipeline.errors import ConfigError, SlideError, TableError
from pipeline.inputs.discovery import Candidate

SLIDE = "slide"
KNOWN = (SLIDE, "model", "mpp", "regions", "priority", "patient")
DELIMITERS = ",;\t"
"""Tried in this order: the first with which the table has a column ``slide`` is used."""
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the table. ``columns`` are all cells except the slide's, as written."""

    table: Path
    line: int
    slide: str
    columns: Mapping[str, str]

    @property
    def where(self) -> str:
        """File and line, for messages."""
        return f"{self.table}, line {self.line}"

    @property
    def priority(self) -> float:
        """Priority of the slide; larger ones come first. Raises TableError when it is not a number."""
        text = self._cell("priority") or "0"
        if math.isfinite(number := decimal_number(text)):
            return number
        raise TableError(self.where, f"expected a number as priority, found {text!r}; larger ones come first")

    def config(self, config: RunConfig) -> RunConfig:
        """Configuration of this slide's run: values of the line replace those of all slides.

        Raises:
            TableError: If ``mpp`` is not a resolution.
        """
        changes: dict[str, ModelSection | InputSection] = {}
        if model := self._cell("model"):
            changes["model"] = config.model.model_copy(update={"weights": self._weights(model)})
        own = {"mpp": self._mpp(), "regions": self._regions()}
        if own := {name: value for name, value in own.items() if value is not None}:
            changes["input"] = self._input(config, own)
        return config.model_copy(update=changes)

    def _cell(self, name: str) -> str:
        return self.columns.get(name, "").strip()

    def _weights(self, model: str) -> str:
        """A file when it looks like a path, else a built-in name."""
        is_file = model.endswith(".safetensors") or "/" in model
        return str(self.table.parent / model) if is_file else model

    def _mpp(self) -> float | str | None:
        mpp = self._cell("mpp")
        return mpp if mpp == "native" else decimal_number(mpp) if mpp else None

    def _regions(self) -> str | None:
        regions = self._cell("regions")
        return str(self.table.parent / regions) if regions else None

    def _input(self, config: RunConfig, own: Mapping[str, float | str | None]) -> InputSection:
        try:
            return InputSection.model_validate({**dict(config.input), **own})
        except ValidationError as error:
            raise TableError(
                self.where,
                "expected micrometres per pixel from 0.05 to 10 with a decimal point, such as 0.25, or 'native' as "
                f"mpp, found {self._cell('mpp')!r}. Leave the cell empty to use the slide's own",
            ) from error


def decimal_number(text: str) -> float:
    """A decimal number as commonly written; NaN for anything else, such as 1_0 or 0,25."""
    return float(text) if _NUMBER.fullmatch(text) else math.nan


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_cases(path: Path) -> tuple[Case, ...]:
    """Read a cases table.

    Args:
        path: CSV with commas, semicolons or tabs; UTF-8 with or without a byte order mark.

    Returns:
        Its lines by descending priority, equal ones in the order of the table.

    Raises:
        ConfigError: If the table is malformed; the message names file, line and remedy.
    """
    cases = [_case(path, line, row) for line, row in read_rows(path, SLIDE, KNOWN)]
    if not cases:
        raise ConfigError(f"{path}: expected one line a slide below the header, found none")
    for case in cases:
        case.config(RunConfig())  # refuses values that no configuration accepts
    return tuple(sorted(cases, key=lambda case: -case.priority))


def read_rows(path: Path, needed: str, known: Sequence[str], *more: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Read a CSV table with a header.

    Args:
        path: The table.
        needed: Column that must exist; the delimiter is the first of DELIMITERS that yields it.
        known: Column names that are refused in another letter case.
        more: Further columns that must exist.

    Yields:
        Line number, and cells by column name. Empty lines are left out.

    Raises:
        ConfigError: If a column is missing or occurs twice, or a cell has no column.
    """
    text = _text(path)
    records = _records(path, text, _delimiter(path, text, needed))
    line, header = next(records)
    _check_header(f"{path}, line {line}", header, known)
    if missing := [name for name in more if name not in header]:
        wanted, found = " and ".join((needed, *more)), ", ".join(header)
        raise TableError(f"{path}, line {line}", f"expected the columns {wanted}, found {found}. Add {missing[0]}")
    for line, cells in records:
        if any(cell.strip() for cell in cells):
            yield line, _row(f"{path}, line {line}", header, cells)


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the cases table {path}: {error.strerror}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}, line {line}: not UTF-8. Save the table as 'CSV UTF-8' and run again") from error
    if "\0" in text:
        raise ConfigError(f"{path} is not text: it holds zero bytes. Save the table as 'CSV UTF-8' and run again")
    return text


def _delimiter(path: Path, text: str, needed: str) -> str:
    for delimiter in DELIMITERS:
        with suppress(ConfigError):  # the quotation marks may be valid under another delimiter
            _, header = next(_records(path, text, delimiter), (1, []))
            if needed in header:
                return delimiter
    first = text.partition("\n")[0].strip()[:100]
    raise TableError(
        f"{path}, line 1",
        f"expected column names, one of them {needed!r}, with commas, semicolons or tabs between them, found {first!r}",
    )


def _records(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Each record with the line it starts on."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise ConfigError(f"{path}, line {line}: {error}. Is a quotation mark missing?") from error
        if cells is None:
            return
        yield line, cells


def _check_header(where: str, header: Sequence[str], expected: Sequence[str]) -> None:
    for name in header:
        if header.count(name) > 1 and name:
            raise TableError(where, f"column {name!r} occurs {header.count(name)} times. Rename or remove one")
        known = name.strip().casefold()
        if known in expected and name != known:
            raise TableError(where, f"column {name!r}: expected {known!r}. Rename it, in small letters")


def _row(where: str, header: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    if len(cells) != len(header):
        raise ConfigError(
            f"{where}: expected {len(header)} cells as in the header, found {len(cells)}. "
            "Put a cell that holds a delimiter into quotation marks"
        )
    if nameless := [cell for name, cell in zip(header, cells, strict=True) if not name.strip() and cell.strip()]:
        raise TableError(where, f"{nameless[0]!r} is in a column without a name. Name the column in the header")
    return {name: cell for name, cell in zip(header, cells, strict=True) if name.strip()}


def _case(path: Path, line: int, columns: dict[str, str]) -> Case:
    slide = columns.pop(SLIDE)
    if not slide.strip():
        raise ConfigError(f"{path}, line {line}: the cell 'slide' is empty. Name a slide, or remove the line")
    return Case(path, line, slide, columns)


# ---- matching lines and slides ---------------------------------------------------------------------------------------


def match_cases(
    cases: Sequence[Case], candidates: Sequence[Candidate], *, telling: bool = True
) -> list[tuple[Candidate, Case]]:
    """Match the lines of a table to slides.

    Args:
        cases: Lines of the table.
        candidates: Slides found.
        telling: Whether messages may suggest names of slides that no line names; False under redaction.

    Returns:
        Slides and lines in the order of the lines. A slide that does not exist is a refused candidate.

    Raises:
        TableError: If a line fits several slides, or two lines name one slide.
    """
    names = _Names.of(candidates, telling=telling)
    chosen: dict[tuple[str, Path], tuple[Candidate, Case]] = {}
    for case in cases:
        for candidate in names.find(case):
            name = candidate.key, candidate.path
            if name in chosen:
                _, other = chosen[name]
                raise TableError(
                    case.where, f"{case.slide!r} is the slide of line {other.line} too ({other.slide!r}). Keep one"
                )
            chosen[name] = replace(candidate, case=dict(case.columns)), case
    return list(chosen.values())


@dataclass(frozen=True, slots=True)
class _Names:
    """Names of slides, most exact first: key, path below the input, absolute path, file name."""

    kinds: tuple[Mapping[str, list[Candidate]], ...]
    telling: bool

    @classmethod
    def of(cls, candidates: Sequence[Candidate], *, telling: bool) -> _Names:
        kinds: tuple[dict[str, list[Candidate]], ...] = ({}, {}, {}, {})
        for candidate in candidates:
            below = PurePosixPath(candidate.key).parent / candidate.path.name
            names = (candidate.key, str(below), os.path.abspath(candidate.path), candidate.path.name)
            for kind, name in zip(kinds, names, strict=True):
                kind.setdefault(_normalised(name), []).append(candidate)
        return cls(kinds, telling)

    def find(self, case: Case) -> list[Candidate]:
        """The slide of a line; several when a collision refuses them all."""
        text = _normalised(os.path.normpath(case.slide) if os.path.isabs(case.slide) else case.slide)
        for kind in self.kinds:
            matches = kind.get(text, [])
            if len(matches) > 1 and kind is self.kinds[-1]:
                paths = ", ".join(str(candidate.path) for candidate in matches)
                raise TableError(case.where, f"{len(matches)} slides are called {case.slide!r}: {paths}. Give the path")
            if matches:
                return matches
        return [Candidate(case.slide, Path(case.slide), self._unknown(case, text))]

    def _unknown(self, case: Case, text: str) -> SlideError:
        below = self.kinds[1]
        near = difflib.get_close_matches(text, list(below), n=1, cutoff=0.6)
        hint = f": did you mean {near[0]!r}?" if near else f": found for example {next(iter(below), 'nothing')!r}."
        known = f"{len(below)} that were found{hint if self.telling else '.'}"
        return SlideError(
            f"{case.where}: no slide {case.slide!r} among the {known} Expected a key, a path below the input folder, a "
            "file name or an absolute path"
        )


def _normalised(name: str) -> str:
    """One spelling of accented letters: file systems and spreadsheets use different ones."""
    return unicodedata.normalize("NFC", name)
