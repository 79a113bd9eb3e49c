"""Files are whole or absent: after any failure the previous content is kept and no other file is left."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DamagedError, DiskError
from pipeline.storage import atomic_files
from pipeline.storage.atomic_files import (
    PARTIAL_AGE_S,
    digest,
    disk_errors,
    fsync_dir,
    fsync_tree,
    read_json,
    remove,
    sha256_file,
    sweep_partials,
    write_atomic,
    write_bytes,
    write_json,
)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


# ---- writing -------------------------------------------------------------------------------------------------------


def test_writing_makes_the_folders_and_leaves_only_the_file(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a" / "b" / "file", b"content")
    assert names(tmp_path) == ["a", "a/b", "a/b/file"]
    assert (tmp_path / "a/b/file").read_bytes() == b"content"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_failure_while_writing_keeps_the_previous_content(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"before")

    def half(file: BinaryIO) -> None:
        file.write(b"aft")
        raise error

    with pytest.raises(error):
        write_atomic(path, half)
    assert path.read_bytes() == b"before"
    assert names(tmp_path) == ["file"]


def test_bytes_are_synced_before_the_name_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda number: (order.append("fsync"), fsync(number)))
    monkeypatch.setattr(Path, "replace", lambda one, other: (order.append("rename"), replace(one, other)))
    write_bytes(tmp_path / "file", b"content")
    assert order == ["fsync", "rename"]


def test_a_long_name_of_many_bytes_can_be_written(tmp_path: Path) -> None:
    for name in ("n" * 250, "ü" * 120, "-dash", "new\nline"):
        write_bytes(tmp_path / name, b"content")
        assert (tmp_path / name).read_bytes() == b"content"


def test_sigkill_while_writing_leaves_the_previous_file_and_a_partial_that_is_swept(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"before")
    killed = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom pipeline.storage.atomic_files import write_atomic\n"
        "write_atomic(Path(sys.argv[1]), lambda file: (file.write(b'aft'), os.kill(os.getpid(), signal.SIGKILL)))"
    )
    done = subprocess.run([sys.executable, "-c", killed, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"before"
    orphans = [name for name in names(tmp_path) if name != "file"]
    assert len(orphans) == 1
    assert sweep_partials(tmp_path) == 0, "a partial that young may belong to a live writer"
    assert sweep_partials(tmp_path, age_s=-1) == 1
    assert names(tmp_path) == ["file"]


def test_only_old_partials_are_swept(tmp_path: Path) -> None:
    young, old, other = tmp_path / "d/.y.1.partial", tmp_path / "d/.o.2.partial", tmp_path / "d/kept.partial"
    for path in (young, old, other):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    for path in (old, other):
        os.utime(path, (0, time.time() - PARTIAL_AGE_S - 1))
    assert sweep_partials(tmp_path) == 1
    assert names(tmp_path) == ["d", "d/.y.1.partial", "d/kept.partial"]


def test_partial_that_vanishes_while_sweeping_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".a.1.partial").write_bytes(b"")
    rglob = Path.rglob

    def vanishing(folder: Path, pattern: str) -> list[Path]:
        found = list(rglob(folder, pattern))
        for path in found:
            path.unlink()
        return found

    monkeypatch.setattr(Path, "rglob", vanishing)
    assert sweep_partials(tmp_path, age_s=-1) == 0


# ---- disk trouble --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("step", ["fsync", "replace", "open", "mkdir"])
def test_disk_error_names_path_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, step: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os if step == "fsync" else Path, step, fail)
    with pytest.raises(DiskError, match=str(tmp_path / "file")) as caught:
        write_bytes(tmp_path / "file", b"content")
    assert caught.value.errno == number
    assert "GiB free" in str(caught.value)
    monkeypatch.undo()
    assert names(tmp_path) == []


def test_other_io_errors_are_not_changed(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nasty") as caught, disk_errors(tmp_path):
        raise OSError(errno.EIO, "nasty")
    assert not isinstance(caught.value, DiskError), "one EIO may pass and is tried again; a full disk does not"


def test_nested_disk_error_keeps_its_message(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="inner"), disk_errors(tmp_path / "outer"), disk_errors(tmp_path / "inner"):
        raise OSError(errno.ENOSPC, "full")


# ---- JSON ----------------------------------------------------------------------------------------------------------


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda s: st.lists(s) | st.dictionaries(st.text(), s),
        max_leaves=8,
    )
)
def test_digest_depends_on_content_not_on_the_order_of_keys(content: object) -> None:
    def backwards(value: object) -> object:
        if isinstance(value, dict):
            return {key: backwards(value[key]) for key in reversed(list(value))}
        return [backwards(item) for item in value] if isinstance(value, list) else value

    assert digest(content) == digest(backwards(content))
    assert digest(content) != digest([content])


def test_json_round_trips_any_text(tmp_path: Path) -> None:
    content = {"name": "ü\n<img src=x>\x1b[31m", "numbers": [1, 2.5, None, True]}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content
    assert (tmp_path / "a.json").read_bytes().isascii(), "escapes are inert on a terminal"


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1', b"\x00" * 40, b"\xff\xfe", b"{]"])
def test_json_that_was_cut_or_overwritten_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cut.json"
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=r"cut\.json"):
        read_json(path)


def test_json_nested_beyond_reason_is_named(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_bytes(b"[" * 200_000)
    with pytest.raises(DamagedError, match=r"deep\.json"):
        read_json(path)


def test_absent_json_is_an_ordinary_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "absent")


# ---- durability, removal, digests ----------------------------------------------------------------------------------


def test_every_folder_of_a_tree_and_its_parent_are_synced_deepest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "top/a/b").mkdir(parents=True)
    (tmp_path / "top/c").mkdir()
    synced: list[Path] = []
    monkeypatch.setattr(atomic_files, "fsync_dir", synced.append)
    fsync_tree(tmp_path / "top")
    assert set(synced) == {tmp_path, *(tmp_path / name for name in ("top", "top/a", "top/a/b", "top/c"))}
    assert synced.index(tmp_path / "top/a/b") < synced.index(tmp_path / "top/a") < synced.index(tmp_path / "top")


def test_fsync_of_an_absent_folder_is_fine_and_of_a_failing_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fsync_dir(tmp_path)
    assert fsync_dir(tmp_path / "absent")
    for number, harmless in [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)]:

        def fail(_: int, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", fail)
        if harmless:
            assert not fsync_dir(tmp_path), "and it is said"
        else:
            with pytest.raises(OSError, match="Input/output"):
                fsync_dir(tmp_path)


def test_fsync_dir_leaks_no_descriptor(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        fsync_dir(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_remove_takes_files_trees_links_and_nothing(tmp_path: Path) -> None:
    write_bytes(tmp_path / "keep/inner", b"")
    write_bytes(tmp_path / "tree/a/b", b"")
    write_bytes(tmp_path / "file", b"")
    (tmp_path / "link").symlink_to(tmp_path / "keep")
    for name in ("tree", "file", "link", "absent", "absent/deeper"):
        remove(tmp_path / name)
    assert names(tmp_path) == ["keep", "keep/inner"], "a link is removed, not what it points to"


@given(st.binary(max_size=200))
def test_sha256_of_a_file_is_that_of_its_bytes(content: bytes) -> None:
    import hashlib

    path = Path("/dev/shm") / f"overtile-sha-{os.getpid()}"
    path.write_bytes(content)
    try:
        assert sha256_file(path) == hashlib.sha256(content).hexdigest()
    finally:
        path.unlink()


def test_digest_is_stable() -> None:
    """It is stored in every array: another digest would recompute every slide."""
    assert digest({"b": [1, None], "a": "ü"}) == digest(json.loads('{"a": "\\u00fc", "b": [1, null]}'))
    assert digest({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
