"""The key file of `outputs.redact`: maps pseudonyms to slides.

A pseudonym is a keyed hash (HMAC-SHA-256) of the slide's key; the secret is in the key file only. So a slide has the
same pseudonym in all runs with the file, and names cannot be found by hashing guesses. Only the owner may read the
file, it is outside OUT, and lines are only appended.

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
"""The column of a cases table whose values are replaced too."""


@dataclass(slots=True)
class Pseudonyms:
    """Content of the key file: the secret, names by id, and lines to append."""

    secret: bytes
    known: dict[str, str] = field(default_factory=dict)
    new: list[dict[str, str]] = field(default_factory=list)

    def id_of(self, kind: str, name: str, path: str | None = None) -> str:
        """The id of a name, recorded with its path when it is new.

        Raises:
            ConfigError: Another name has the same id.
        """
        content = f"{kind}\0{name}".encode(errors="surrogateescape")
        identifier = f"{kind}-{hmac.new(self.secret, content, 'sha256').hexdigest()[:DIGITS]}"
        if identifier not in self.known:
            self.known[identifier] = name
            self.new.append({"id": identifier, "name": name} | ({} if path is None else {"path": path}))
        if self.known[identifier] != name:
            raise ConfigError(f"outputs.redact: two names have the id {identifier}. Use another file for one of them")
        return identifier

    def redacted(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The slides with pseudonyms as keys, of patients too, and with redacted errors."""
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
    """The error without names; it may name several slides."""
    for alias in aliases:
        redacted = redact_error(error, alias)
        assert isinstance(redacted, OvertileError), "redaction keeps the type"
        error = redacted
    return error


@contextmanager
def open_key_file(path: Path, out: Path, *, writing: bool = True) -> Iterator[Pseudonyms]:
    """Open the key file, or create it, and append new names at the end of the context.

    Args:
        path: The key file.
        out: Output folder, in which the file must not be.
        writing: Whether to write; otherwise pseudonyms are random where there is no file.

    Raises:
        ConfigError: The file is in ``out``, others may read it, or it is no key file.
    """
    if path.resolve().is_relative_to(out.resolve()):
        raise ConfigError(f"outputs.redact={path}: expected a file outside of {out}, because results may be shared")
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
        raise ConfigError(f"outputs.redact={path}: expected a key file written by overtile, or a new path")
    secret = secrets.token_bytes(SECRET_BYTES)
    append_json(path, {"secret": secret.hex()})
    return Pseudonyms(secret, named)
