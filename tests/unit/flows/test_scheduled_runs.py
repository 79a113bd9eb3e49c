"""Slides that a batch skips (still being written, or failed too often), and the order of the others."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.batch.batch import Batch, BatchRequest, defer_changed, plan_batch
from flows.batch.history import BatchHistory, note
from flows.reports.batch_files import write_batch_files
from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.slides.modification_time import file_states, last_change, recently_modified
from tests.support.commands import CONTEXT
from tests.support.faults.pictures import draw, red_and_blue, write

Night = Callable[..., Batch]


@pytest.fixture
def night(tmp_path: Path) -> Night:
    """Plan a batch of all slides, without running it."""

    def run(*settings: str, force: tuple[str, ...] = ()) -> Batch:
        config = load_config(None, [f"model.weights={CONTEXT}", "tiles.block=512", *settings])
        batch = plan_batch(
            BatchRequest(inputs=(tmp_path / "slides",), out=tmp_path / "out", config=config, force=force)
        )
        write_batch_files(batch)
        return batch

    return run


def slide(tmp_path: Path, name: str, age_s: float = 1000) -> Path:
    path = write(tmp_path / "slides" / f"{name}.tif", draw((64, 64), red_and_blue((64, 64))))
    return aged(path, age_s)


def aged(path: Path, age_s: float) -> Path:
    os.utime(path, (time.time() - age_s, time.time() - age_s))
    return path


def broken(tmp_path: Path, name: str = "broken", data: bytes = b"II*\0") -> Path:
    path = tmp_path / "slides" / f"{name}.tif"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return aged(path, 1000)


def states(batch: Batch) -> dict[str, str]:
    return {outcome.key: outcome.state for outcome in batch.outcomes}


# ---- files that are still written ------------------------------------------------------------------------------------


def test_fault_24_recently_modified_file_is_deferred_to_the_next_run(tmp_path: Path, night: Night) -> None:
    slide(tmp_path, "old")
    young = slide(tmp_path, "young", age_s=5)
    batch = night("input.settle_s=60")
    assert states(batch) == {"old": "waiting", "young": "deferred"}
    (outcome,) = (one for one in batch.outcomes if one.state == "deferred")
    assert "young.tif: still being written?" in outcome.cause
    assert "expected 60 s" in outcome.cause.lower()
    assert batch.exit_code() == 3, "nothing failed"
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert "1 deferred" in summary
    assert "young.tif: still being written?" in summary
    aged(young, 61)
    assert states(night("input.settle_s=60")) == {"old": "waiting", "young": "waiting"}
    assert states(night()) == {"old": "waiting", "young": "waiting"}


@pytest.mark.parametrize(("age_s", "left_alone"), [(0, True), (9, True), (11, False), (-9, True), (-11, False)])
def test_modification_times_in_the_future_count_as_recent(tmp_path: Path, age_s: float, left_alone: bool) -> None:
    assert (recently_modified(slide(tmp_path, "a", age_s), 10) is not None) == left_alone


def test_recently_modified_file_of_a_folder_defers_the_slide(tmp_path: Path) -> None:
    (tmp_path / "slide.mrxs").write_bytes(b"x")
    (tmp_path / "slide").mkdir()
    (tmp_path / "slide" / "Data0001.dat").write_bytes(b"x")
    aged(tmp_path / "slide.mrxs", 1000)
    aged(tmp_path / "slide" / "Data0001.dat", 500)
    assert time.time() - last_change(tmp_path / "slide.mrxs") == pytest.approx(500, abs=30)
    tree = tmp_path / "tree.zarr" / "0" / "c"
    tree.mkdir(parents=True)
    assert time.time() - last_change(tmp_path / "tree.zarr") < 100
    assert last_change(tmp_path / "nothing") == 0


def test_fault_24_file_changed_after_planning_is_deferred(tmp_path: Path, night: Night) -> None:
    path = slide(tmp_path, "growing")
    batch = night("input.settle_s=60")
    (outcome,) = batch.outcomes
    assert not defer_changed(batch, outcome)
    with path.open("ab") as file:
        file.write(b"more")
    aged(path, 1000)  # a clock that lies
    assert defer_changed(batch, outcome)
    assert (outcome.state, outcome.is_up_to_date) == ("deferred", False)
    assert "growing.tif: was written to" in outcome.cause


def test_fault_24_missing_file_is_named_and_counts_no_failure(tmp_path: Path, night: Night) -> None:
    path = slide(tmp_path, "gone")
    batch = night("input.settle_s=60")
    (outcome,) = batch.outcomes
    path.unlink()
    assert defer_changed(batch, outcome)
    assert (outcome.state, outcome.attempt) == ("failed", "")
    assert f"{path}: vanished" in outcome.cause
    assert file_states(path) == ()


# ---- slides that fail in every run -----------------------------------------------------------------------------------


def test_slide_that_failed_three_times_is_skipped_until_released(tmp_path: Path, night: Night) -> None:
    broken(tmp_path)
    slide(tmp_path, "good")
    assert [states(night())["broken"] for _ in range(5)] == ["failed"] * 3 + ["quarantined"] * 2
    batch = night()
    cause = next(outcome.cause for outcome in batch.outcomes if outcome.state == "quarantined")
    assert f"To try again: overtile retry {tmp_path / 'out'} broken" in cause
    assert "failed in 3 runs: " in cause
    assert "1 quarantined" in (tmp_path / "out" / "summary.md").read_text()
    note(tmp_path / "out", "retry", {"keys": ["broken"]})
    assert states(night())["broken"] == "failed"


@pytest.mark.parametrize("changed", ["file", "configuration", "force"])
def test_quarantine_ends_when_slide_or_plan_changes(tmp_path: Path, night: Night, changed: str) -> None:
    path = broken(tmp_path)
    for _ in range(3):
        night()
    assert states(night()) == {"broken": "quarantined"}
    if changed == "file":
        path.write_bytes(b"II*\0more")
    settings = ["objects.threshold=0.4"] if changed == "configuration" else []
    assert states(night(*settings, force=("broken",) if changed == "force" else ())) == {"broken": "failed"}
    assert BatchHistory.read(tmp_path / "out").failures()["broken"].count == 1


def test_quarantine_of_a_planned_slide_depends_on_its_hashes(tmp_path: Path, night: Night) -> None:
    """It fails in a later stage: changes that affect no pixel, such as the file's mtime, end no quarantine."""
    path = slide(tmp_path, "late")
    for _ in range(3):
        batch = night()
        batch.outcomes[0].failed("predict", ValueError("not finite"))
        write_batch_files(batch)
    assert states(night()) == {"late": "quarantined"}
    aged(path, 5000)
    assert states(night("tiles.tile=256")) == {"late": "quarantined"}
    assert states(night("input.mpp=0.3")) == {"late": "waiting"}


