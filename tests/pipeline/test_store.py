"""The store: whole shards, also empty ones; one plan an array; reading that raises where zarr would invent zeros."""

from __future__ import annotations

import json
import random
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from pipeline import store as store_module
from pipeline.errors import DamagedError, OvertileError, StoreError
from pipeline.geometry import Box, TileGrid
from pipeline.store import ArraySpec, SlideStore, StoredArray, shard_path
from tests.make_store import put_array, tree_bytes
from tests.pipeline.killing import KILLED, killed_at

SEED = 20261120
PLAN, OTHER = "a" * 64, "b" * 64
SHAPE = (700, 1100)


def picture(shape: tuple[int, ...], dtype: str = "uint8", seed: int = SEED) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype)


def spec_of(pixels: NDArray[Any], plan: str = PLAN, path: str = "0", codec: str = "zstd") -> ArraySpec:
    return ArraySpec(path, pixels.shape, str(pixels.dtype), 512, plan, codec)  # type: ignore[arg-type]  # either of two


def blocks_of(pixels: NDArray[Any]) -> TileGrid:
    return TileGrid(Box.of_shape(pixels.shape[-2:]), 512)


@pytest.fixture
def store(tmp_path: Path) -> SlideStore:
    return SlideStore(tmp_path / "slide")


# ---- writing and reading ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "bool"])
@pytest.mark.parametrize("leading", [(), (1,), (3,)])
def test_what_is_written_comes_back(store: SlideStore, leading: tuple[int, ...], dtype: str, codec: str) -> None:
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
    """zarr on its own stores nothing for a chunk of zeros, and deletes what was there."""
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
    write = store_module.write_bytes
    monkeypatch.setattr(store_module, "write_bytes", lambda path, data: (durable.add(path), write(path, data)))
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
    """blosc with several threads places its blocks in the order they finish."""
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


# ---- damage --------------------------------------------------------------------------------------------------------


def damaged_array(store: SlideStore, codec: str = "zstd") -> tuple[NDArray[Any], Path]:
    """A finished array, smooth so that its shards are small, and one of its shards."""
    y, x = np.mgrid[0:700, 0:1100]
    pixels = ((y // 50 + x // 50) % 251).astype(np.uint16)[None]
    store.create(spec_of(pixels, codec=codec))
    for tile in blocks_of(pixels):
        store.write_block("0", PLAN, tile.core, pixels[(..., *tile.core.slices)])
    store.commit("0", PLAN)
    return pixels, shard_path(store.zarr / "0", (0, 1), 3)


@pytest.mark.parametrize("damage", ["missing", "empty", "folder gone"])
def test_missing_and_empty_shards_raise_and_are_named(store: SlideStore, damage: str) -> None:
    pixels, shard = damaged_array(store)
    if damage == "missing":
        shard.unlink()
    elif damage == "empty":
        shard.write_bytes(b"")
    else:
        shutil.rmtree(shard.parent)
    array = store.read("0")
    for key in (Box(0, 600, 1, 601), Box(0, 0, 700, 1100), Box(511, 1023, 513, 1025)):
        with pytest.raises(DamagedError, match=rf"{re.escape(str(shard))} is missing or empty|/c/0/0/"):
            array.read(key)
    assert np.array_equal(array.read(Box(512, 0, 700, 1100)), pixels[:, 512:]), "the others can still be read"
    assert (0, 1) not in store.done("0", PLAN)


@pytest.mark.parametrize("keep", [1, 3, 4, 10, 0.25, 0.5, 0.9, -1, -4])
def test_a_cut_shard_raises_and_is_named(store: SlideStore, keep: float) -> None:
    _, shard = damaged_array(store)
    content = shard.read_bytes()
    shard.write_bytes(content[: int(keep * len(content))] if isinstance(keep, float) else content[:keep])
    with pytest.raises(DamagedError, match=re.escape(str(store.zarr / "0"))):
        store.read("0").read(Box(0, 512, 512, 1024))


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_zeroed_and_random_shards_raise(store: SlideStore, codec: str) -> None:
    _, shard = damaged_array(store, codec)
    size = shard.stat().st_size
    for content in (b"\0" * size, b"\xff" * size, random.Random(SEED).randbytes(size)):
        shard.write_bytes(content)
        with pytest.raises(DamagedError, match=re.escape(str(store.zarr / "0"))):
            store.read("0").read(Box(0, 512, 512, 1024))


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_no_flipped_bit_gives_wrong_pixels_in_silence(store: SlideStore, codec: str) -> None:
    pixels, shard = damaged_array(store, codec)
    content = shard.read_bytes()
    rng = random.Random(SEED)
    print(f"seed {SEED}")
    array = store.read("0")
    bits = {rng.randrange(8 * len(content)) for _ in range(300)} | set(range(8 * len(content) - 160, 8 * len(content)))
    messages: list[str] = []
    for bit in bits:
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        shard.write_bytes(flipped)
        try:
            assert np.array_equal(array.read(Box(0, 512, 512, 1024)), pixels[:, :512, 512:1024]), f"bit {bit}"
        except DamagedError as error:
            messages.append(str(error))
    assert all(str(shard) in message for message in messages)
    assert len(messages) == len(bits), "every byte of a shard is covered by a checksum"


def test_the_message_names_the_shard_that_is_damaged(store: SlideStore) -> None:
    _, shard = damaged_array(store)
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(DamagedError, match=re.escape(str(shard))):
        store.read("0")[()]


# ---- metadata ------------------------------------------------------------------------------------------------------


def uses(store: SlideStore, pixels: NDArray[Any]) -> Iterator[Callable[[], object]]:
    core = Box(0, 0, 512, 512)
    yield lambda: store.read("0")
    yield lambda: store.create(spec_of(pixels))
    yield lambda: store.done("0", PLAN)
    yield lambda: store.write_block("0", PLAN, core, pixels[(..., *core.slices)])
    yield lambda: store.commit("0", PLAN)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"null",
        b"3",
        b'"text"',
        b"\0" * 50,
        b"\xff\xfe",
        b'{"shape": [1]}',
        b'{"shape": 3, "attributes": []}',
        b'{"shape": [1], "attributes": {"overtile": []}}',
        b'{"shape": [1], "attributes": {"overtile": 5}}',
    ],
)
def test_damaged_metadata_is_named_wherever_it_is_met(store: SlideStore, content: bytes) -> None:
    pixels, _ = damaged_array(store)
    (store.zarr / "0/zarr.json").write_bytes(content)
    for use in uses(store, pixels):
        with pytest.raises(DamagedError, match=re.escape(str(store.zarr / "0/zarr.json"))):
            use()


