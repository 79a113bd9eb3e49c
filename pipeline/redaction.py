"""The id that is told instead of a slide's name, and how the name is taken out of what is said.

The one decision made here: a message is made by whoever knows what happened, with the path in it, and the path is taken
out on its way to where others read it. So no reader has to know that names may not be told, and what is forgotten by
one is caught for all of them.
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
"""A name that is a shorter number, or shorter at all, is taken out as part of a path only: it tells nothing alone."""


@dataclass(frozen=True, slots=True)
class Pseudonym:
    """What a slide is called: the id ``key``, its ``name`` (its key as it would be), and all words that would tell it.

    ``paths`` and ``words`` are in the order in which they are looked for, the longest first.
    """

    key: str
    name: str
    paths: tuple[str, ...]
    words: tuple[str, ...]

    @classmethod
    def of(cls, key: str, name: str, path: Path) -> Pseudonym:
        """``name`` is the slide's path below its input without extension."""
        whole = {str(path), os.path.abspath(path), os.path.realpath(path)}
        below = PurePosixPath(name)
        without = {str(Path(one).parent / below.name) for one in whole}  # what lies in a folder beside an .mrxs
        words = {name, str(below.parent / path.name), *below.parts, *(Path(one).name for one in whole)}
        return cls(key, name, _longest_first(whole | without), _longest_first(filter(_tells, words)))

    def text(self, said: str) -> str:
        """The text with the id in place of all that would tell the slide."""
        for path in self.paths:
            said = said.replace(path, self.key)
        for word in self.words:
            if word in said:
                said = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", lambda _: self.key, said)
        return said


def redact_error(error: Exception, alias: Pseudonym | None) -> Exception:
    """The error as it may be told."""
    return _retold(error, alias.text(str(error))) if alias else error


@dataclass(frozen=True, slots=True)
class RedactErrors:
    """What is raised inside leaves in words that may be told (``tidy`` has the last), without the errors before it."""

    alias: Pseudonym | None
    tidy: Callable[[str], str] = str

    def __enter__(self) -> None:
        return

    def __exit__(self, _kind: object, error: BaseException | None, _trace: TracebackType | None) -> None:
        if isinstance(error, Exception):
            told = self.tidy(str(redact_error(error, self.alias)))
            if self.alias or told != str(error):
                raise _retold(error, told) from None


def _retold(error: Exception, told: str) -> Exception:
    """The error itself when that is what it says, else one of its kind that says it."""
    if told == str(error):
        return error
    kinds = (kind for kind in type(error).__mro__ if kind.__module__ == OvertileError.__module__)
    kind = next(kinds, None)  # of the tree, whose errors take a message and nothing else
    return kind(told) if kind else OvertileError(f"{type(error).__name__}: {told}")


def _longest_first(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(words, key=lambda word: (-len(word), word)))


def _tells(word: str) -> bool:
    return len(word) >= (FEWEST_DIGITS if word.isdecimal() else FEWEST_CHARACTERS)