# ---- the order -------------------------------------------------------------------------------------------------------


def test_order_by_time_by_name_or_by_cases_table(tmp_path: Path, night: Night) -> None:
    for age, name in enumerate("cab"):
        slide(tmp_path, name, age_s=1000 + 100 * age)
    assert list(states(night())) == ["a", "b", "c"]
    assert list(states(night("input.order=newest"))) == ["c", "a", "b"]
    table = tmp_path / "cases.csv"
    table.write_text("slide,priority\nb,1\nc,\na,2\n")
    for order, expected in ((None, "abc"), ("priority", "abc"), ("name", "abc"), ("newest", "cab")):
        settings = [f"input.cases={table}", *([f"input.order={order}"] if order else [])]
        assert "".join(states(night(*settings))) == expected
    table.write_text("slide,priority\nb,3\nc,\na,2\n")
    for order, expected in (("null", "bac"), ("priority", "bac"), ("name", "abc"), ("newest", "cab")):
        assert "".join(states(night(f"input.cases={table}", f"input.order={order}"))) == expected


def test_order_by_priority_requires_the_column(tmp_path: Path, night: Night) -> None:
    slide(tmp_path, "a")
    with pytest.raises(ConfigError, match="column 'priority'"):
        night("input.order=priority")
    (tmp_path / "cases.csv").write_text("slide\na\n")
    with pytest.raises(ConfigError, match="column 'priority'"):
        night("input.order=priority", f"input.cases={tmp_path / 'cases.csv'}")
