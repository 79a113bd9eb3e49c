"""The error tree, with the exit code of each kind of error.

A message names what was expected, what was found, the likely cause and what to do. Each class also inherits the
matching builtin, so that library users can catch that.
"""

from __future__ import annotations

from typing import ClassVar


class OvertileError(Exception):
    """Base of all errors that overtile raises on purpose, with a message for the user (exit 4)."""

    exit_code: ClassVar[int] = 4


class ConfigError(OvertileError, ValueError):
    """Invalid usage or configuration: nothing was started (exit 2)."""

    exit_code = 2


class TableError(ConfigError):
    """An invalid cases table: ``where`` (file and line) it is wrong, and ``what`` is wrong, which quotes its cells."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(where, what)
        self.where = where

    def __str__(self) -> str:
        return ": ".join(self.args)


class ModelError(OvertileError, ValueError):
    """A checkpoint that cannot be used, or a network whose output is not finite."""

    exit_code = 2


class SlideError(OvertileError, ValueError):
    """A slide that cannot be read as its format says, or lacks required metadata (such as its resolution)."""


class ReadTimeoutError(SlideError):
    """Reading a slide took too long: no further block of it is started."""


class StoreError(OvertileError, RuntimeError):
    """An output that is incomplete, damaged or of another plan."""


class DamagedError(StoreError):
    """A file of an output is not what was written: missing, empty, cut or changed."""


class DiskError(OvertileError, OSError):
    """The disk is full, read-only or failing (exit 74)."""

    exit_code = 74


class LockedError(OvertileError, RuntimeError):
    """Another live run holds the slide (exit 75 when that is so for all requested slides)."""

    exit_code = 75


class WorkerError(OvertileError, RuntimeError):
    """A block failed, or the worker that ran it died."""


class ClusterError(OvertileError, ConnectionError):
    """The dask scheduler or its workers are gone or unsuitable. No slide is at fault; the next run resumes (exit 3)."""

    exit_code = 3


class ServerError(OvertileError, ConnectionError):
    """Prefect's server does not respond. Everything that was computed is on disk all the same."""
