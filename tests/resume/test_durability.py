"""Durability: the order of system calls of a run.

A stamp never refers to data that a power loss could remove. The preloaded library of tests/faults records each write,
fsync, rename and mkdir below Python. The tests therefore cover what reaches the kernel, from this code and from zarr.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import skimage.data
import tifffile

from tests.support.commands import REPOSITORY, Command
from tests.support.faults.preload import Change, Preload, read_journal

MODEL = Path(__file__).parents[1] / "exactness" / "golden" / "context.safetensors"
UNSYNCED = ("lock", "history.jsonl")
"""Files without a guarantee: a lock ends with its process, the history is only informative."""
PASSING = (".work/label/pieces", ".work/label/holes", ".work/label/fill", ".work/export")
"""Intermediate results of blocks that are not read after their stage is complete."""

RUN = """
import sys
from pathlib import Path
from flows.batch.batch import BatchRequest, plan_batch
from pipeline.config import load_config
from pipeline.runs.slide_run import SlideRun
from pipeline.storage.slide_store import SlideStore
from pipeline.execution.blocks import serial
slide, out, model = map(Path, sys.argv[1:])
settings = ["input.mpp=0.25", "tiles.block=512", "tiles.tile=512", f"model.weights={model}"]
(plan,) = plan_batch(BatchRequest(inputs=(slide,), out=out, config=load_config(None, settings))).plans.values()
run = SlideRun(plan, SlideStore(out / plan.key))
run.prepare()
for stage in plan.hashes:
    run.step(stage, serial)
run.finish()
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the one slide that is segmented under observation."""
    return tmp_path_factory.mktemp("durable") / "out" / "tissue"


@pytest.fixture(scope="module")
def calls(root: Path, preload: Preload) -> list[Change]:
    """System calls of a complete run in one process, in order."""
    folder = root.parent.parent
    tifffile.imwrite(
        folder / "tissue.tif", skimage.data.immunohistochemistry()[:, :, :].repeat(2, axis=0), tile=(64, 64)
    )
    noted, journal = preload.watched(Command({**os.environ, "PYTHONPATH": str(REPOSITORY)}, folder), root)
    command = [sys.executable, "-c", RUN, folder / "tissue.tif", root.parent, MODEL]
    subprocess.run(command, env=dict(noted.environment), check=True)
    return read_journal(journal)


def claims(calls: list[Change]) -> Iterator[tuple[Path, list[Change]]]:
    """Yield every stamp and the manifest with all calls before its rename."""
    for number, call in enumerate(calls):
        if call.call == "rename" and (call.to.suffix == ".stamp" or call.to.name == "manifest.json"):
            yield call.to, calls[:number]


def test_recorded_calls_cover_every_file_of_the_run(calls: list[Change], root: Path) -> None:
    stages = ["ingest", "tissue", "predict", "label", "measure", "pyramid", "export", "overlay"]
    assert [claim.stem for claim, _ in claims(calls)] == [*stages, "manifest"]
    files = {path for path in root.rglob("*") if path.is_file() and path.name not in UNSYNCED}
    assert files <= {call.to for call in calls if call.call == "rename"}, "every file is renamed into place"


def test_fault_26_every_file_is_fsynced_before_it_gets_its_name(calls: list[Change]) -> None:
    last: dict[Path, str] = {}
    renamed = 0
    for call in calls:
        if call.call == "rename" and call.path.name.endswith(".partial"):
            assert last.get(call.path) == "fsync", f"{call.to} was renamed before its bytes were durable"
            renamed += 1
        elif call.call in ("write", "fsync"):
            last[call.path] = call.call
    assert renamed > 20


def test_fault_26_every_name_is_durable_before_a_stamp_relies_on_it(calls: list[Change], root: Path) -> None:
    for claim, before in claims(calls):
        unsafe: dict[Path, Path] = {}
        for call in before:
            if call.call in ("rename", "mkdir"):
                name = call.to if call.call == "rename" else call.path
                unsafe[name] = name.parent
            elif call.call == "fsync":
                unsafe = {name: folder for name, folder in unsafe.items() if folder != call.path}
        lost = [name.relative_to(root).as_posix() for name in unsafe if root in name.parents]
        lost = [name for name in lost if not name.startswith(PASSING) and not name.endswith(UNSYNCED)]
        assert not lost, f"{claim.name} was written before the names of {lost[:5]} were durable"


def stage_of(path: Path) -> str:
    """Return the stage that writes a file of the result; "" for files of no stage."""
    name = path.as_posix()
    whole = {"objects.parquet": "measure", "objects.geojson.gz": "export", "overview.png": "overlay"}
    level_0 = {"/probability/0/": "predict", "/labels/objects/0/": "label", "/slide.ome.zarr/tissue/": "tissue"}
    inside = next((stage for part, stage in level_0.items() if part in name), "")
    return whole.get(path.name) or inside or ("ingest" if "/slide.ome.zarr/0/" in name else "")


def test_nothing_of_a_stage_is_written_after_its_stamp(calls: list[Change]) -> None:
    stamped: set[str] = set()
    seen: set[str] = set()
    for call in calls:
        if call.call == "rename" and call.to.suffix == ".stamp":
            stamped.add(call.to.stem)
        elif call.call == "rename" and (stage := stage_of(call.to)):
            seen.add(stage)
            assert stage not in stamped, f"{call.to} was written after {stage}.stamp"
    assert seen == {"ingest", "tissue", "predict", "label", "measure", "export", "overlay"}


def test_folder_is_fsynced_after_the_manifest_rename(calls: list[Change], root: Path) -> None:
    named = max(number for number, call in enumerate(calls) if call.to == root / "manifest.json")
    assert any(call.call == "fsync" and call.path == root for call in calls[named:])
