"""outputs.max_gb: slides wait instead of exceeding the quota, running slides end, and waiting ones are named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flows.batch.batch import BatchRequest, plan_batch
from flows.batch.disk_quota import AROUND, GB, DiskQuota, at_most_bytes
from pipeline.config import load_config
from pipeline.execution.blocks import serial
from pipeline.runs.plan import SlidePlan
from pipeline.runs.slide_run import SlideRun, slide_root
from pipeline.storage.slide_store import SlideStore
from tests.support.commands import CLASSES, Command, is_complete
from tests.support.faults.pictures import draw, red_and_blue, write
from tests.support.make_store import tree_bytes

SHAPE = (700, 900)
NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SlidePlan]:
    folder = tmp_path_factory.mktemp("room")
    for name in NAMES:
        write(folder / f"{name}.tif", draw(SHAPE, red_and_blue(SHAPE)))
    settings = [f"model.weights={CLASSES}", "tiles.block=512", "compute.precision=fp32"]
    request = BatchRequest(inputs=(folder,), out=folder / "out", config=load_config(None, settings))
    return plan_batch(request, writing=False).plans


def test_worst_case_size_is_never_exceeded(plans: dict[str, SlidePlan], tmp_path: Path) -> None:
    run = SlideRun(plans["a"], SlideStore(tmp_path / "a"))
    run.prepare()
    for stage in plans["a"].hashes:
        run.step(stage, serial)
        assert sum(map(len, tree_bytes(tmp_path).values())) <= at_most_bytes(plans["a"])
    run.finish()
    assert sum(map(len, tree_bytes(tmp_path).values())) <= at_most_bytes(plans["a"])
    assert at_most_bytes(plans["a"]) > AROUND + 3 * SHAPE[0] * SHAPE[1]


def put(out: Path, plan: SlidePlan, size: int) -> None:
    root = slide_root(out, plan.key)
    (root / ".work").mkdir(parents=True, exist_ok=True)
    (root / "file").write_bytes(bytes(size))


def test_running_slides_count_worst_case_and_ended_ones_their_size(plans: dict[str, SlidePlan], tmp_path: Path) -> None:
    a, b, c = (plans[name] for name in NAMES)
    need = at_most_bytes(a)
    room = DiskQuota.of(tmp_path, 2 * need / GB)
    assert room.admits(a, [])
    assert room.admits(b, [a])
    assert not room.admits(c, [a, b])
    put(tmp_path, a, 100)
    assert not room.admits(c, [a, b]), "what runs may still grow"
    room.ended(a)
    assert room.admits(c, [b]) is False, "100 bytes too many"
    room.ended(b)
    assert room.admits(c, [])
    shutil.rmtree(tmp_path / "a")
    room.ended(a)
    assert room.admits(c, [b])
    put(tmp_path, a, need + 1)
    assert not DiskQuota.of(tmp_path, 2 * need / GB).admits(c, [b]), "what lies there from before counts"


def test_full_quota_is_not_measured_again_until_a_slide_ends(plans: dict[str, SlidePlan], tmp_path: Path) -> None:
    room = DiskQuota.of(tmp_path, 0.5 * at_most_bytes(plans["a"]) / GB)
    room.full = True
    assert not room.admits(plans["a"], [])
    room.ended(plans["b"])
    assert not room.full


def test_without_a_limit_nothing_is_counted(plans: dict[str, SlidePlan], tmp_path: Path) -> None:
    put(tmp_path, plans["a"], 10)
    room = DiskQuota.of(tmp_path, None)
    assert room.held == {}
    assert room.admits(plans["a"], list(plans.values()))


@pytest.mark.long
def test_slides_beyond_the_quota_wait_and_run_once_there_is_space(
    plans: dict[str, SlidePlan], overtile: Command, tmp_path: Path
) -> None:
    """Each slide alone fits; the results of the first two leave no space for the third unless images are dropped."""
    source, out = plans["a"].slide.parent, tmp_path / "out"
    assert overtile.segment(plans["a"].slide, out).code == 0
    left = sum(map(len, tree_bytes(out / "a").values()))
    limit = f"outputs.max_gb={(at_most_bytes(plans['b']) + 1.5 * left) / GB}"
    first = overtile.segment(source, out, limit)
    assert first.code == 3, first.transcript
    assert first.states() == {"a": "complete before", "b": "complete", "c": "waiting"}
    line = first.error_of("c")
    assert "outputs.max_gb is" in line
    assert "run the same command again" in line
    assert not (out / "c").exists(), "not started"
    again = overtile.segment(source, out, limit)
    assert again.code == 3
    assert all(again.computed(name) == {} for name in NAMES)
    dropped = overtile.segment(source, out, limit, "outputs.image=drop")
    assert dropped.code == 0, dropped.transcript
    assert is_complete(out / "c")
