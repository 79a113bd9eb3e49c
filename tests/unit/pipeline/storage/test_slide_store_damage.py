"""Damage on disk: reading raises and names the file, where zarr would return zeros."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from pipeline.errors import DamagedError, OvertileError
from pipeline.geometry import Box
from pipeline.storage.slide_store import SlideStore, shard_path
from tests.support.make_store import OTHER, PLAN, SEED, blocks_of, spec_of

SHAPE = (700, 1100)


@pytest.fixture
def store(tmp_path: Path) -> SlideStore:
    return SlideStore(tmp_path / "slide")


# ---- damage --------------------------------------------------------------------------------------------------------


def flip_a_bit(path: Path, content: bytes, rng: random.Random) -> int:
    """Write ``content`` with one bit changed; returns which."""
    bit = rng.randrange(8 * len(content))
    flipped = bytearray(content)
    flipped[bit // 8] ^= 1 << bit % 8
    path.write_bytes(flipped)
    return bit


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
def test_flipped_bit_never_gives_wrong_pixels_silently(store: SlideStore, codec: str) -> None:
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
def test_damaged_metadata_is_named_by_every_reader(store: SlideStore, content: bytes) -> None:
    pixels, _ = damaged_array(store)
    (store.zarr / "0/zarr.json").write_bytes(content)
    for use in uses(store, pixels):
        with pytest.raises(DamagedError, match=re.escape(str(store.zarr / "0/zarr.json"))):
            use()


def test_missing_metadata_means_missing_array(store: SlideStore) -> None:
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
        bit = flip_a_bit(path, content, rng)
        try:
            array = store.read("0")
            found = array.read(Box(0, 512, 512, 1024)) if array.shape == pixels.shape else None
        except OvertileError as error:
            messages.append(str(error))
            continue
        assert found is None or np.array_equal(found, pixels[:, :512, 512:1024]), f"bit {bit}"
    assert messages
    assert all(str(store.zarr / "0") in message for message in messages)


def test_plan_is_stored_where_any_zarr_reader_finds_it(store: SlideStore) -> None:
    damaged_array(store)
    assert zarr.open_array(store.zarr / "0", mode="r").attrs["overtile"] == {"plan": PLAN}


# ---- blocks' small results -----------------------------------------------------------------------------------------


def test_small_results_are_read_back(store: SlideStore) -> None:
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
        bit = flip_a_bit(path, content, rng)
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


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"null", b'{"facts": {}}', b'{"plan": 3, "facts": {}}'])
def test_a_damaged_stamp_is_named(store: SlideStore, content: bytes) -> None:
    store.stamp("label", PLAN, {})
    (store.work / "label.stamp").write_bytes(content)
    for use in (store.stamped, store.facts):
        with pytest.raises(DamagedError, match=r"label\.stamp"):
            use("label")
