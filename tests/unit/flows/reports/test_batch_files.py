"""Batch-level files during a run: one read per manifest, correct states, and tolerance of write errors."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from flows.batch import result_records
from flows.batch.batch import Batch, BatchRequest, plan_batch
from flows.batch.outcome import Outcome, State
from flows.reports import batch_files
from flows.reports.batch_files import Report
from pipeline.config import load_config
from pipeline.errors import DiskError
from pipeline.storage.atomic_files import digest, write_json
from tests.support.commands import CONTEXT

Planned = Callable[[int], Batch]


@pytest.fixture
def planned(tmp_path: Path) -> Planned:
    """Create batches of any number of waiting slides with the plan of one slide."""
    slide = tmp_path / "slide.tif"
    tifffile.imwrite(slide, np.full((600, 600, 3), 200, np.uint8), photometric="rgb")
    settings = [f"model.weights={CONTEXT}", "input.mpp=0.25", "tiles.block=512"]
    request = BatchRequest(inputs=(slide,), out=tmp_path / "out", config=load_config(None, settings))
    (plan,) = plan_batch(request).plans.values()

    def batch(count: int) -> Batch:
        keys = [f"s{number:03}" for number in range(count)]
        plans = {key: replace(plan, key=key, case={"stain": "HE"}) for key in keys}
        outcomes = [Outcome(key, Path(f"{key}.tif")) for key in keys]
        return Batch(request, {}, outcomes, plans)

    return batch


def complete(batch: Batch, key: str, stage_changed: str | None = None) -> None:
    """Write the files of a finished slide that the batch files read."""
    folder, summary = batch.request.out / key, json.loads(json.dumps(batch.plans[key].summary()))
    if stage_changed:
        summary["hashes"][stage_changed] = "f" * 64
    facts: dict[str, Any] = {stage: {} for stage in summary["hashes"]}
    facts["tissue"] = {"tissue_px": 360000, "flags": []}
    facts["label"] = {"objects": 3}
    quartiles = {"area_um2_quartiles": [1.5, 2.0, 3.0], "probability_quartiles": [0.625, 0.75, 0.875]}
    means = {"mean_area_um2": 7 / 3, "mean_probability": 0.75}
    facts["measure"] = {"rows": [{"region": None, "class": "spot", "count": 3, "area_um2": 7.0, **means, **quartiles}]}
    stages = {name: {"facts": found, "runs": []} for name, found in facts.items()}
    content = {"plan": summary, "stages": stages, "finished": "now"}
    write_json(folder / "manifest.json", content | {"sha256": digest(content)})


def end(batch: Batch, number: int, state: State = "complete") -> Outcome:
    outcome = batch.outcomes[number]
    outcome.state = state
    return outcome


def rows(batch: Batch) -> dict[str, dict[str, str]]:
    with (batch.request.out / "results.csv").open(newline="") as file:
        return {row["slide"]: row for row in csv.DictReader(file)}


def test_each_manifest_is_read_once_when_its_slide_ends(planned: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, reads = planned(12), []
    for number in range(4):
        complete(batch, f"s{number:03}")
    read = result_records.read_manifest
    monkeypatch.setattr(result_records, "read_manifest", lambda store: (reads.append(store.root.name), read(store))[1])
    report = Report(batch)
    report.batch_planned(batch)
    assert reads == ["s000", "s001", "s002", "s003"]
    for number in range(4, 12):
        complete(batch, f"s{number:03}")
        report.slide_done(end(batch, number))
        assert reads[4:] == [f"s{done:03}" for done in range(4, number + 1)]
        assert rows(batch)[f"s{number:03}"]["count"] == "3"
    assert [row["state"] for row in rows(batch).values()] == ["complete"] * 12


@pytest.mark.parametrize(
    ("state", "changed", "shown", "count"),
    [
        ("complete", None, "complete", "3"),
        ("complete before", None, "complete", "3"),
        ("kept", "predict", "kept", "3"),
        ("waiting", None, "complete", "3"),
        ("waiting", "label", "waiting", ""),
        ("failed", "predict", "failed", ""),
        ("locked", None, "locked", ""),
    ],
)
def test_numbers_are_written_for_numbered_states_only(
    planned: Planned, state: State, changed: str | None, shown: str, count: str
) -> None:
    batch = planned(2)
    complete(batch, "s000", changed)
    end(batch, 0, state)
    report = Report(batch)
    report.batch_planned(batch)
    found = rows(batch)
    assert (found["s000"]["state"], found["s000"]["count"]) == (shown, count)
    assert (found["s001"]["state"], found["s001"]["count"]) == ("waiting", "")


def test_removed_slide_is_incomplete(planned: Planned) -> None:
    batch = planned(1)
    end(batch, 0)
    Report(batch).finish()
    assert rows(batch)["s000"]["state"] == "incomplete"


def test_slides_of_other_runs_keep_their_rows(planned: Planned) -> None:
    batch = planned(3)
    for key in ("s001", "s002"):
        complete(batch, key)
    (batch.request.out / "s002" / "manifest.json").unlink()
    (batch.request.out / "s002" / ".work").mkdir()
    others = replace(batch, outcomes=batch.outcomes[:1])
    Report(others).finish()
    found = rows(batch)
    assert {key: row["state"] for key, row in found.items()} == {
        "s000": "waiting",
        "s001": "complete",
        "s002": "incomplete",
    }
    assert found["s001"]["stain"] == "HE"


def test_results_csv_has_hand_computed_values(planned: Planned) -> None:
    batch = planned(1)
    complete(batch, "s000")
    end(batch, 0)
    Report(batch).finish()
    row = rows(batch)["s000"]
    assert row["plan"] == batch.plans["s000"].hashes["measure"][:12]
    expected = {"tissue_mm2": 0.0225, "area_mm2": 7e-6, "count": 3, "density_per_mm2": 3 / 0.0225}
    expected |= {"fraction": 7e-6 / 0.0225, "mean_area_um2": 7 / 3, "area_um2_q25": 1.5}
    expected |= {"area_um2_median": 2.0, "area_um2_q75": 3.0, "mean_probability": 0.75, "probability_q75": 0.875}
    assert {name: float(row[name]) for name in expected} == expected


def test_time_left_is_proportional_to_remaining_work(planned: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, now = planned(4), [100.0]
    monkeypatch.setattr(batch_files.time, "monotonic", lambda: now[0])
    report = Report(batch)
    report.batch_planned(batch)
    assert report.page(running=True).left_s is None
    complete(batch, "s000")
    report.slide_done(end(batch, 0, "complete before"))  # takes no time, so the rate stays unknown
    assert report.page(running=True).left_s is None
    now[0] = 160.0
    for stage in batch.plans["s001"].hashes:
        for _ in range(4):
            report.block_done("s001", stage, {})
    left = report.page(running=True).left_s
    assert left == pytest.approx(120.0)  # one slide took a minute, two are left
    assert "about 2 min left" in report.page(running=True).markdown()


def test_write_error_stops_no_slide_and_is_raised_at_the_end(planned: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = planned(1)
    report = Report(batch)
    report.batch_planned(batch)

    def refuse(*_: object) -> None:
        raise DiskError(28, "cannot write: No space left on device")

    monkeypatch.setattr(batch_files, "write_bytes", refuse)
    report.slide_done(end(batch, 0))
    with pytest.raises(DiskError):
        report.finish()
