"""Verify names every damaged file and changes nothing; repair removes only what has to be made again."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import DiskError
from pipeline.runs import verify
from pipeline.runs.verify import (
    check_files,
    damaged_files,
    pending_repair,
    prepare_repair,
    remove_damaged,
    repaired_differs,
    stage_of,
    verify_slide,
)
from pipeline.storage.atomic_files import sha256_file
from pipeline.storage.manifest import read_manifest
from pipeline.storage.slide_store import SlideStore
from tests.support.make_store import tree_bytes
from tests.unit.pipeline.killing import KILLED, killed_at
from tests.unit.pipeline.make_result import ARRAYS, FILES, PLANS, STAGES, finished_slide

SEED = 20261120


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    bit = random.Random(f"{SEED} {path.name}").randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: os.truncate(path, path.stat().st_size - 1),
    "emptied": lambda path: os.truncate(path, 0),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "flipped": flip,
    "grown": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "deleted": Path.unlink,
}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> SlideStore:
    """A finished slide, made once."""
    return finished_slide(tmp_path_factory.mktemp("template") / "slide")


@pytest.fixture
def store(template: SlideStore, tmp_path: Path) -> SlideStore:
    """A copy to damage."""
    shutil.copytree(template.root, tmp_path / "slide")
    return SlideStore(tmp_path / "slide")


def results(store: SlideStore) -> list[str]:
    content = read_manifest(store)
    assert content is not None
    return list(content["files"])


def manifest_of(store: SlideStore) -> dict[str, object]:
    content = read_manifest(store)
    assert content is not None
    return content


def note(store: SlideStore) -> dict[str, str] | None:
    path = store.work / "damage.json"
    return json.loads(path.read_text()) if path.exists() else None


# ---- verify --------------------------------------------------------------------------------------------------------


def test_intact_result_has_no_damage_and_is_not_changed(store: SlideStore) -> None:
    before = tree_bytes(store.root)
    assert verify_slide(store) == []
    assert tree_bytes(store.root) == before


def test_without_a_manifest_there_is_nothing_to_verify(store: SlideStore) -> None:
    store.manifest.unlink()
    assert verify_slide(store) is None
    assert note(store) is None


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damaged_file_is_named_and_nothing_is_changed(store: SlideStore, damage: str) -> None:
    names = results(store)
    assert len(names) >= 15 + len(ARRAYS)
    for name in names:
        path = store.root / name
        sound = path.read_bytes()
        DAMAGES[damage](path)
        before = tree_bytes(store.root, without=(".work",))
        found = verify_slide(store)
        assert [one.path for one in found or []] == [name]
        assert note(store) == {one.path: one.reason for one in found or []}
        assert tree_bytes(store.root, without=(".work",)) == before
        path.write_bytes(sound)
    assert verify_slide(store) == []
    assert note(store) is None, "a note about damage that is gone goes too"


def test_everything_damaged_at_once_is_named(store: SlideStore) -> None:
    names = results(store)
    for name in names:
        flip(store.root / name)
    assert sorted(one.path for one in verify_slide(store) or []) == sorted(names)


@pytest.mark.parametrize(
    "name",
    ["slide.ome.zarr/stray.txt", "slide.ome.zarr/0/c/0/9/9", "slide.ome.zarr/3/zarr.json", "slide.ome.zarr/.hidden"],
)
def test_a_file_that_does_not_belong_is_named(store: SlideStore, name: str) -> None:
    (store.root / name).parent.mkdir(parents=True, exist_ok=True)
    (store.root / name).write_bytes(b"stray")
    assert [(one.path, one.reason) for one in verify_slide(store) or []] == [(name, "not in the manifest")]


def test_foreign_file_beside_result_is_ignored(store: SlideStore) -> None:
    (store.root / "my notes.txt").write_text("looks good")
    assert verify_slide(store) == []


def test_damage_states_its_reason(store: SlideStore) -> None:
    size = (store.root / "overview.png").stat().st_size
    DAMAGES["cut"](store.root / "overview.png")
    DAMAGES["deleted"](store.root / "objects.parquet")
    DAMAGES["flipped"](store.root / "objects.geojson.gz")
    assert {one.path: one.reason for one in verify_slide(store) or []} == {
        "overview.png": f"expected {size} bytes, found {size - 1}",
        "objects.parquet": "missing",
        "objects.geojson.gz": "its bytes changed",
    }


def test_a_folder_in_place_of_a_file_is_damage(store: SlideStore) -> None:
    (store.root / "overview.png").unlink()
    (store.root / "overview.png").mkdir()
    assert [one.path for one in verify_slide(store) or []] == ["overview.png"]


@pytest.mark.parametrize("damage", ["emptied", "zeroed", "flipped"])
def test_a_damaged_manifest_is_itself_the_damage(store: SlideStore, damage: str) -> None:
    DAMAGES[damage](store.manifest)
    assert [one.path for one in verify_slide(store) or []] == ["manifest.json"]


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), DiskError(30, "Read-only file system")])
def test_a_read_only_result_can_be_verified(store: SlideStore, monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    def refuse(*_: object) -> None:
        raise error

    flip(store.root / "overview.png")
    monkeypatch.setattr(verify, "write_json", refuse)
    assert [one.path for one in verify_slide(store) or []] == ["overview.png"]


def test_checking_sizes_only_reads_no_contents(store: SlideStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "sha256_file", lambda path: pytest.fail(f"read {path}"))
    flip(store.root / "overview.png")
    DAMAGES["cut"](store.root / "objects.parquet")
    found = check_files(store.root, manifest_of(store)["files"], contents=False)  # type: ignore[arg-type]  # JSON
    assert [one.path for one in found] == ["objects.parquet"]


# ---- stage of a file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("slide.ome.zarr/0/zarr.json", "ingest"),
        ("slide.ome.zarr/0/c/0/3/11", "ingest"),
        ("slide.ome.zarr/1/c/0/0/0", "pyramid"),
        ("slide.ome.zarr/10/zarr.json", "pyramid"),
        ("slide.ome.zarr/zarr.json", "pyramid"),
        ("slide.ome.zarr/tissue/c/0/0", "tissue"),
        ("slide.ome.zarr/probability/0/c/0/0/0", "predict"),
        ("slide.ome.zarr/probability/1/c/0/0/0", "pyramid"),
        ("slide.ome.zarr/probability/zarr.json", "pyramid"),
        ("slide.ome.zarr/labels/zarr.json", "pyramid"),
        ("slide.ome.zarr/labels/objects/zarr.json", "pyramid"),
        ("slide.ome.zarr/labels/objects/0/c/1/2", "label"),
        ("slide.ome.zarr/labels/objects/2/c/0/0", "pyramid"),
        ("objects.parquet", "measure"),
        ("objects.geojson.gz", "export"),
        ("overview.png", "overlay"),
    ],
)
def test_every_file_has_its_stage(name: str, stage: str) -> None:
    assert stage_of(name) == stage


def test_the_stages_of_a_whole_result_are_those_that_wrote_it(store: SlideStore) -> None:
    for name in results(store):
        array = next((path for path in ARRAYS if name.startswith(f"slide.ome.zarr/{path}/c")), None)
        expected = ARRAYS[array][0] if array else FILES.get(name)
        assert expected in (None, stage_of(name))


# ---- repair --------------------------------------------------------------------------------------------------------


def test_noted_and_missing_files_are_repaired(store: SlideStore) -> None:
    promised = {name: sha256_file(store.root / name) for name in results(store)}
    flip(store.root / "overview.png")
    assert damaged_files(store, manifest_of(store)) == {}, "contents are read by verify only"
    verify_slide(store)
    DAMAGES["deleted"](store.root / "objects.parquet")
    (store.zarr / "stray").write_bytes(b"")
    assert damaged_files(store, manifest_of(store)) == {
        name: promised[name] for name in ("objects.parquet", "overview.png")
    }
    verify_slide(store)
    assert damaged_files(store, manifest_of(store))["slide.ome.zarr/stray"] == ""


@pytest.mark.parametrize("content", [b"", b"{", b"7", b"null", b"\0\0"])
def test_unreadable_damage_note_is_replaced_by_new_check(store: SlideStore, content: bytes) -> None:
    flip(store.root / "overview.png")
    (store.work / "damage.json").write_bytes(content)
    assert set(damaged_files(store, manifest_of(store))) == {"overview.png"}


def test_a_note_about_files_of_another_result_is_ignored(store: SlideStore) -> None:
    (store.work / "damage.json").write_text(json.dumps({"../../etc/passwd": "x", "slide.ome.zarr/9/c/0/0/0": "x"}))
    assert damaged_files(store, manifest_of(store)) == {}


def repair(store: SlideStore) -> None:
    content = manifest_of(store)
    prepare_repair(store, damaged_files(store, content), content["metadata"])  # type: ignore[arg-type]  # JSON


def stamps(store: SlideStore) -> set[str]:
    return {stage for stage in STAGES if store.stamped(stage)}


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("slide.ome.zarr/0/c/0/1/1", "ingest"),
        ("slide.ome.zarr/probability/0/c/0/0/1", "predict"),
        ("slide.ome.zarr/labels/objects/0/c/0/0", "label"),
        ("slide.ome.zarr/1/c/0/0/0", "pyramid"),
        ("objects.parquet", "measure"),
        ("overview.png", "overlay"),
    ],
)
@pytest.mark.parametrize("damage", ["flipped", "cut", "deleted"])
def test_repair_removes_file_stamp_and_manifest(store: SlideStore, name: str, stage: str, damage: str) -> None:
    before = tree_bytes(store.root, without=(".work",))
    DAMAGES[damage](store.root / name)
    verify_slide(store)
    repair(store)
    assert tree_bytes(store.root, without=(".work",)) == {
        one: content for one, content in before.items() if one not in (name, "manifest.json")
    }
    assert stamps(store) == set(STAGES) - {stage}
    assert note(store) is None


@pytest.mark.parametrize("damage", ["flipped", "emptied", "deleted"])
def test_lost_metadata_is_restored_without_computing_blocks(store: SlideStore, damage: str) -> None:
    before = tree_bytes(store.root, without=(".work",))
    for path in store.zarr.rglob("zarr.json"):
        DAMAGES[damage](path)
    verify_slide(store)
    repair(store)
    del before["manifest.json"]
    assert tree_bytes(store.root, without=(".work",)) == before
    assert stamps(store) == set(STAGES)


def test_repair_killed_at_any_step_never_trusts_damaged_files(
    template: SlideStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either the manifest still exists and the repair starts again, or it is gone and the repair is resumed."""
    damaged = {
        "slide.ome.zarr/probability/0/c/0/0/1": "predict",
        "slide.ome.zarr/labels/objects/0/c/1/1": "label",
        "overview.png": "overlay",
    }
    for step in range(100):
        store = SlideStore(tmp_path / f"{step}")
        shutil.copytree(template.root, store.root)
        for name in (*damaged, "slide.ome.zarr/0/zarr.json"):
            flip(store.root / name)
        verify_slide(store)
        content = manifest_of(store)
        with killed_at(step, monkeypatch) as steps:
            repair(store)
        if store.manifest.exists():
            left = {name for name in damaged if (store.root / name).exists()}
            assert left <= set(damaged_files(store, content)), f"forgotten after {steps}"
            repair(store)
        assert set(damaged) <= set(pending_repair(store)), f"the promised digests are lost after {steps}"
        for name, stage in damaged.items():
            assert not (store.root / name).exists(), f"still there after {steps}"
            assert stage not in stamps(store), f"still stamped after {steps}"
        assert not store.manifest.exists()
        assert note(store) is None, f"the next complete result would be repaired for nothing after {steps}"
        assert store.read("0").plan == PLANS["ingest"], f"metadata was not repaired after {steps}"
        if KILLED not in steps:
            break
        shutil.rmtree(store.root)
    assert step >= 8


