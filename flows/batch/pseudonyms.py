"""Names that are not told: the file that says which slide an id stands for (``outputs.redact``).

The one decision made here: an id is a keyed hash of the slide's key, and the key to it lies in that file alone. So a
slide has one id for all runs with the file, and without it nobody finds a name by trying all there may be. Only its
owner may read the file, it lies outside OUT, and lines are only appended.

    {"secret": hex}    {"id": "slide-..", "name": key, "path": ..}    {"id": "patient-..", "name": ..}
"""

from __future__ import annotations

import fcntl
import hmac
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.errors import ConfigError, OvertileError
from pipeline.inputs.discovery import Candidate
from pipeline.redaction import Pseudonym, redact_error
from pipeline.storage.atomic_files import append_json, read_json_lines

DIGITS = 12
SECRET_BYTES = 32
PATIENT = "patient"
"""The column of a cases table whose words are replaced too."""


@dataclass(slots=True)
class Pseudonyms:
    """What the file holds: the secret, names by id, and lines that are not in it yet."""

    secret: bytes
    known: dict[str, str] = field(default_factory=dict)
    new: list[dict[str, str]] = field(default_factory=list)

    def id_of(self, kind: str, name: str, path: str | None = None) -> str:
        """The id of a thing of this kind; remembered, with its path, when it is new. Raises ConfigError for a twin."""
        content = f"{kind}\0{name}".encode(errors="surrogateescape")
        found = f"{kind}-{hmac.new(self.secret, content, 'sha256').hexdigest()[:DIGITS]}"
        if found not in self.known:
            self.known[found] = name
            self.new.append({"id": found, "name": name} | ({} if path is None else {"path": path}))
        if self.known[found] != name:
            raise ConfigError(f"outputs.redact: two names have the id {found}. Use another file for one of them")
        return found

    def redacted(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The slides under their ids, with the patients' ids, and refused in words that tell no name."""
        aliases = [self._alias(candidate) for candidate in candidates]
        return [
            replace(
                candidate,
                key=alias.key,
                alias=alias,
                refused=candidate.refused and _redacted_error(candidate.refused, [alias, *aliases]),
                case=candidate.case and self._case(candidate.case),
            )
            for candidate, alias in zip(candidates, aliases, strict=True)
        ]

    def _alias(self, candidate: Candidate) -> Pseudonym:
        path = os.path.abspath(candidate.path)
        return Pseudonym.of(self.id_of("slide", candidate.key, path), candidate.key, candidate.path)

    def _case(self, case: Mapping[str, str]) -> dict[str, str]:
        patient = case.get(PATIENT, "").strip()
        return {**case, PATIENT: self.id_of(PATIENT, patient)} if patient else dict(case)


def _redacted_error(error: OvertileError, aliases: Iterable[Pseudonym]) -> OvertileError:
    """A refusal may name other slides too."""
    for alias in aliases:
        found = redact_error(error, alias)
        assert isinstance(found, OvertileError), "what it makes of ours is ours"
        error = found
    return error


@contextmanager
def names_of(path: Path, out: Path, *, writing: bool = True) -> Iterator[Pseudonyms]:
    """The names in a file, which is made when it is not there; what is new is in it in the end.

    Nothing is made or written unless ``writing``: ids are then made up where there is no file. Raises ConfigError for a
    file in OUT, one that others may read, and one that is something else.
    """
    if path.resolve().is_relative_to(out.resolve()):
        raise ConfigError(f"outputs.redact={path}: expected a file outside of {out}, which you may want to hand on")
    if not writing and not path.exists():
        yield Pseudonyms(secrets.token_bytes(SECRET_BYTES))
        return
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            names = _read(path, file)
            yield names
            for line in names.new if writing else ():
                append_json(path, line)
            os.fsync(file)
        finally:
            os.close(file)
    except OSError as error:
        raise ConfigError(
            f"outputs.redact={path}: expected a file that can be read and written, found: {error.strerror or error}"
        ) from error


def _read(path: Path, file: int) -> Pseudonyms:
    if stat.S_IMODE(os.fstat(file).st_mode) & 0o077:
        raise ConfigError(f"{path} may be read by others: expected a file that only you can read. Run chmod 600 on it")
    lines = [line for line in read_json_lines(path) if isinstance(line, dict)]
    named = {line["id"]: line["name"] for line in lines if {"id", "name"} <= line.keys()}
    for line in lines:
        if "secret" in line:
            return Pseudonyms(bytes.fromhex(line["secret"]), named)
    if path.read_bytes().strip():
        raise ConfigError(f"outputs.redact={path}: expected a file of names that was written here, or none at all")
    secret = secrets.token_bytes(SECRET_BYTES)
    append_json(path, {"secret": secret.hex()})
    return Pseudonyms(secret, named)
