"""The manifest: lists every other file of a result, is written last, and is trusted only when unchanged."""

from __future__ import annotations

import hashlib
import json
import random
import re
from pathlib import Path

import pytest

from pipeline.errors import DamagedError
from pipeline.storage import atomic_files, manifest
from pipeline.storage.manifest import (
    PACKAGES,
    file_digests,
    package_version,
    read_manifest,
    result_files,
    write_manifest,
)
from pipeline.storage.slide_store import SlideStore
from tests.unit.pipeline.killing import KILLED, killed_at
from tests.unit.pipeline.make_result import PLAN, PLANS, finished_slide

SEED = 20261120


@pytest.fixture
def store(tmp_path: Path) -> SlideStore:
    return finished_slide(tmp_path / "out" / "case" / "ü")


def test_manifest_lists_every_result_file_with_size_and_digest(store: SlideStore) -> None:
    content = read_manifest(store)
    assert content is not None
    everything = {path.relative_to(store.root).as_posix(): path for path in store.root.rglob("*") if path.is_file()}
    expected = {
        name: {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for name, path in everything.items()
        if name != "manifest.json" and not name.startswith(".work/")
    }
    assert content["files"] == expected
    assert {"objects.parquet", "slide.ome.zarr/zarr.json", "slide.ome.zarr/0/c/0/1/1"} <= set(expected)


def test_manifest_records_plan_and_software(store: SlideStore) -> None:
    content = read_manifest(store)
    assert content is not None
    assert content["plan"] == json.loads(json.dumps(PLAN))
    assert set(content["stages"]) == set(PLANS)
    assert set(content["software"]) == set(PACKAGES)
    assert content["software"]["numpy"] == package_version("numpy") is not None
    assert set(content["host"]) == {"name", "machine", "python", "folders_are_synced"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", content["finished"])


def test_manifest_holds_text_of_every_zarr_json(store: SlideStore) -> None:
    content = read_manifest(store)
    assert content is not None
    found = {path.relative_to(store.root).as_posix(): path.read_text() for path in store.root.rglob("zarr.json")}
    assert content["metadata"] == found


def test_a_package_that_is_not_installed_has_no_version() -> None:
    assert package_version("no-such-package") is None


def test_partials_and_links_to_nothing_are_no_results(store: SlideStore) -> None:
    before = result_files(store)
    (store.root / ".x.1.partial").write_bytes(b"")
    (store.zarr / "0" / ".y.2.partial").write_bytes(b"")
    (store.root / "dangling").symlink_to(store.root / "absent")
    assert result_files(store) == before == sorted(before)


def test_names_of_any_kind_are_kept(tmp_path: Path) -> None:
    names = ["a b", "ü", "new\nline", "-dash", "$(touch x)", "<img src=x>", "sub/deep/file"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    digests = file_digests(tmp_path, [tmp_path / name for name in names])
    assert {name: entry["sha256"] for name, entry in digests.items()} == {
        name: hashlib.sha256(name.encode()).hexdigest() for name in names
    }


def test_no_manifest_is_not_complete(tmp_path: Path) -> None:
    assert read_manifest(SlideStore(tmp_path / "never")) is None


# ---- written last, whole or not at all -----------------------------------------------------------------------------


def test_manifest_is_written_last_and_durably(store: SlideStore, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    digests, sync, replace = manifest.file_digests, atomic_files.fsync_dir, Path.replace
    monkeypatch.setattr(manifest, "file_digests", lambda *given: (order.append("digests"), digests(*given))[1])
    monkeypatch.setattr(Path, "replace", lambda one, other: (order.append(other.name), replace(one, other))[1])
    monkeypatch.setattr(manifest, "fsync_dir", lambda path: (order.append(f"sync {path.name}"), sync(path))[1])
    write_manifest(store, PLAN, {})
    synced = f"sync {store.root.name}"  # tried before, to say whether it can be
    assert order == [synced, "digests", "manifest.json", synced]
    assert json.loads(store.manifest.read_text())["host"]["folders_are_synced"]


def test_fault_4_killed_at_any_step_it_is_the_old_one_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = finished_slide(tmp_path / "slide")
    old = store.manifest.read_bytes()
    for step in range(20):
        store.manifest.write_bytes(old)
        with killed_at(step, monkeypatch) as steps:
            write_manifest(store, {"key": "new"}, {})
        content = read_manifest(store)
        assert content is not None
        assert content["plan"]["key"] in ("case/ü", "new")
        if KILLED not in steps:
            break
    assert steps == ["fsync", "mkdir", "fsync", "replace", "fsync"]


# ---- damage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"null", b'"text"', b"\0" * 500, b"\xff\xfe", b"7"])
def test_invalid_manifest_is_named(store: SlideStore, content: bytes) -> None:
    store.manifest.write_bytes(content)
    with pytest.raises(DamagedError, match=re.escape(str(store.manifest))):
        read_manifest(store)


def test_changed_manifest_is_refused(store: SlideStore) -> None:
    original = read_manifest(store)
    content = store.manifest.read_bytes()
    rng = random.Random(SEED)
    print(f"seed {SEED}")
    refused = 0
    for _ in range(500):
        bit = rng.randrange(8 * len(content))
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        store.manifest.write_bytes(flipped)
        try:
            assert read_manifest(store) == original, f"bit {bit}"
        except DamagedError:
            refused += 1
    assert refused > 450
    for keep in sorted(rng.sample(range(len(content) - 1), 60)):
        store.manifest.write_bytes(content[:keep])
        with pytest.raises(DamagedError):
            read_manifest(store)


def test_a_manifest_of_another_shape_is_refused_even_with_a_digest(store: SlideStore) -> None:
    content = read_manifest(store)
    assert content is not None
    edited = json.loads(store.manifest.read_text())
    edited["files"].pop("objects.parquet")
    store.manifest.write_text(json.dumps(edited))
    with pytest.raises(DamagedError):
        read_manifest(store)
