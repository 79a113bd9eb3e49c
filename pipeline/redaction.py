"""Slide pseudonyms, and redaction of slide names in messages (``outputs.redact``).

Messages are written with the slide's path in them and redacted where they leave the program. So code that writes a
message need not know whether names are redacted, and all messages are covered.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType

from pipeline.errors import OvertileError

FEWEST_DIGITS, FEWEST_CHARACTERS = 4, 2
"""Shorter numbers, and shorter names, are replaced only as part of a path: alone they do not identify a slide."""


@dataclass(frozen=True, slots=True)
class Pseudonym:
    """The pseudonym of a slide, and what it replaces.

    Attributes:
        key: The pseudonym, used as the slide's key.
        name: The key that the slide would have without redaction.
        paths: Paths to replace, the longest first.
        words: Words to replace, the longest first.
    """

    key: str
    name: str
    paths: tuple[str, ...]
    words: tuple[str, ...]

    @classmethod
    def of(cls, key: str, name: str, path: Path) -> Pseudonym:
        """Make the pseudonym of the slide at ``path``; ``name`` is its path below the input, without extension."""
        paths = {str(path), os.path.abspath(path), os.path.realpath(path)}
        below = PurePosixPath(name)
        without_suffix = {str(Path(full).parent / below.name) for full in paths}  # the folder beside an .mrxs file
        words = {name, str(below.parent / path.name), *below.parts, *(Path(full).name for full in paths)}
        return cls(key, name, _longest_first(paths | without_suffix), _longest_first(filter(_identifies, words)))

    def redact(self, text: str) -> str:
        """The text with the pseudonym in place of everything that identifies the slide."""
        for path in self.paths:
            text = text.replace(path, self.key)
        for word in self.words:
            if word in text:
                text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", lambda _: self.key, text)
        return text


def redact_error(error: Exception, alias: Pseudonym | None) -> Exception:
    """The error with a redacted message; the error itself when there is nothing to redact."""
    return _with_message(error, alias.redact(str(error))) if alias else error


@dataclass(frozen=True, slots=True)
class RedactErrors:
    """Context manager that redacts the messages of errors and drops their causes; ``tidy`` is applied last."""

    alias: Pseudonym | None
    tidy: Callable[[str], str] = str

    def __enter__(self) -> None:
        return

    def __exit__(self, _kind: object, error: BaseException | None, _trace: TracebackType | None) -> None:
        if isinstance(error, Exception):
            message = self.tidy(str(redact_error(error, self.alias)))
            if self.alias or message != str(error):
                raise _with_message(error, message) from None


def _with_message(error: Exception, message: str) -> Exception:
    """The error itself when it has this message, else an error of its kind that has it."""
    if message == str(error):
        return error
    kinds = (kind for kind in type(error).__mro__ if kind.__module__ == OvertileError.__module__)
    kind = next(kinds, None)  # classes of the error tree take a message and nothing else
    return kind(message) if kind else OvertileError(f"{type(error).__name__}: {message}")


def _longest_first(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(words, key=lambda word: (-len(word), word)))


def _identifies(word: str) -> bool:
    return len(word) >= (FEWEST_DIGITS if word.isdecimal() else FEWEST_CHARACTERS)
