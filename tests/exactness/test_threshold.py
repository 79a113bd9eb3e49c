"""A changed threshold recomputes objects without the network.

The result equals that of a fresh run with the new threshold.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.commands import CONTEXT, Command, FileState, Ran, files_of, history
from tests.support.make_photos import write_png
from tests.support.make_slides import Recipe, stained_image, write_tiff

UNEQUAL = {"manifest.json", ".work/history.jsonl", ".work/lock"}
"""Files that depend on the time and course of a run."""
NEXT = "objects.threshold=0.35"
EVERYTHING = ("objects.open_um=0.25", "objects.close_um=0.25", "objects.split=watershed", "objects.split_depth_um=0.25")
NETWORK, OBJECTS = ("ingest", "tissue", "predict"), ("label", "measure", "export", "overlay")


def drawn(path: Path) -> Path:
    """Write a region over the left part of the slide in the form QuPath exports it."""
    ring = [[20, 10], [600, 10], [560, 280], [30, 290], [20, 10]]
    region = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {"name": "left"}}
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [region]}))
    return path


@dataclass(frozen=True)
class Runs:
    """A run, its rerun with another threshold, and a fresh run with that threshold."""

    before: dict[str, FileState]
    changed: Ran
    fresh: Ran


@pytest.fixture(scope="module", params=["tif", "png, all of it on"])
def runs(overtile: Command, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Runs:
    """Runs on slides of two formats; the second with regions, opening, closing and splitting."""
    folder = tmp_path_factory.mktemp("threshold")
    more = (f"input.regions={drawn(folder / 'slide.geojson')}", *EVERYTHING) if "all" in request.param else ()
    enlarged = stained_image(150, 350).repeat(2, axis=0).repeat(2, axis=1)
    if "png" in request.param:
        slide = write_png(folder / "slide.png", enlarged, mpp=0.25)
    else:
        slide = write_tiff(folder / "slide.tif", enlarged, Recipe(mpp=0.25))
    first = overtile.segment(slide, folder / "out", *more, model=CONTEXT)
    assert first.code == 0, first.transcript
    before = files_of(folder / "out" / "slide")
    changed = overtile.segment(slide, folder / "out", NEXT, *more, model=CONTEXT)
    assert changed.code == 0, changed.transcript
    fresh = overtile.segment(slide, folder / "fresh", NEXT, *more, model=CONTEXT)
    assert fresh.code == 0, fresh.transcript
    return Runs(before, changed, fresh)


@pytest.mark.long
def test_fault_16_a_changed_threshold_makes_no_network_call(runs: Runs) -> None:
    outcome = runs.changed.outcome("slide")
    assert outcome["network_calls"] == 0
    assert "0 network calls" in runs.changed.stdout
    assert all(outcome["computed"][stage] == 0 for stage in NETWORK)
    assert all(outcome["computed"][stage] > 0 for stage in OBJECTS)
    lines = history(runs.changed.out / "slide")
    assert sum(line["counts"].get("network_calls", 0) for line in lines if line["stage"] == "predict") == 2
    assert runs.fresh.outcome("slide")["network_calls"] == 2


@pytest.mark.long
def test_a_changed_threshold_touches_no_pixel_of_image_and_probability(runs: Runs) -> None:
    now = files_of(runs.changed.out / "slide")
    pixels = [name for name in runs.before if "/c/" in name and "/labels/" not in name]
    assert len(pixels) > 5
    assert {name: now[name] for name in pixels} == {name: runs.before[name] for name in pixels}
    table = "objects.parquet"
    assert now[table].sha256 != runs.before[table].sha256, "the new threshold does change objects here"


@pytest.mark.long
def test_a_changed_threshold_equals_a_fresh_run_in_every_file(runs: Runs) -> None:
    changed, fresh = (
        {name: state.sha256 for name, state in files_of(ran.out / "slide").items() if name not in UNEQUAL}
        for ran in (runs.changed, runs.fresh)
    )
    assert len(changed) > 30
    assert changed == fresh