def test_repaired_file_must_have_digest_of_manifest(store: SlideStore) -> None:
    name = "slide.ome.zarr/probability/0/c/0/0/1"
    sound = (store.root / name).read_bytes()
    damaged = {name: sha256_file(store.root / name), "stray": ""}
    assert not repaired_differs(store, "predict", damaged)
    (store.root / name).write_bytes(sound[:-1] + b"\0")
    assert repaired_differs(store, "predict", damaged)
    assert not repaired_differs(store, "label", damaged), "not its business"
    (store.root / name).unlink()
    assert repaired_differs(store, "predict", damaged)


# ---- damage met in the middle of a run -----------------------------------------------------------------------------


def test_unreadable_files_are_removed_and_readable_ones_kept(store: SlideStore) -> None:
    store.manifest.unlink()
    before = tree_bytes(store.root, without=(".work",))
    bad = ["slide.ome.zarr/0/c/0/0/1", "slide.ome.zarr/labels/objects/0/c/0/0", "slide.ome.zarr/tissue/zarr.json"]
    flip(store.root / bad[0])
    DAMAGES["emptied"](store.root / bad[1])
    DAMAGES["emptied"](store.root / bad[2])
    store.save_result("label", PLANS["label"], (0, 0), {})
    remove_damaged(store, PLANS)
    after = tree_bytes(store.root, without=(".work",))
    assert after == {name: content for name, content in before.items() if name not in bad}
    assert stamps(store) == set()
    assert store.results("label", PLANS["label"]) == set(), "small results are made again"
