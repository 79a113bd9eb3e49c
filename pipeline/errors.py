"""The error tree: what can go wrong, whose fault it is, and which exit code it earns.

A message names what was expected, what was found, the likely cause and what to do. Each class is also the builtin
it stands for, so that library users can catch what they know.
"""

from __future__ import annotations

from typing import ClassVar


class OvertileError(Exception):
    """Anything overtile refuses or gives up on, with a message meant for a person (exit 4)."""

    exit_code: ClassVar[int] = 4


class ConfigError(OvertileError, ValueError):
    """Usage or configuration: nothing was started (exit 2)."""

    exit_code = 2


class TableError(ConfigError):
    """A cases table that cannot be meant: ``where`` it is wrong, in file and line, and how, which quotes its cells."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(where, what)
        self.where = where

    def __str__(self) -> str:
        return ": ".join(self.args)


class ModelError(OvertileError, ValueError):
    """A checkpoint that cannot be used, or a network whose output is not finite."""

    exit_code = 2


class SlideError(OvertileError, ValueError):
    """A slide that cannot be read as what it claims to be, or lacks what is needed (such as its resolution)."""


class ReadTimeoutError(SlideError):
    """A slide that gives no answer: no block of it is begun any more."""


class StoreError(OvertileError, RuntimeError):
    """An output that is incomplete, damaged or of another plan."""


class DamagedError(StoreError):
    """A file of an output that cannot be what was written: missing, empty, cut or changed."""


class DiskError(OvertileError, OSError):
    """The disk is full, read-only or failing (exit 74)."""

    exit_code = 74


class LockedError(OvertileError, RuntimeError):
    """Another live run holds the slide (exit 75 when it holds all slides asked for)."""

    exit_code = 75


class WorkerError(OvertileError, RuntimeError):
    """A block failed, or the worker that ran it died."""


class ClusterError(OvertileError, ConnectionError):
    """The dask scheduler or its workers went away, or are not fit: no slide's fault, the next run goes on (exit 3)."""

    exit_code = 3


class ServerError(OvertileError, ConnectionError):
    """Prefect's server does not answer, or no longer does: what was computed lies on disk, whatever it knows of it."""
