"""Pruning and deleting: kept parts do not change, a kill changes no result, and foreign files are not touched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, StoreError
from pipeline.runs.prune import PARTS, delete_slide, is_unfinished, prune_plan, prune_slide, pruned_parts, read_parts
from pipeline.runs.verify import damaged_files, verify_slide
from pipeline.storage.manifest import read_manifest, result_files
from pipeline.storage.slide_store import SlideStore
from tests.support.make_store import tree_bytes
from tests.unit.pipeline.killing import KILLED, killed_at
from tests.unit.pipeline.make_result import STAGES, finished_slide

WHERE = {
    "tables": ("objects.parquet",),
    "overview": ("overview.png",),
    "geojson": ("objects.geojson.gz",),
    "labels": ("slide.ome.zarr/labels/",),
    "probability": ("slide.ome.zarr/probability/",),
    "tissue": ("slide.ome.zarr/tissue/",),
    "image": ("slide.ome.zarr/zarr.json", "slide.ome.zarr/0/", "slide.ome.zarr/1/"),
}
KEEP = frozenset({"tables", "overview"})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> SlideStore:
    """A finished slide to copy, never to change."""
    store = finished_slide(tmp_path_factory.mktemp("whole") / "slide")
    for stage in STAGES:
        store.save_result(stage, "a" * 64, (0, 0), {})
    return store


@pytest.fixture
def store(whole: SlideStore, tmp_path: Path) -> SlideStore:
    return SlideStore(Path(shutil.copytree(whole.root, tmp_path / "slide")))


def parts_on_disk(store: SlideStore) -> dict[str, bytes]:
    """Every file of the result but its manifest."""
    files = tree_bytes(store.root, without=(".work",))
    return {name: content for name, content in files.items() if name != "manifest.json"}


def of(store: SlideStore) -> dict[str, object]:
    """The manifest, without the time at which it was pruned."""
    manifest = read_manifest(store)
    assert manifest is not None
    manifest.get("pruned", {}).pop("when", None)
    return manifest


@pytest.mark.parametrize("keep", [KEEP, {"labels"}, {"image", "tissue"}, {"probability", "geojson"}, set(), set(WHERE)])
def test_kept_parts_are_unchanged_and_others_removed(store: SlideStore, whole: SlideStore, keep: set[str]) -> None:
    before = parts_on_disk(whole)
    kept = tuple(place for part in keep for place in WHERE[part])
    went = prune_slide(store, keep)
    assert parts_on_disk(store) == {name: content for name, content in before.items() if name.startswith(kept)}
    assert went.bytes == sum(len(content) for name, content in before.items() if not name.startswith(kept))
    assert set(went.parts) == set(PARTS) - keep == set(WHERE) - keep
    assert verify_slide(store) == []
    manifest = of(store)
    assert pruned_parts(manifest) == list(went.parts)
    assert {path.relative_to(store.root).as_posix() for path in result_files(store)} == set(manifest["files"])  # type: ignore[call-overload]  # a mapping
    unstamped = {stage for stage in STAGES if store.stamped(stage) is None}
    assert unstamped == (set(STAGES) if went.entries else set()), "no stamp stands for a removed array"


def test_small_results_are_removed_with_their_shards(store: SlideStore) -> None:
    prune_slide(store, {"labels", "tables"})
    assert {path.parent.name for path in store.work.glob("*/*.npz")} == {
        "label",
        "measure",
        "pyramid",
        "export",
        "overlay",
    }


def test_pruning_again_removes_only_what_is_left(store: SlideStore) -> None:
    first = prune_slide(store, {"tables", "overview", "labels"})
    assert prune_slide(store, {"tables", "overview", "labels"}).entries == ()
    second = prune_slide(store, KEEP)
    assert second.parts == ("labels",)
    manifest = of(store)
    assert manifest["pruned"] == {"entries": [*first.entries, *second.entries], "bytes": first.bytes + second.bytes}
    assert not store.zarr.exists()


def test_prune_killed_at_any_step_leaves_complete_result_and_can_be_repeated(
    whole: SlideStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = SlideStore(Path(shutil.copytree(whole.root, tmp_path / "undisturbed")))
    prune_slide(undisturbed, KEEP)
    struck = 0
    for step in (*range(40), *range(40, 400, 7)):
        store = SlideStore(Path(shutil.copytree(whole.root, tmp_path / str(step))))
        with killed_at(step, monkeypatch) as steps:
            prune_slide(store, KEEP)
        manifest = read_manifest(store)
        assert manifest is not None, "the result is complete at every step"
        assert verify_slide(store) == []
        assert damaged_files(store, manifest) == {}
        stamps = list(store.work.glob("*.stamp"))
        assert "pruned" not in manifest or not stamps, "no stamp stands for a removed array"
        arrays = {path.parent for path in store.zarr.rglob("zarr.json")}
        done = len(parts_on_disk(store)) == len(KEEP)
        assert done or arrays
        prune_slide(store, KEEP)
        assert not is_unfinished(store, of(store))
        assert parts_on_disk(store) == parts_on_disk(undisturbed)
        assert of(store) == of(undisturbed)
        assert tree_bytes(store.work).keys() == tree_bytes(undisturbed.work).keys()
        shutil.rmtree(store.root)
        if KILLED not in steps:
            break
        struck += 1
    assert struck > 35


def test_incomplete_or_damaged_result_is_not_pruned(store: SlideStore) -> None:
    (store.root / "objects.parquet").unlink()
    before = tree_bytes(store.root)
    with pytest.raises(StoreError, match=r"objects\.parquet is damaged: nothing is pruned"):
        prune_slide(store, KEEP)
    assert tree_bytes(store.root) == before
    prune_slide(store, {"overview"})  # what is damaged goes
    assert verify_slide(store) == []
    store.manifest.unlink()
    before = tree_bytes(store.root)
    with pytest.raises(StoreError, match="is not complete"):
        prune_slide(store, {"overview"})
    assert tree_bytes(store.root) == before


def test_verify_finds_unexpected_file_in_pruned_result(store: SlideStore) -> None:
    prune_slide(store, KEEP | {"image"})
    (store.zarr / "0" / "mine").write_text("mine")
    (store.zarr / "probability").mkdir()
    (store.zarr / "probability" / "zarr.json").write_text("left by a prune that was killed")
    (store.root / "overview.png").write_bytes(b"changed")
    found = {damage.path for damage in verify_slide(store) or []}
    assert found == {"slide.ome.zarr/0/mine", "overview.png"}


def test_kept_parts_are_not_counted(whole: SlideStore) -> None:
    manifest = of(whole)
    assert prune_plan(manifest, frozenset(PARTS)).entries == ()
    assert prune_plan(manifest, frozenset(PARTS)).bytes == 0


@pytest.mark.parametrize(("words", "near"), [("table", "tables"), ("tables,labls", "labels"), ("Image", "image")])
def test_unknown_part_is_refused_with_nearest_name(words: str, near: str) -> None:
    with pytest.raises(ConfigError, match=rf"expected some of tables, .*image \(did you mean {near}\?\)"):
        read_parts(words)
    assert read_parts("tables, overview") == KEEP


# ---- deleting --------------------------------------------------------------------------------------------------------


def test_delete_killed_at_any_step_leaves_incomplete_slide_and_can_be_repeated(
    whole: SlideStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    struck = 0
    for step in (*range(30), *range(30, 400, 9)):
        store = SlideStore(Path(shutil.copytree(whole.root, tmp_path / str(step))))
        (store.root / "notes.txt").write_text("mine")
        (store.root / "exports").mkdir()
        (store.root / "exports" / "objects.csv").write_text("a copy")
        with killed_at(step, monkeypatch) as steps:
            delete_slide(store, [store.root / "exports" / "objects.csv"])
        if read_manifest(store) is None:
            begun = {json.loads(path.read_text())["plan"] for path in store.work.glob("*.stamp")}
            whole_still = len(parts_on_disk(store)) == len(parts_on_disk(whole)) + 2
            assert whole_still or not begun, "no stamp stands for a removed array"
        else:
            assert verify_slide(store) == []
        delete_slide(store, [path for path in store.root.glob("exports/*") if path.exists()])
        assert tree_bytes(store.root) == {"notes.txt": b"mine"}
        shutil.rmtree(store.root)
        if KILLED not in steps:
            break
        struck += 1
    assert struck > 35
