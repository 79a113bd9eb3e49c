"""A read that hangs is given up by name; one that does not is what it would have been without anybody waiting."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from pipeline.errors import HungError, SlideError
from pipeline.patience import patiently

SLIDE = Path("slides/a.tif")


def test_what_is_returned_or_raised_comes_through() -> None:
    assert patiently(lambda: [1, 2], SLIDE, 100) == [1, 2]
    assert patiently(lambda: None, SLIDE, 100) is None
    error = SlideError("torn")
    assert patiently(lambda: error, SLIDE, 100) is error, "an error that is returned is no failure"

    def fail() -> None:
        raise error

    with pytest.raises(SlideError, match="torn") as caught:
        patiently(fail, SLIDE, 100)
    assert caught.value is error


def test_what_hangs_is_left_behind_by_name() -> None:
    never = threading.Event()
    began = time.monotonic()
    try:
        with pytest.raises(HungError, match=r"slides/a\.tif: expected to be read within 0\.2 s .*found no answer"):
            patiently(never.wait, SLIDE, 0.2)
        assert 0.2 <= time.monotonic() - began < 5
    finally:
        never.set()
