"""Fixtures every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def skip_or_fail(reason: str) -> None:
    """Skip, or fail when STRICT=1: a proof that did not run is not a proof."""
    if os.environ.get("STRICT") == "1":
        pytest.fail(f"STRICT=1: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real slides and annotated images beside the checkout; skips when it is not there."""
    if not SHARED_DATA.is_dir():
        skip_or_fail(f"no shared data at {SHARED_DATA}")
    return SHARED_DATA
