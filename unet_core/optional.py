"""Imports of libraries that only an extra of the package installs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from unet_core.errors import MissingLibraryError

TRAIN = "train"
"""Extra with MONAI (U-Net++, Attention U-Net, overlap and focal losses), scikit-learn (folds, baselines) and
TensorBoard (event files)."""


@contextmanager
def optional_import(extra: str, purpose: str) -> Iterator[None]:
    """Surround an import statement whose library belongs to an extra.

    Args:
        extra: Name of the extra that installs the library.
        purpose: What the library is needed for, as the error message names it.

    Raises:
        MissingLibraryError: The import fails; the message names the library and the command that installs it.
    """
    try:
        yield
    except ImportError as error:
        library = (error.name or "a library").partition(".")[0]
        raise MissingLibraryError(
            f"{purpose}: expected the library {library}, found none ({error}). Install it: pip install "
            f"'overtile[{extra}]'",
            name=library,
        ) from error