def test_missing_metadata_is_an_array_that_is_not_there(store: SlideStore) -> None:
    pixels, _ = damaged_array(store)
    (store.zarr / "0/zarr.json").unlink()
    with pytest.raises(DamagedError, match=r"zarr\.json is missing"):
        store.read("0")
    store.create(spec_of(pixels))
    assert store.done("0", PLAN) == set(), "shards of an unknown plan are not taken over"


def test_flipped_metadata_never_gives_wrong_pixels_nor_a_strange_error(store: SlideStore) -> None:
    pixels, _ = damaged_array(store)
    path = store.zarr / "0/zarr.json"
    content = path.read_bytes()
    messages: list[str] = []
    rng = random.Random(SEED)
    print(f"seed {SEED}")
    for _ in range(300):
        bit = rng.randrange(8 * len(content))
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            array = store.read("0")
            found = array.read(Box(0, 512, 512, 1024)) if array.shape == pixels.shape else None
        except OvertileError as error:
            messages.append(str(error))
            continue
        assert found is None or np.array_equal(found, pixels[:, :512, 512:1024]), bytes(flipped)
    assert messages
    assert all(str(store.zarr / "0") in message for message in messages)


def test_plan_is_stored_where_any_zarr_reader_finds_it(store: SlideStore) -> None:
    damaged_array(store)
    assert zarr.open_array(store.zarr / "0", mode="r").attrs["overtile"] == {"plan": PLAN}


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


def test_a_new_plan_s_array_stands_beside_the_old_until_it_is_complete(store: SlideStore) -> None:
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
    """What a rerun does: find what is there, write what is missing, commit."""
    store.create(spec_of(pixels, plan))
    for tile in blocks_of(pixels):
        if tile.index not in store.done("0", plan):
            store.write_block("0", plan, tile.core, pixels[(..., *tile.core.slices)])
    store.commit("0", plan)


