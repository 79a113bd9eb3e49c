"""Find the slides of a run, and the key under which each one's output is stored.

The key of a slide is its path below the given folder, without its extension. Two slides with one key (also when only
letter case differs, which some file systems ignore), or a key inside another (``a.svs`` beside ``a/b.svs``), are
refused by name, and so is a slide whose output would have the name of a file of the results (``batch.json.png``).
Output of overtile is never taken for input.

A slide of several files counts once: an MRXS with its folder, an OME-Zarr, the DICOM instances of one series (keyed by
their folder when it holds nothing else, else by the first of them). Unreadable formats are listed too, so that they
fail by name, unless their conversion lies beside them.
"""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from itertools import chain, permutations, product
from pathlib import Path, PurePosixPath

from pipeline.errors import ConfigError, OvertileError, SlideError
from pipeline.redaction import Pseudonym
from pipeline.slides.dicom import DICOM, group_by_series
from pipeline.slides.format_detection import UNREADABLE, is_ome_zarr, is_own_result, owned_names
from pipeline.storage.layout import OWN_NAMES

EXTENSIONS = (".ome.tiff", ".ome.tif", ".ome.zarr")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A slide of the run before it is opened.

    Attributes:
        key: Path of its output below the output folder; an id when there is an alias.
        path: The file or folder.
        refused: Why it cannot be segmented; None when it can.
        case: Its line of a cases table, by column.
        alias: Pseudonym under ``outputs.redact``; the slide's name then appears in no output.
    """

    key: str
    path: Path
    refused: OvertileError | None = None
    case: Mapping[str, str] | None = None
    alias: Pseudonym | None = None

    @property
    def name(self) -> str:
        """Base name of the user's files for this slide (masks, regions): its key without redaction."""
        return self.alias.name if self.alias else self.key

    @property
    def shown(self) -> Path:
        """Its path for messages; the key when the name is redacted."""
        return Path(self.key) if self.alias else self.path

    def redact(self, text: str) -> str:
        """The text with the name of the slide redacted where needed."""
        return self.alias.redact(text) if self.alias else text


def find_slides(inputs: Sequence[Path], patterns: Sequence[str], out: Path) -> list[Candidate]:
    """List the slides of files and folders.

    Args:
        inputs: Slides, and folders that are searched recursively.
        patterns: File name patterns for folders, in any letter case.
        out: Output folder of this run, which is skipped.

    Returns:
        Candidates sorted by key; colliding ones have ``refused`` set.

    Raises:
        ConfigError: If an input does not exist or no slide matches; the message lists the patterns.
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
    ordered = sorted(found.values(), key=lambda candidate: candidate.key)
    return _refuse_collisions([_refuse_own_name(candidate) for candidate in ordered])


def _expand(source: Path, patterns: Sequence[str], out: Path) -> Iterable[tuple[Path, str]]:
    if source.is_dir() and not (is_ome_zarr(source) or is_own_result(source)):
        for folder, names in _walk(source, out.resolve()):
            matching = [
                name for name in names if any(fnmatch(name.casefold(), pattern.casefold()) for pattern in patterns)
            ]
            yield from _slides(source, folder, matching)
    elif os.path.lexists(source):
        yield source, key_of(Path(source.name or source.resolve().name))
    else:
        raise ConfigError(f"{source} does not exist: expected a slide or a folder of slides")


def _walk(folder: Path, out: Path) -> Iterable[tuple[Path, list[str]]]:
    """Each folder with the names in it that may be slides, without parts of slides and output of overtile."""
    for current, folders, files in os.walk(folder) if not _is_result(folder) else ():
        parent = Path(current)
        owned = owned_names(parent, files)
        kept = [name for name in sorted(folders) if name not in owned and not _is_output(parent / name, out)]
        folders[:] = [name for name in kept if not _is_zarr(name)]
        visible = [name for name in files if name not in owned and not name.startswith(".")]
        yield parent, sorted([*visible, *(name for name in kept if not _is_zarr(name) or is_ome_zarr(parent / name))])


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
    """Names of an unreadable format that have a readable twin: ``a.czi`` beside ``a.zarr``."""
    unreadable = {name for name in names if Path(name).suffix.casefold() in UNREADABLE}
    readable = {key_of(Path(name)) for name in names if name not in unreadable}
    return {name for name in unreadable if key_of(Path(name)) in readable}


def _is_zarr(name: str) -> bool:
    return name.casefold().endswith(".zarr")


def _is_output(path: Path, out: Path) -> bool:
    """Whether a folder is the output folder of this run, a slide's folder of another run, or hidden."""
    return path.name.startswith(".") or path.resolve() == out or _is_result(path)


def _is_result(folder: Path) -> bool:
    """Whether a folder is the output of a slide, complete or not."""
    return (folder / "slide.ome.zarr").is_dir() or (folder / ".work" / "plan.json").is_file()


def key_of(relative: Path) -> str:
    """The path without its extension (``.ome.tif`` counts as one), with forward slashes."""
    name = relative.name
    for extension in (*EXTENSIONS, relative.suffix):
        if extension and name.casefold().endswith(extension.casefold()) and len(name) > len(extension):
            name = name[: -len(extension)]
            break
    return (relative.parent / name).as_posix()


def _refuse_own_name(candidate: Candidate) -> Candidate:
    """The slide, refused if a part of its key is a name of the results."""
    taken = [part for part in PurePosixPath(candidate.key).parts if _folded(part) in OWN_NAMES]
    if not taken:
        return candidate
    reason = f"its output would be the folder {candidate.key!r}, and {taken[0]!r} is a name of files of the results"
    return replace(candidate, refused=SlideError(f"{candidate.path}: {reason}. Rename the slide or its folder"))


def _refuse_collisions(candidates: list[Candidate]) -> list[Candidate]:
    groups: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        groups[_folded(candidate.key)].append(candidate)
    rivals: dict[Path, list[Candidate]] = defaultdict(list)
    for folded, group in groups.items():
        containing = [outer for above in PurePosixPath(folded).parents for outer in groups.get(str(above), ())]
        for candidate, rival in chain(permutations(group, 2), product(group, containing), product(containing, group)):
            rivals[candidate.path].append(rival)
    return [
        _refuse(candidate, rivals[candidate.path]) if candidate.path in rivals else candidate
        for candidate in candidates
    ]


def _folded(key: str) -> str:
    return unicodedata.normalize("NFC", key).casefold()


def _refuse(candidate: Candidate, rivals: Sequence[Candidate]) -> Candidate:
    others = ", ".join(str(other.path) for other in rivals)
    reason = f"its output would be {candidate.key!r}, which equals, contains or lies in that of {others}"
    remedy = "Rename one, segment them into two folders, or leave one out with --set 'input.pattern=[\"*.svs\"]'"
    return Candidate(candidate.key, candidate.path, SlideError(f"{candidate.path}: {reason}. {remedy}"))
