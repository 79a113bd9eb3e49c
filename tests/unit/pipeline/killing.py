"""Stop before a chosen change to the file system, in this process: leaves what kill -9 leaves, but reproducibly."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHANGES = [(Path, "replace"), (Path, "mkdir"), (Path, "unlink"), (os, "fsync"), (os, "unlink"), (os, "rmdir")]
KILLED = "killed"


class KilledError(BaseException):
    """Replaces kill -9: no code under test handles it."""


@contextmanager
def killed_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Stop before the ``step``-th change (from 0) in the block; yield the changes made, then KILLED if stopped."""
    steps: list[str] = []

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            if len(steps) == step:
                raise KilledError
            steps.append(name)
            return function(*arguments, **keywords)

        return call

    with monkeypatch.context() as patch:
        for owner, name in CHANGES:
            patch.setattr(owner, name, counted(name, getattr(owner, name)))
        try:
            yield steps
        except KilledError:
            steps.append(KILLED)
