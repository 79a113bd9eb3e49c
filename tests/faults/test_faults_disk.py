"""Full disks, few open files, a clock that runs backwards.

The command ends cleanly or with a named error. Each slide of a batch meets its own fault; a second run without faults
completes all of them.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import skip_or_fail
from tests.support.commands import Command, Ran, is_complete, result_digests
from tests.support.faults.disk_state import DiskState, Slide, assert_no_block_twice
from tests.support.faults.preload import Preload, Rule, times
from tests.support.faults.trees import Finished

NAMED = "overview.png"
"""Contains the slide's name, and so differs between copies."""


def assert_equals(result: Path, finished: Finished) -> None:
    assert is_complete(result)
    assert result_digests(result) | {NAMED: ""} == result_digests(finished.result) | {NAMED: ""}


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_fault_27_the_disk_is_full_at_the_nth_write(
    overtile: Command, preload: Preload, finished: Finished, tmp_path: Path, record_property: Any
) -> None:
    """Each slide meets one failing write, at a different number; the next run computes only what is missing."""
    slides, out = tmp_path / "slides", tmp_path / "out"
    slides.mkdir()
    numbers = range(1, 89, 6)
    for number in numbers:
        os.link(finished.slide, slides / f"n{number}.tif")
    rules = [Rule("write", f"/out/n{number}/", errno.ENOSPC, number, number) for number in numbers]
    command, counters = preload.under(overtile, *rules)
    ran = command.segment(slides, out)
    assert ran.code == 74, ran.transcript
    assert all(times(counter) >= number for counter, number in zip(counters, numbers, strict=True))
    failed = [key for key, state in ran.states().items() if state == "failed"]
    assert len(failed) >= len(numbers) - 2, "a failed heartbeat of the lock does not fail the slide"
    for key in failed:
        line = ran.error_of(key)
        assert f"cannot write {out / key}" in line, line
        assert "No space left on device" in line
        assert "GiB free" in line
        assert not is_complete(out / key)
    states = {key: DiskState.of(Slide(out / key)) for key in failed}
    again = overtile.segment(slides, out)
    assert again.code == 0, again.transcript
    totals = {line["stage"]: line["blocks"] for line in Slide(finished.result).history()}
    for key in failed:
        assert_no_block_twice(states[key], Slide(out / key), totals)
    for number in numbers:
        assert_equals(out / f"n{number}", finished)
    record_property("recomputed", f"{len(failed)} of {len(numbers)} slides stopped, no block twice")


@pytest.mark.long
def test_fault_27_a_disk_that_is_really_full(overtile: Command, finished: Finished, tmp_path: Path) -> None:
    """A file system in memory that is too small, then enlarged; the same command is run on both."""
    out, kept = tmp_path / "out", tmp_path / "kept"
    out.mkdir()
    mount = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.run([*mount, 'mount -t tmpfs none "$0"', out], check=False).returncode:
        skip_or_fail("mount namespaces are not available; the preloaded fault above covers this")
    script = (
        'mount -t tmpfs -o size=400k none "$0"; "$@"; echo "first $?"; ls "$0/slide"; mount -o remount,size=64m "$0"; '
        f'"$@"; code=$?; echo "second $code"; cp -r "$0" {kept}; exit $code'
    )
    ran = Command(overtile.environment, overtile.folder, (*mount, script, str(out))).segment(finished.slide, out)
    assert ran.code == 0, ran.transcript
    _, _, second = ran.stdout.partition("first 74\n")
    assert second, ran.transcript
    assert "manifest.json" not in second.partition("second 0")[0].splitlines()
    (line,) = ran.errors
    assert line.startswith("slide: failed at ")
    assert f"cannot write {out}" in line
    assert "No space left on device" in line
    assert_equals(kept / "slide", finished)


@pytest.mark.long
def test_fault_30_few_open_files(overtile: Command, finished: Finished, tmp_path: Path) -> None:
    few = Command(overtile.environment, overtile.folder, ("sh", "-c", 'ulimit -n 64 && exec "$@"', "sh"))
    ran = few.segment(finished.slide, tmp_path / "out")
    assert ran.code == 0, ran.transcript
    assert_equals(tmp_path / "out" / "slide", finished)


@pytest.mark.long
def test_fault_37_a_clock_that_runs_backwards(
    overtile: Command, preload: Preload, finished: Finished, tmp_path: Path
) -> None:
    backwards = overtile.with_environment(LD_PRELOAD=str(preload.library), FAULT_CLOCK="backwards")
    ran = backwards.segment(finished.slide, tmp_path / "out")
    assert ran.code == 0, ran.transcript
    assert_equals(tmp_path / "out" / "slide", finished)
    again: Ran = overtile.segment(finished.slide, tmp_path / "out")
    assert again.states() == {"slide": "complete before"}
