"""The time limit of reads: a hanging read is an error, any other result is unchanged."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from pipeline.errors import ReadTimeoutError, SlideError
from pipeline.slides.read_timeout import with_timeout

SLIDE = Path("slides/a.tif")


def test_result_and_exception_are_passed_on() -> None:
    assert with_timeout(lambda: [1, 2], SLIDE, 100) == [1, 2]
    assert with_timeout(lambda: None, SLIDE, 100) is None
    error = SlideError("torn")
    assert with_timeout(lambda: error, SLIDE, 100) is error, "an error that is returned is no failure"

    def fail() -> None:
        raise error

    with pytest.raises(SlideError, match="torn") as caught:
        with_timeout(fail, SLIDE, 100)
    assert caught.value is error


def test_hanging_read_raises_timeout_error() -> None:
    never = threading.Event()
    began = time.monotonic()
    try:
        with pytest.raises(
            ReadTimeoutError, match=r"slides/a\.tif: expected to be read within 0\.2 s .*found no answer"
        ):
            with_timeout(never.wait, SLIDE, 0.2)
        assert 0.2 <= time.monotonic() - began < 5
    finally:
        never.set()