def test_killed_at_any_step_of_a_replacement_it_is_the_old_or_the_new_or_plainly_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_killed_at_any_step_of_a_first_write_no_block_is_taken_for_done_that_is_not(
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


# ---- blocks' small results -----------------------------------------------------------------------------------------


def test_small_results_come_back(store: SlideStore) -> None:
    arrays = {"sums": np.arange(12).reshape(3, 4), "edge": np.zeros((0, 2), np.uint32), "one": np.array(3.5)}
    store.save_result("label", PLAN, (3, 11), arrays)
    store.save_result("label", PLAN, (0, 0), {})
    found = store.load_result("label", PLAN, (3, 11))
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)
    assert store.load_result("label", PLAN, (0, 0)) == {}
    assert store.results("label", PLAN) == {(3, 11), (0, 0)}
    assert store.results("label", OTHER) == store.results("measure", PLAN) == set()


def test_small_results_are_the_same_bytes_every_time(store: SlideStore) -> None:
    arrays = {"sums": np.arange(12), "edge": np.ones(3, bool)}
    path = store.result_path("label", PLAN, (0, 0))
    store.save_result("label", PLAN, (0, 0), arrays)
    before = path.read_bytes()
    store.save_result("label", PLAN, (0, 0), arrays)
    assert path.read_bytes() == before


def test_results_never_hold_python_objects(store: SlideStore) -> None:
    with pytest.raises(ValueError, match="allow_pickle=False"):
        store.save_result("label", PLAN, (0, 0), {"bad": np.array([{}], object)})
    assert store.results("label", PLAN) == set()


def test_damaged_results_are_named_and_never_read_wrong(store: SlideStore) -> None:
    array = np.arange(300, dtype=np.int64)
    store.save_result("label", PLAN, (1, 2), {"sums": array})
    path = store.result_path("label", PLAN, (1, 2))
    content = path.read_bytes()
    messages: list[str] = []
    rng = random.Random(SEED)
    print(f"seed {SEED}")
    cut = [content[:keep] for keep in (0, 1, 30, 100, len(content) // 2, len(content) - 1)]
    for damaged in [*cut, b"\0" * len(content), rng.randbytes(len(content)), b"x" * len(content)]:
        path.write_bytes(damaged)
        with pytest.raises(DamagedError, match=re.escape(str(path))):
            store.load_result("label", PLAN, (1, 2))
    for _ in range(600):
        bit = rng.randrange(8 * len(content))
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            found = store.load_result("label", PLAN, (1, 2))
        except DamagedError as error:
            messages.append(str(error))
            continue
        assert found.keys() == {"sums"}, f"bit {bit}"
        assert np.array_equal(found["sums"], array), f"bit {bit}"
    assert messages
    assert all(str(path) in message for message in messages)
    path.unlink()
    with pytest.raises(DamagedError, match=re.escape(str(path))):
        store.load_result("label", PLAN, (1, 2))


def test_results_of_other_plans_are_swept_and_partials_left_to_their_writers(store: SlideStore) -> None:
    for plan in (PLAN, OTHER):
        store.save_result("label", plan, (0, 1), {})
    (store.work / "label/.0.2.aaaaaaaa.npz.0.partial").write_bytes(b"")
    store.sweep_results("label", OTHER)
    store.sweep_results("measure", OTHER)
    assert store.results("label", PLAN) == set()
    assert store.results("label", OTHER) == {(0, 1)}
    assert (store.work / "label/.0.2.aaaaaaaa.npz.0.partial").exists()


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


def test_results_are_durable_before_the_stamp_and_the_stamp_before_going_on(
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


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"null", b'{"facts": {}}', b'{"plan": 3, "facts": {}}'])
def test_a_damaged_stamp_is_named(store: SlideStore, content: bytes) -> None:
    store.stamp("label", PLAN, {})
    (store.work / "label.stamp").write_bytes(content)
    for use in (store.stamped, store.facts):
        with pytest.raises(DamagedError, match=r"label\.stamp"):
            use("label")


def test_a_store_travels_as_a_path(store: SlideStore) -> None:
    import pickle

    assert pickle.loads(pickle.dumps(store)) == store
    assert len(pickle.dumps(store)) < 300


def test_json_of_an_array_is_valid_for_others(store: SlideStore) -> None:
    damaged_array(store)
    metadata = json.loads((store.zarr / "0/zarr.json").read_text())
    assert metadata["zarr_format"] == 3
    assert metadata["dimension_names"] == ["c", "y", "x"]
    assert [codec["name"] for codec in metadata["codecs"]] == ["sharding_indexed"]
    assert metadata["codecs"][0]["configuration"]["codecs"][-1]["name"] == "crc32c"
    assert isinstance(store.read("0"), StoredArray)
