"""The store: whole shards, also of empty blocks; one plan for each array; missing shards raise instead of zeros."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import StoreError
from pipeline.geometry import Box
from pipeline.storage import slide_store as store_module
from pipeline.storage.slide_store import SlideStore, StoredArray, shard_path
from tests.support.make_store import OTHER, PLAN, blocks_of, picture, put_array, spec_of, tree_bytes
from tests.unit.pipeline.killing import KILLED, killed_at

SHAPE = (700, 1100)


@pytest.fixture
def store(tmp_path: Path) -> SlideStore:
    return SlideStore(tmp_path / "slide")


# ---- writing and reading ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "bool"])
@pytest.mark.parametrize("leading", [(), (1,), (3,)])
def test_written_blocks_are_read_back(store: SlideStore, leading: tuple[int, ...], dtype: str, codec: str) -> None:
    pixels = picture((*leading, *SHAPE)) > 127 if dtype == "bool" else picture((*leading, *SHAPE), dtype)
    store.create(spec_of(pixels, codec=codec))
    for tile in blocks_of(pixels):
        store.write_block("0", PLAN, tile.core, pixels[(..., *tile.core.slices)])
    store.commit("0", PLAN)
    read = store.read("0")
    assert (read.shape, read.dtype, read.plan, read.block_px) == (pixels.shape, pixels.dtype, PLAN, 512)
    assert np.array_equal(read[()], pixels)
    for box in (Box(0, 0, 1, 1), Box(500, 511, 513, 1025), Box(699, 1099, 700, 1100), Box(3, 3, 3, 3)):
        assert np.array_equal(read.read(box), pixels[(..., *box.slices)])


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (511, 513), (512, 512), (513, 1024)])
def test_any_size_has_all_its_shards(store: SlideStore, shape: tuple[int, int]) -> None:
    pixels = picture((1, *shape))
    put_array(store, "0", pixels, PLAN)
    assert store.done("0", PLAN) == {tile.index for tile in blocks_of(pixels)}
    assert np.array_equal(store.read("0")[()], pixels)


def test_an_empty_block_has_a_shard_like_any_other(store: SlideStore) -> None:
    """By default zarr stores nothing for a chunk of zeros, and deletes an existing one."""
    pixels = np.zeros(SHAPE, np.uint32)
    put_array(store, "labels/objects/0", pixels, PLAN)
    location = store.zarr / "labels/objects/0"
    for tile in blocks_of(pixels):
        shard = shard_path(location, tile.index, 2)
        assert shard.stat().st_size > 0
        before = shard.read_bytes()
        store.write_block("labels/objects/0", PLAN, tile.core, pixels[tile.core.slices])
        assert shard.read_bytes() == before, "the array was reopened for this write"
    assert not store.read("labels/objects/0")[()].any()


def test_the_shard_path_is_where_zarr_puts_it(store: SlideStore) -> None:
    for path, shape in [("flat", SHAPE), ("deep", (2, *SHAPE))]:
        pixels = picture(shape)
        store.create(spec_of(pixels, path=path))
        core = Box(512, 1024, 700, 1100)
        store.write_block(path, PLAN, core, pixels[(..., *core.slices)])
        files = [file for file in (store.zarr / path).rglob("*") if file.is_file() and file.name != "zarr.json"]
        assert files == [shard_path(store.zarr / path, (1, 2), len(shape))]
        assert store.done(path, PLAN) == {(1, 2)}


def test_every_file_of_an_array_is_written_durably(store: SlideStore, monkeypatch: pytest.MonkeyPatch) -> None:
    durable: set[Path] = set()
    for name in ("write_bytes", "write_atomic"):
        write = getattr(store_module, name)
        monkeypatch.setattr(store_module, name, lambda path, what, write=write: (durable.add(path), write(path, what)))
    put_array(store, "0", picture(SHAPE), PLAN)
    assert {path for path in store.zarr.rglob("*") if path.is_file()} == durable


def test_commit_syncs_the_array_s_folders(store: SlideStore, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = picture(SHAPE)
    put_array(store, "0", pixels, PLAN)
    synced: list[Path] = []
    monkeypatch.setattr(store_module, "fsync_tree", synced.append)
    store.commit("0", PLAN)
    assert synced == [store.zarr / "0"]


@pytest.mark.parametrize(
    ("core", "shape", "dtype"),
    [
        (Box(0, 0, 256, 512), (256, 512), "uint8"),  # half a shard
        (Box(0, 256, 512, 768), (512, 512), "uint8"),  # across two
        (Box(0, 0, 512, 1024), (512, 1024), "uint8"),  # two
        (Box(512, 0, 600, 512), (88, 512), "uint8"),  # an edge shard, not to the edge
        (Box(512, 1024, 1024, 1536), (512, 512), "uint8"),  # beyond the edge
        (Box(0, 0, 512, 512), (512, 511), "uint8"),
        (Box(0, 0, 512, 512), (1, 512, 512), "uint8"),
        (Box(0, 0, 512, 512), (512, 512), "uint16"),
        (Box(0, 0, 512, 512), (512, 512), "bool"),
    ],
)
def test_anything_but_one_whole_shard_is_refused_and_nothing_written(
    store: SlideStore, core: Box, shape: tuple[int, ...], dtype: str
) -> None:
    store.create(spec_of(picture(SHAPE)))
    with pytest.raises(StoreError, match="expected one whole shard of 512 px"):
        store.write_block("0", PLAN, core, np.ones(shape, dtype))
    assert store.done("0", PLAN) == set()


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_the_same_pixels_are_the_same_bytes_from_any_thread(tmp_path: Path, codec: str) -> None:
    """blosc with several threads writes its blocks in the order in which they finish."""
    pixels = np.repeat(picture((3, 1024, 256)), 4, axis=2)
    tiles = list(blocks_of(pixels))

    def write(name: str, mapped: Callable[[Callable[[Any], None], list[Any]], Any]) -> dict[str, bytes]:
        store = SlideStore(tmp_path / name)
        store.create(spec_of(pixels, codec=codec))
        list(mapped(lambda tile: store.write_block("0", PLAN, tile.core, pixels[(..., *tile.core.slices)]), tiles))
        return tree_bytes(store.zarr)

    def elsewhere(function: Callable[[Any], None], items: list[Any]) -> list[None]:
        thread = threading.Thread(target=lambda: [function(item) for item in items])
        thread.start()
        thread.join()
        return []

    here = write("here", map)
    assert len(here) == 5
    assert write("again", map) == here
    assert write("thread", elsewhere) == here
    with ThreadPoolExecutor(4) as pool:
        assert write("pool", pool.map) == here


def test_writing_a_block_twice_changes_nothing(store: SlideStore) -> None:
    pixels = picture((3, *SHAPE))
    put_array(store, "0", pixels, PLAN)
    before = tree_bytes(store.zarr)
    for tile in blocks_of(pixels):
        store.write_block("0", PLAN, tile.core, pixels[(..., *tile.core.slices)])
    assert tree_bytes(store.zarr) == before


# ---- plans ---------------------------------------------------------------------------------------------------------


def test_a_block_of_another_plan_is_refused(store: SlideStore) -> None:
    pixels = picture(SHAPE)
    store.create(spec_of(pixels))
    core = Box(0, 0, 512, 512)
    for use in (
        lambda: store.write_block("0", OTHER, core, pixels[core.slices]),
        lambda: store.done("0", OTHER),
        lambda: store.commit("0", OTHER),
    ):
        with pytest.raises(StoreError, match=r"expected an array of plan bbbbbbbb, found aaaaaaaa"):
            use()
    assert store.done("0", PLAN) == set()


def test_the_plan_is_checked_just_before_every_write(store: SlideStore) -> None:
    pixels = picture(SHAPE)
    put_array(store, "0", pixels, PLAN)
    store.create(spec_of(pixels, OTHER))
    core = Box(0, 0, 512, 512)
    store.write_block("0", PLAN, core, pixels[core.slices])  # a straggler of the old run may still finish
    for tile in blocks_of(pixels):
        store.write_block("0", OTHER, tile.core, pixels[tile.core.slices])
    store.commit("0", OTHER)
    with pytest.raises(StoreError, match="plan aaaaaaaa"):
        store.write_block("0", PLAN, core, pixels[core.slices])


def test_creating_again_under_the_same_plan_keeps_what_is_done(store: SlideStore) -> None:
    pixels = picture(SHAPE)
    store.create(spec_of(pixels))
    core = Box(0, 0, 512, 512)
    store.write_block("0", PLAN, core, pixels[core.slices])
    store.create(spec_of(pixels))
    assert store.done("0", PLAN) == {(0, 0)}


def test_array_of_new_plan_replaces_old_one_only_when_complete(store: SlideStore) -> None:
    old, new = picture(SHAPE, seed=1), picture((1, 600, 600), "uint16", seed=2)
    put_array(store, "0", old, PLAN)
    store.create(spec_of(new, OTHER))
    for tile in blocks_of(new):
        assert np.array_equal(store.read("0")[()], old)
        store.write_block("0", OTHER, tile.core, new[(..., *tile.core.slices)])
    store.commit("0", OTHER)
    assert np.array_equal(store.read("0")[()], new)
    assert store.read("0").plan == OTHER
    assert not list(store.work.rglob("zarr.json")), "neither the old array nor the staged one is left"


def test_a_third_plan_replaces_an_unfinished_second(store: SlideStore) -> None:
    old, new = picture(SHAPE, seed=1), picture(SHAPE, seed=3)
    put_array(store, "0", old, PLAN)
    store.create(spec_of(old, OTHER))
    store.write_block("0", OTHER, Box(0, 0, 512, 512), old[:512, :512])
    put_array(store, "0", new, "c" * 64)
    assert np.array_equal(store.read("0")[()], new)
    assert store.read("0").plan == "c" * 64


def finish(store: SlideStore, pixels: NDArray[Any], plan: str) -> None:
    """Do what a rerun does: find existing blocks, write the missing ones, commit."""
    store.create(spec_of(pixels, plan))
    for tile in blocks_of(pixels):
        if tile.index not in store.done("0", plan):
            store.write_block("0", plan, tile.core, pixels[(..., *tile.core.slices)])
    store.commit("0", plan)


def test_replacement_killed_at_any_step_never_mixes_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = picture((2, 600, 100), seed=1), picture((2, 600, 100), seed=2)
    template = SlideStore(tmp_path / "template")
    put_array(template, "0", old, PLAN)
    deaths = 0
    for step in range(200):
        store = SlideStore(tmp_path / f"killed-{step}")
        shutil.copytree(template.root, store.root)
        with killed_at(step, monkeypatch) as steps:
            finish(store, new, OTHER)
        try:
            found = store.read("0")
            assert np.array_equal(found[()], old if found.plan == PLAN else new), f"mixed after {steps}"
        except StoreError:
            pass
        finish(store, new, OTHER)
        assert np.array_equal(store.read("0")[()], new), f"not healed after {steps}"
        assert not list(store.work.rglob("zarr.json")), f"a copy of the array is left behind after {steps}"
        if KILLED not in steps:
            break
        deaths += 1
        shutil.rmtree(store.root)
    print(f"{deaths} deaths")
    assert deaths >= 20


def test_first_write_killed_at_any_step_marks_no_unwritten_block_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = picture((2, 600, 100))
    for step in range(200):
        store = SlideStore(tmp_path / f"killed-{step}")
        with killed_at(step, monkeypatch) as steps:
            finish(store, pixels, PLAN)
        if (store.zarr / "0/zarr.json").exists():
            for index in store.done("0", PLAN):
                core = blocks_of(pixels).tile(*index).core
                assert np.array_equal(store.read("0").read(core), pixels[(..., *core.slices)])
        finish(store, pixels, PLAN)
        assert np.array_equal(store.read("0")[()], pixels)
        if KILLED not in steps:
            break
    assert step >= 10


# ---- stamps --------------------------------------------------------------------------------------------------------


def test_stamps(store: SlideStore) -> None:
    assert store.stamped("label") is None
    store.stamp("label", PLAN, {"objects": 3})
    store.stamp("measure", PLAN, {})
    assert store.stamped("label") == PLAN
    assert store.facts("label") == {"objects": 3}
    store.stamp("label", OTHER, {})
    assert (store.stamped("label"), store.stamped("measure")) == (OTHER, PLAN)
    store.unstamp(["label", "never"])
    assert (store.stamped("label"), store.stamped("measure")) == (None, PLAN)


def test_results_are_durable_before_stamp_and_stamp_before_return(
    store: SlideStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    sync, tree, write = store_module.fsync_dir, store_module.fsync_tree, store_module.write_json
    monkeypatch.setattr(store_module, "fsync_dir", lambda path: (order.append(f"sync {path.name}"), sync(path)))
    monkeypatch.setattr(store_module, "fsync_tree", lambda path: (order.append(f"sync all of {path.name}"), tree(path)))
    monkeypatch.setattr(
        store_module, "write_json", lambda path, content: (order.append(path.name), write(path, content))
    )
    store.stamp("label", PLAN, {})
    assert order == ["sync all of label", "label.stamp", "sync .work"]


def test_store_is_picklable(store: SlideStore) -> None:
    import pickle

    assert pickle.loads(pickle.dumps(store)) == store
    assert len(pickle.dumps(store)) < 300


def test_json_of_an_array_is_valid_for_others(store: SlideStore) -> None:
    put_array(store, "0", picture((3, *SHAPE)), PLAN)
    metadata = json.loads((store.zarr / "0/zarr.json").read_text())
    assert metadata["zarr_format"] == 3
    assert metadata["dimension_names"] == ["c", "y", "x"]
    assert [codec["name"] for codec in metadata["codecs"]] == ["sharding_indexed"]
    assert metadata["codecs"][0]["configuration"]["codecs"][-1]["name"] == "crc32c"
    assert isinstance(store.read("0"), StoredArray)
