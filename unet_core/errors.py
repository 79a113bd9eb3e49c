"""Errors of this package.

Each class is also the builtin it specialises. Other packages wrap these errors in their own.
"""

from __future__ import annotations


class NetworkError(Exception):
    """Base class of all errors of this package."""


class SizeError(NetworkError, ValueError):
    """An input size that the network does not take."""


class ArchitectureError(NetworkError, ValueError):
    """A network whose output at a pixel depends on its whole tile."""


class CheckpointError(NetworkError, ValueError):
    """A model file that is damaged or not a model file."""


class UnknownModelError(NetworkError, LookupError):
    """A name that is neither a built-in model nor a file."""


class DeviceError(NetworkError, RuntimeError):
    """A device that does not exist."""


class MissingLibraryError(NetworkError, ImportError):
    """A library that is not installed and belongs to an extra of the package."""


class AnnotationError(NetworkError, ValueError):
    """Invalid annotated images or folds."""


class RecipeError(NetworkError, ValueError):
    """A training run that cannot be started or resumed with these settings."""


class DivergedError(NetworkError, ArithmeticError):
    """A training run whose loss or gradient is not finite."""
