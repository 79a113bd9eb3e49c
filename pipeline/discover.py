"""Which slides a run is about, and under which key each one's output lies.

The one decision made here: a slide's key is its path below the folder that was asked for, without its extension. Two
slides with one key (also when only their case differs, which some file systems cannot tell apart), or one inside the
other's (``a.svs`` beside ``a/b.svs``), are refused by name; overtile's own output is never taken for input.
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

EXTENSIONS = (".ome.tiff", ".ome.tif")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A slide asked for: its key, its path, why it cannot even be tried (None: it can), its line of a cases table."""

    key: str
    path: Path
    refused: OvertileError | None = None
    case: Mapping[str, str] | None = None


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
    if source.is_dir():
        for path in _walk(source, out.resolve()):
            if any(fnmatch(path.name.casefold(), pattern.casefold()) for pattern in patterns):
                yield path, key_of(path.relative_to(source))
    elif os.path.lexists(source):
        yield source, key_of(Path(source.name))
    else:
        raise ConfigError(f"{source} does not exist: expected a slide or a folder of slides")


def _walk(folder: Path, out: Path) -> Iterable[Path]:
    for current, folders, files in os.walk(folder):
        here = Path(current)
        kept = [name for name in sorted(folders) if not _is_output(here / name, out)]
        folders[:] = kept
        yield from (here / name for name in sorted([*files, *kept]))


def _is_output(path: Path, out: Path) -> bool:
    return path.name.startswith(".") or path.name.casefold().endswith(".zarr") or path.resolve() == out


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
    cure = "Rename one, or segment them into two folders"
    return Candidate(candidate.key, candidate.path, SlideError(f"{candidate.path}: {reason}. {cure}"))
