"""What can be wrong with a network, its sizes or its file.

One small tree: whoever segments slides wraps these in its own errors; each is also the builtin it stands for.
"""

from __future__ import annotations


class NetworkError(Exception):
    """Anything this package refuses."""


class SizeError(NetworkError, ValueError):
    """A size no network of this shape can take."""


class ArchitectureError(NetworkError, ValueError):
    """A network whose answer for a pixel depends on the rest of its tile."""


class CheckpointError(NetworkError, ValueError):
    """A weights file that is not what it should be."""


class UnknownModelError(NetworkError, LookupError):
    """A model name that is neither built in nor a file."""


class DeviceError(NetworkError, RuntimeError):
    """A device that is not there."""


class MissingLibraryError(NetworkError, ImportError):
    """A library that is not installed and belongs to an extra of the package."""


class AnnotationError(NetworkError, ValueError):
    """Annotated images, or their folds, that nobody could be meant to train on."""


class RecipeError(NetworkError, ValueError):
    """A training run that cannot be begun, or not be gone on with, as asked."""


class DivergedError(NetworkError, ArithmeticError):
    """A training run whose loss or gradient is no number any more."""
