"""Slides that are written on a scratch disk first.

OUT holds the same bytes, also after kills and after losing the disk.
"""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from pipeline.execution.blocks import serial
from pipeline.runs.plan import SlidePlan
from pipeline.runs.slide_run import SlideRun
from pipeline.storage.slide_store import SlideStore
from tests.resume.test_dropped import assert_consistent, result
from tests.support.commands import Command, is_complete, result_digests
from tests.support.faults.pictures import draw, red_and_blue, write
from tests.support.faults.preload import Preload, Rule
from tests.support.make_store import tree_bytes
from tests.support.run_slide import Plan, computed, plans_of_discs, run
from tests.unit.pipeline.killing import KILLED, killed_at

SHAPE = (300, 400)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Plans for one generated slide of one block, with any settings."""
    return plans_of_discs(tmp_path_factory.mktemp("slide"), SHAPE)


@pytest.fixture(scope="module")
def expected(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Result of a run without a scratch disk."""
    root = tmp_path_factory.mktemp("plain") / "discs"
    run(plan(), root)
    return result(root)


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    return tmp_path / "scratch"


def on(scratch: Path) -> str:
    return f"outputs.scratch={scratch}"


def empty(folder: Path) -> bool:
    return not folder.exists() or not any(folder.iterdir())


def begun(plan: SlidePlan, root: Path, stages: int) -> SlideRun:
    """Return a run after this many stages."""
    slide = SlideRun(plan, SlideStore(root))
    assert slide.prepare() == "todo"
    for stage in list(plan.hashes)[:stages]:
        slide.step(stage, serial)
    return slide


def test_result_is_written_on_scratch_and_moved_to_out(
    plan: Plan, expected: dict[str, bytes], tmp_path: Path, scratch: Path
) -> None:
    root = tmp_path / "discs"
    slide = begun(plan(on(scratch)), root, 8)
    assert [path.name for path in sorted(root.rglob("*")) if path.is_file()] == ["plan.json"], "OUT is still empty"
    assert not empty(scratch)
    slide.finish()
    assert result(root) == expected
    assert assert_consistent(root)
    assert empty(scratch)
    assert SlideRun(plan(on(scratch)), SlideStore(root)).is_complete()
    assert run(plan(on(scratch)), root).reports == {}


def test_a_killed_run_goes_on_where_it_was(
    plan: Plan, expected: dict[str, bytes], tmp_path: Path, scratch: Path
) -> None:
    root = tmp_path / "discs"
    begun(plan(on(scratch)), root, 3)
    assert set(computed(run(plan(on(scratch)), root))) == {"label", "measure", "export", "overlay"}
    assert result(root) == expected


def test_a_lost_scratch_only_repeats_work(
    plan: Plan, expected: dict[str, bytes], tmp_path: Path, scratch: Path
) -> None:
    root = tmp_path / "discs"
    begun(plan(on(scratch)), root, 5)
    shutil.rmtree(scratch)
    assert computed(run(plan(on(scratch)), root))["predict"] == 1
    assert result(root) == expected
    assert assert_consistent(root)


def test_changes_of_a_complete_slide_are_made_in_out(plan: Plan, tmp_path: Path, scratch: Path) -> None:
    larger = "objects.min_area_um2=40"
    run(plan(on(scratch)), tmp_path / "discs")
    slide = begun(plan(on(scratch), larger), tmp_path / "discs", 8)
    assert "predict" not in computed(slide)
    assert slide.working == slide.store
    assert empty(scratch)
    slide.finish()
    run(plan(larger), tmp_path / "other")
    assert result(tmp_path / "discs") == result(tmp_path / "other")


def test_a_slide_begun_in_out_stays_there(
    plan: Plan, expected: dict[str, bytes], tmp_path: Path, scratch: Path
) -> None:
    root = tmp_path / "discs"
    begun(plan(), root, 3)
    slide = run(plan(on(scratch)), root)
    assert "predict" not in computed(slide)
    assert empty(scratch)
    assert result(root) == expected


@pytest.mark.parametrize(
    ("lost", "every"),
    [
        pytest.param(False, 8, id="scratch there"),
        pytest.param(True, 24, id="scratch lost"),
        pytest.param(False, 1, id="every step", marks=pytest.mark.long),
        pytest.param(True, 1, id="every step, lost", marks=pytest.mark.long),
    ],
)
def test_kill_at_any_step_of_the_copy_leaves_a_consistent_result(
    plan: Plan,
    expected: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lost: bool,
    every: int,
) -> None:
    """Kills at changes of the file system, from the last stage to the removal of the scratch folder."""
    made, home, struck = tmp_path / "made", tmp_path / "home", 0
    slide_plan = plan(on(home))
    begun(slide_plan, made / "discs", 8)
    home.rename(made / "home")
    (staged,) = (made / "home").iterdir()
    for step in range(0, 1000, every):
        root = Path(shutil.copytree(made / "discs", tmp_path / "discs"))
        slide = SlideRun(slide_plan, SlideStore(root))
        slide.prepare()
        shutil.rmtree(slide.working.root)
        shutil.copytree(staged, slide.working.root)
        with killed_at(step, monkeypatch) as steps:
            slide.finish()
        complete = assert_consistent(root)
        if lost:
            shutil.rmtree(home)
        again = run(slide_plan, root)
        assert lost or computed(again) == {}, f"killed at step {step}"
        assert not complete or computed(again) == {}
        assert result(root) == expected
        assert assert_consistent(root)
        assert empty(home)
        shutil.rmtree(root)
        if KILLED not in steps:
            break
        struck += 1
    assert struck >= 150 // every


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    write(tmp_path / "slide.tif", draw((700, 600), red_and_blue((700, 600))))
    return tmp_path / "slide.tif"


@pytest.mark.long
def test_a_full_scratch_disk_is_named(overtile: Command, preload: Preload, slide: Path, scratch: Path) -> None:
    out = slide.parent / "out"
    command, _ = preload.under(overtile, Rule("rename", "/scratch/overtile-", errno.ENOSPC, 12))
    ran = command.segment(slide, out, on(scratch))
    assert ran.code == 74, ran.transcript
    assert str(scratch) in ran.error_of("slide")
    assert "No space left on device" in ran.error_of("slide")
    assert not is_complete(out / "slide")
    ended = overtile.segment(slide, out, on(scratch))
    assert ended.code == 0, ended.transcript
    assert empty(scratch)
    plain = overtile.segment(slide, slide.parent / "plain")
    assert plain.code == 0
    assert result_digests(out / "slide") == result_digests(slide.parent / "plain" / "slide")
    assert overtile.run("verify", out).code == 0


def test_a_scratch_that_cannot_be_written_is_refused_at_the_start(
    overtile_alone: Command, slide: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    ran = overtile_alone.segment(slide, tmp_path / "out", on(tmp_path / "file"))
    assert ran.code == 74, ran.transcript
    assert f"the scratch folder {tmp_path / 'file'}" in ran.only_error
    assert "outputs.scratch" in ran.only_error


def test_result_does_not_depend_on_scratch(plan: Plan, tmp_path: Path, scratch: Path) -> None:
    """Only the configuration in the manifest names the scratch folder."""
    run(plan(on(scratch)), tmp_path / "discs")
    named = [name for name, content in tree_bytes(tmp_path / "discs").items() if str(scratch).encode() in content]
    assert sorted(named) == [".work/plan.json", "manifest.json"]
