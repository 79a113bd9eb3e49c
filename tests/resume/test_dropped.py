"""Results with dropped arrays.

The rest stays valid and exact, kills are safe, and nothing is recomputed unless required.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from ome_zarr_models.v05 import Image

from flows.batch.batch import BatchRequest, plan_batch
from pipeline.config import load_config
from pipeline.execution.blocks import serial
from pipeline.runs.slide_run import SlideRun
from pipeline.runs.verify import verify_slide
from pipeline.storage.manifest import read_manifest, result_files
from pipeline.storage.slide_store import SlideStore
from tests.support.commands import CLASSES, Command
from tests.support.faults.pictures import draw, red_and_blue
from tests.support.make_store import tree_bytes
from tests.support.run_slide import Plan, computed, plans_of_discs, run
from tests.unit.pipeline.killing import KILLED, killed_at
from tests.unit.pipeline.stages.test_pyramid import ome, scales_of

SHAPE = (700, 1100)
IMAGE, PROBABILITY = "outputs.image=drop", "outputs.probability=drop"
BOTH = (IMAGE, PROBABILITY)
LARGER = "objects.min_area_um2=40"


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Plans for one generated slide of two classes in six blocks, with any settings."""
    return plans_of_discs(tmp_path_factory.mktemp("slide"), SHAPE)


def result(root: Path) -> dict[str, bytes]:
    """Return all bytes of a result that do not depend on the time of the run."""
    tree = tree_bytes(root, without=(".work",))
    return {name: content for name, content in tree.items() if name != "manifest.json"}


