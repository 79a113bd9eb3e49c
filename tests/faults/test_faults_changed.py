"""Replaced slides, and slides locked by another run.

The replacements have the same name, size and time.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from pipeline.storage.atomic_files import remove
from pipeline.storage.lock import slide_lock
from tests.support.commands import Command, files_of, is_complete
from tests.support.faults.pictures import BLUE, Disc, draw, write
from tests.support.faults.trees import Finished


def replace(slide: Path) -> None:
    """Write other pixels to a file of the same name, size and time."""
    before = slide.stat()
    write(slide, draw((300, 1100), [Disc(150, 500, 40, BLUE)]))
    missing = before.st_size - slide.stat().st_size
    assert missing > 0
    with slide.open("ab") as file:
        file.write(bytes(missing))
    os.utime(slide, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = slide.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def stop_in_prediction(root: Path) -> None:
    """Leave the result as a run stopped after two of three predicted blocks would."""
    (root / "manifest.json").unlink()
    for stage in ("predict", "label", "measure", "pyramid", "export", "overlay"):
        (root / ".work" / f"{stage}.stamp").unlink()
    for name in ("labels", "1", "2", "probability/1", "probability/2", "probability/0/c/0/0/2"):
        remove(root / "slide.ome.zarr" / name)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_fault_15_17_replaced_slides_are_noticed_and_held_ones_refused(
    finished: Finished, overtile: Command, tmp_path: Path, record_property: Any
) -> None:
    """One slide was complete and one unfinished when they were replaced; this process holds the lock of a third."""
    slides, out = finished.copies(tmp_path, ["complete", "begun", "held"])
    for name in ("begun", "held"):
        stop_in_prediction(out / name)
    for name in ("complete", "begun"):
        replace(slides / f"{name}.tif")
    before = {name: files_of(out / name) for name in ("complete", "held")}
    with slide_lock(out / "held" / ".work"):
        ran = overtile.segment(slides, out)
        states, computed = ran.states(), ran.computed("begun")
        alone = overtile.segment(slides / "held.tif", out)
    assert ran.code == 3, ran.transcript
    assert states == {"begun": "complete", "complete": "kept", "held": "locked"}
    kept = ran.error_of("complete")
    assert "the slide, its resolution or the block" in kept
    assert "--force complete" in kept
    assert is_complete(out / "complete")
    assert "begun: changed since it was begun: the slide, its resolution or the block" in ran.stdout
    assert (computed["ingest"], computed["predict"]) == (3, 3), "no block of the other slide's is kept"
    image = np.asarray(zarr.open_array(out / "begun" / "slide.ome.zarr" / "0", mode="r")[:])
    assert np.array_equal(image, draw((300, 1100), [Disc(150, 500, 40, BLUE)]).transpose(2, 0, 1))
    assert alone.code == 75, alone.transcript
    for error in (ran.error_of("held"), alone.error_of("held")):
        assert f"process {os.getpid()} on {os.uname().nodename} since " in error
    for name, files in before.items():
        now = files_of(out / name)
        same = {path for path in files if "/lock" not in path and "/plan.json" not in path}
        assert {path: now[path] for path in same} == {path: files[path] for path in same}
    after = overtile.segment(slides / "held.tif", out)
    assert after.code == 0, after.transcript
    assert after.computed("held")["predict"] == 1
    record_property("recomputed", f"replaced after it was begun {computed}; held, then freed {after.computed('held')}")
