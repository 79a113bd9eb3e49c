"""Which slides a run is about, and under which key each one's output lies.

The one decision made here: a slide's key is its path below the folder that was asked for, without its extension. Two
slides with one key (also when only their case differs, which some file systems cannot tell apart), or one inside the
other's (``a.svs`` beside ``a/b.svs``), are refused by name; overtile's own output is never taken for input.

A slide that is several files counts once: an MRXS with its folder, an OME-Zarr, the DICOM instances of one series
(keyed by their folder when it holds nothing else, else by the first of them). What cannot be read is found too, to fail
by name, unless its conversion stands beside it.
"""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import chain, permutations, product
from pathlib import Path, PurePosixPath

from pipeline.errors import ConfigError, OvertileError, SlideError
from pipeline.redaction import Pseudonym
from pipeline.slides.dicom import DICOM, group_by_series
from pipeline.slides.format_detection import UNREADABLE, is_ome_zarr, is_own_result, owned_names

EXTENSIONS = (".ome.tiff", ".ome.tif", ".ome.zarr")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A slide asked for: its key, its path, why it cannot even be tried (None: it can), its line of a cases table.

    With an ``alias`` the key is an id, and nothing else of the slide's name may be told.
    """

    key: str
    path: Path
    refused: OvertileError | None = None
    case: Mapping[str, str] | None = None
    alias: Pseudonym | None = None

    @property
    def name(self) -> str:
        """What files that belong to the slide are called: its key, had it no alias."""
        return self.alias.name if self.alias else self.key

    @property
    def shown(self) -> Path:
        """Its path as it may be told."""
        return Path(self.key) if self.alias else self.path

    def told(self, text: str) -> str:
        """The text without the slide's name where that may not be told."""
        return self.alias.text(text) if self.alias else text


def find_slides(inputs: Sequence[Path], patterns: Sequence[str], out: Path) -> list[Candidate]:
    """Slides below the given files and folders, sorted by key; collisions come back refused.

    Raises ConfigError when an input does not exist or nothing matches, naming the patterns tried.
    """
    found: dict[Path, Candidate] = {}
    for source in inputs:
        for path, key in _expand(source, patterns, out):
            found.setdefault(Path(os.path.abspath(path)), Candidate(key, path))
    if not found:
        raise ConfigError(
            f"no slide found in {', '.join(map(str, inputs))}: tried {', '.join(patterns)}. "
            f"Give another folder or --set 'input.pattern=[\"*.tif\"]'"
        )
    return _refuse_collisions(sorted(found.values(), key=lambda candidate: candidate.key))


def _expand(source: Path, patterns: Sequence[str], out: Path) -> Iterable[tuple[Path, str]]:
    if source.is_dir() and not (is_ome_zarr(source) or is_own_result(source)):
        for folder, names in _walk(source, out.resolve()):
            matching = [name for name in names if any(fnmatch(name.casefold(), one.casefold()) for one in patterns)]
            yield from _slides(source, folder, matching)
    elif os.path.lexists(source):
        yield source, key_of(Path(source.name or source.resolve().name))
    else:
        raise ConfigError(f"{source} does not exist: expected a slide or a folder of slides")


def _walk(folder: Path, out: Path) -> Iterable[tuple[Path, list[str]]]:
    """Every folder with the names in it that may be slides. What belongs to a slide, or to overtile, is left out."""
    for current, folders, files in os.walk(folder) if not _is_result(folder) else ():
        here = Path(current)
        owned = owned_names(here, files)
        kept = [name for name in sorted(folders) if name not in owned and not _is_output(here / name, out)]
        folders[:] = [name for name in kept if not _is_zarr(name)]
        shown = [name for name in files if name not in owned and not name.startswith(".")]
        yield here, sorted([*shown, *(name for name in kept if not _is_zarr(name) or is_ome_zarr(here / name))])


def _slides(source: Path, folder: Path, names: Sequence[str]) -> Iterable[tuple[Path, str]]:
    """Path and key of the slides among the names in a folder below ``source``."""
    instances = [folder / name for name in names if name.casefold().endswith(DICOM) and (folder / name).is_file()]
    series = group_by_series(instances)
    if len(series) == 1 and len(instances) == len(names) > 1:
        yield folder, folder.relative_to(source).as_posix() if folder != source else folder.resolve().name
        return
    left_out = {instance.name for members in series for instance in members[1:]} | _converted(names)
    for path in (folder / name for name in names if name not in left_out):
        yield path, key_of(path.relative_to(source))


def _converted(names: Sequence[str]) -> set[str]:
    """Of the names those of an unreadable format that have a readable twin: ``a.czi`` beside ``a.zarr``."""
    unreadable = {name for name in names if Path(name).suffix.casefold() in UNREADABLE}
    readable = {key_of(Path(name)) for name in names if name not in unreadable}
    return {name for name in unreadable if key_of(Path(name)) in readable}


def _is_zarr(name: str) -> bool:
    return name.casefold().endswith(".zarr")


def _is_output(path: Path, out: Path) -> bool:
    """True for the output folder of this run, for a slide's folder in that of another, and for what is hidden."""
    return path.name.startswith(".") or path.resolve() == out or _is_result(path)


def _is_result(folder: Path) -> bool:
    """True for what a slide was made into, complete or not."""
    return (folder / "slide.ome.zarr").is_dir() or (folder / ".work" / "plan.json").is_file()


def key_of(relative: Path) -> str:
    """The path without its extension (``.ome.tif`` counts as one), with forward slashes."""
    name = relative.name
    for extension in (*EXTENSIONS, relative.suffix):
        if extension and name.casefold().endswith(extension.casefold()) and len(name) > len(extension):
            name = name[: -len(extension)]
            break
    return (relative.parent / name).as_posix()


def _refuse_collisions(candidates: list[Candidate]) -> list[Candidate]:
    groups: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        groups[_folded(candidate.key)].append(candidate)
    rivals: dict[Path, list[Candidate]] = defaultdict(list)
    for folded, group in groups.items():
        holders = [one for above in PurePosixPath(folded).parents for one in groups.get(str(above), ())]
        for one, other in chain(permutations(group, 2), product(group, holders), product(holders, group)):
            rivals[one.path].append(other)
    return [_refuse(one, rivals[one.path]) if one.path in rivals else one for one in candidates]


def _folded(key: str) -> str:
    return unicodedata.normalize("NFC", key).casefold()


def _refuse(candidate: Candidate, rivals: Sequence[Candidate]) -> Candidate:
    others = ", ".join(str(other.path) for other in rivals)
    reason = f"its output would be {candidate.key!r}, which is, holds or lies in that of {others}"
    cure = "Rename one, segment them into two folders, or leave one out with --set 'input.pattern=[\"*.svs\"]'"
    return Candidate(candidate.key, candidate.path, SlideError(f"{candidate.path}: {reason}. {cure}"))