@pytest.fixture(scope="module")
def fresh(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return the result of an undisturbed run with these settings; each is computed once."""
    made: dict[tuple[str, ...], Path] = {}

    def of(*settings: str) -> Path:
        if settings not in made:
            made[settings] = tmp_path_factory.mktemp("fresh") / "discs"
            run(plan(*settings), made[settings])
        return made[settings]

    return of


@pytest.fixture
def copy(fresh: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Return a copy of such a result that the test may change."""

    def of(*settings: str) -> Path:
        return Path(shutil.copytree(fresh(*settings), tmp_path / "discs"))

    return of


def assert_consistent(root: Path) -> bool:
    """Assert that a manifest, if there is one, lists exactly the files present; return whether there is one."""
    store = SlideStore(root)
    manifest = read_manifest(store)
    if manifest is None:
        return False
    assert {path.relative_to(root).as_posix() for path in result_files(store)} == set(manifest["files"])
    assert verify_slide(store) == []
    return True


# ---- remaining arrays ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [(IMAGE,), (PROBABILITY,), BOTH], ids=["image", "probability", "both"])
def test_only_level_0_is_dropped(fresh: Callable[..., Path], settings: tuple[str, ...]) -> None:
    kept, left = result(fresh()), result(fresh(*settings))
    arrays = (("0", IMAGE), ("labels/objects/2", IMAGE), ("probability/0", PROBABILITY))
    gone = [f"slide.ome.zarr/{path}/" for path, one in arrays if one in settings]
    assert set(kept) - set(left) == {name for name in kept if name.startswith(tuple(gone))} != set()
    groups = {f"slide.ome.zarr/{path}zarr.json" for path in ("", "probability/", "labels/objects/")}
    assert {name for name in left if left[name] != kept[name]} <= groups
    assert assert_consistent(fresh(*settings))


@pytest.mark.parametrize("settings", [(IMAGE,), (PROBABILITY,), BOTH], ids=["image", "probability", "both"])
def test_the_metadata_lists_what_is_there(fresh: Callable[..., Path], settings: tuple[str, ...]) -> None:
    path, whole = fresh(*settings) / "slide.ome.zarr", fresh() / "slide.ome.zarr"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for group in ("", "probability", "labels/objects"):
            Image.from_zarr(zarr.open_group(path / group, mode="r"))
            listed = [dataset["path"] for dataset in ome(path / group)["multiscales"][0]["datasets"]]
            assert listed == sorted(entry.name for entry in (path / group).iterdir() if entry.name.isdigit())
            known = scales_of(whole / group)
            assert scales_of(path / group) == [known[int(level)] for level in listed], "shape, scale, translation"
    extents = {
        tuple(round(length * step / 1.0) for length, step in zip(shape[-2:], scale[-2:], strict=True))
        for group in ("", "probability", "labels/objects")
        for shape, scale, _ in scales_of(path / group)
    }
    assert len(extents) == 1, "image and labels cover the same tissue at every level"


def test_a_slide_of_one_level_keeps_it(tmp_path: Path) -> None:
    scale = {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"}
    shape = (300, 400)
    tifffile.imwrite(tmp_path / "small.tif", draw(shape, red_and_blue(shape)), photometric="rgb", **scale)
    config = load_config(None, [f"model.weights={CLASSES}", "tiles.block=512", *BOTH])
    request = BatchRequest(inputs=(tmp_path / "small.tif",), out=tmp_path / "out", config=config)
    plan = plan_batch(request).plans["small"]
    run(plan, tmp_path / "small")
    assert [dataset["path"] for dataset in ome(tmp_path / "small/slide.ome.zarr")["multiscales"][0]["datasets"]] == [
        "0"
    ]
    assert (tmp_path / "small/slide.ome.zarr/0/c/0/0/0").exists()
    assert assert_consistent(tmp_path / "small")
    assert SlideRun(plan, SlideStore(tmp_path / "small")).is_complete()


# ---- running again -----------------------------------------------------------------------------------------------


def test_the_same_again_does_nothing(plan: Plan, copy: Callable[..., Path]) -> None:
    root = copy(*BOTH)
    before = tree_bytes(root)
    assert SlideRun(plan(*BOTH), SlideStore(root)).is_complete()
    again = run(plan(*BOTH), root)
    assert again.prepare() == "complete"
    assert again.reports == {}
    assert tree_bytes(root) == before


def test_dropping_later_computes_nothing(plan: Plan, copy: Callable[..., Path], fresh: Callable[..., Path]) -> None:
    root = copy()
    assert not SlideRun(plan(*BOTH), SlideStore(root)).is_complete()
    assert computed(run(plan(*BOTH), root)) == {}
    assert result(root) == result(fresh(*BOTH))
    assert assert_consistent(root)


def test_a_dropped_image_is_read_again_where_it_is_needed(
    plan: Plan, copy: Callable[..., Path], fresh: Callable[..., Path]
) -> None:
    root = copy(IMAGE)
    again = run(plan(IMAGE, LARGER), root)
    assert set(computed(again)) == {"ingest", "label", "measure", "pyramid", "export", "overlay"}
    assert any("the slide is read again (6 blocks)" in notice for notice in again.notices)
    assert result(root) == result(fresh(IMAGE, LARGER))
    assert assert_consistent(root)


def test_a_dropped_probability_is_predicted_again_only_when_forced(
    plan: Plan, copy: Callable[..., Path], fresh: Callable[..., Path]
) -> None:
    root = copy(*BOTH)
    before = tree_bytes(root)
    kept = SlideRun(plan(*BOTH, LARGER), SlideStore(root))
    assert kept.prepare() == "kept"
    (notice,) = kept.notices
    assert "the network runs again (6 blocks)" in notice
    assert "--force discs" in notice
    assert tree_bytes(root) == before
    forced = run(plan(*BOTH, LARGER), root, forced=True)
    assert computed(forced)["predict"] == 6
    assert "tissue" not in computed(forced)
    assert result(root) == result(fresh(*BOTH, LARGER))


def test_dropped_arrays_are_recomputed_when_they_are_to_be_kept(
    plan: Plan, copy: Callable[..., Path], fresh: Callable[..., Path]
) -> None:
    root = copy(*BOTH)
    assert computed(run(plan(PROBABILITY), root)) == {"ingest": 6, "pyramid": 1}, "and the coarsest labels"
    assert result(root) == result(fresh(PROBABILITY))
    assert run(plan(), root).prepare() == "kept", "recomputing would run the network"
    assert computed(run(plan(), root, forced=True)) == {"predict": 6}
    assert result(root) == result(fresh())
    assert assert_consistent(root)


@pytest.mark.parametrize(
    ("name", "makes"),
    [
        ("slide.ome.zarr/labels/objects/1/c/0/0", {"pyramid": 2}),
        ("slide.ome.zarr/1/c/0/0/1", {"ingest": 6, "pyramid": 1}),
        ("slide.ome.zarr/probability/1/c/0/0/0", {"ingest": 6, "predict": 6, "pyramid": 1}),
        ("slide.ome.zarr/probability/zarr.json", {}),
        ("objects.geojson.gz", {"export": 6}),
    ],
)
def test_damaged_file_reruns_only_the_stages_that_make_it(
    plan: Plan, copy: Callable[..., Path], name: str, makes: dict[str, int]
) -> None:
    root = copy(*BOTH)
    before = result(root)
    (root / name).unlink()
    again = run(plan(*BOTH), root)
    assert set(computed(again)) == set(makes), again.notices
    assert result(root) == before
    assert assert_consistent(root)


# ---- kills -----------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_kill_at_any_step_of_dropping_leaves_a_consistent_result(
    plan: Plan, fresh: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kills between the last stage and the manifest, in a result that still has all arrays."""
    expected, struck = result(fresh(*BOTH)), 0
    for step in range(300):
        root = Path(shutil.copytree(fresh(), tmp_path / str(step)))
        (root / "manifest.json").unlink()
        first = SlideRun(plan(*BOTH), SlideStore(root))
        assert first.prepare() == "todo"
        with killed_at(step, monkeypatch) as steps:
            first.finish()
        complete = assert_consistent(root)
        again = run(plan(*BOTH), root)
        assert computed(again) == {}, f"killed at step {step}"
        assert result(root) == expected
        assert assert_consistent(root)
        assert not (root / ".work" / "old").exists() or not any((root / ".work" / "old").rglob("*.json"))
        shutil.rmtree(root)
        if KILLED not in steps:
            break
        struck += 1
        assert not complete or steps[-2:] == ["replace", KILLED], "only the last fsync comes after the manifest"
    assert struck >= 15


def test_kill_at_any_step_of_restoring_arrays_is_resumed(
    plan: Plan, fresh: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_plan = plan(*BOTH, LARGER)
    struck = 0
    for step in range(60):
        root = Path(shutil.copytree(fresh(*BOTH), tmp_path / str(step)))
        with killed_at(step, monkeypatch) as steps:
            SlideRun(new_plan, SlideStore(root)).prepare(forced=True)
        complete = assert_consistent(root)
        again = SlideRun(new_plan, SlideStore(root))
        assert again.prepare(forced=complete) == "todo", "an unfinished result is resumed without --force"
        stamped = {stage for stage in new_plan.hashes if again.store.stamped(stage) == new_plan.hashes[stage]}
        assert stamped == {"tissue"}
        assert not again.store.manifest.exists()
        if KILLED not in steps or step == 3:
            for stage in new_plan.hashes:
                again.step(stage, serial)
            again.finish()
            assert result(root) == result(fresh(*BOTH, LARGER))
        shutil.rmtree(root)
        if KILLED not in steps:
            break
        struck += 1
    assert struck >= 5


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_the_command_drops_verifies_and_tells(overtile: Command, tmp_path: Path) -> None:
    scale = {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "discs.tif", draw(SHAPE, red_and_blue(SHAPE)), photometric="rgb", **scale)
    out = tmp_path / "out"
    ran = overtile.segment(tmp_path / "discs.tif", out, *BOTH)
    assert ran.code == 0, ran.transcript
    again = overtile.segment(tmp_path / "discs.tif", out, *BOTH)
    assert again.code == 0
    assert "0 blocks computed, 0 network calls" in again.stdout
    changed = overtile.segment(tmp_path / "discs.tif", out, *BOTH, LARGER)
    assert changed.code == 3, changed.transcript
    assert changed.states() == {"discs": "kept"}
    assert "the network runs again" in changed.error_of("discs")
    assert overtile.run("verify", out).code == 0
    (record,) = json.loads(overtile.run("inspect", out, "--json").stdout)
    assert record["dropped"] == ["0", "probability/0"]
    assert "dropped when complete: probability/0" in overtile.run("inspect", out).stdout
    objects = zarr.open_group(out / "discs" / "slide.ome.zarr", mode="r")["labels/objects/0"]
    assert np.asarray(objects).max() > 0  # type: ignore[arg-type]  # an array
