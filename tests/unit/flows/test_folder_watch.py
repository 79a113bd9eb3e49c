"""Detection of new slides: reported once when they have settled, and again only when they change."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from flows.batch.batch import BatchRequest
from flows.folder_watch import LOOK_S, FolderWatch
from pipeline.config import load_config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "slides").mkdir()
    return tmp_path / "slides"


def watched(folder: Path, *settings: str) -> FolderWatch:
    config = load_config(None, ["input.settle_s=60", *settings])
    return FolderWatch(BatchRequest(inputs=(folder,), out=folder.parent / "out", config=config))


def put(folder: Path, name: str, data: bytes = b"x", age_s: float = 1000) -> Path:
    (folder / name).write_bytes(data)
    os.utime(folder / name, (time.time() - age_s, time.time() - age_s))
    return folder / name


def seen(arrivals: FolderWatch) -> list[str]:
    """Names of new slides, which are marked as taken."""
    found = arrivals.look()
    arrivals.taken |= found
    return sorted(path.name for path in found)


def test_new_slide_is_reported_once_after_it_has_settled(folder: Path) -> None:
    arrivals = watched(folder)
    assert seen(arrivals) == [], "an empty folder is no error"
    old, young = put(folder, "old.tif"), put(folder, "young.tif", age_s=5)
    put(folder, "notes.txt")
    assert seen(arrivals) == ["old.tif"]
    assert seen(arrivals) == []
    put(folder, young.name, age_s=61)
    assert seen(arrivals) == ["young.tif"]
    put(folder, old.name, b"other")
    assert seen(arrivals) == ["old.tif"]
    old.unlink()
    assert seen(arrivals) == []
    assert arrivals.pause_s == LOOK_S


def test_slide_that_was_not_taken_is_reported_again(folder: Path) -> None:
    arrivals = watched(folder)
    put(folder, "a.tif")
    assert [*arrivals.look()] == [*arrivals.look()] == [folder / "a.tif"]


def test_changed_cases_table_is_reported(folder: Path) -> None:
    table = put(folder.parent, "cases.csv", b"slide\na.tif\n")
    arrivals = watched(folder, f"input.cases={table}")
    put(folder, "a.tif")
    assert seen(arrivals) == ["a.tif", "cases.csv"]
    put(folder.parent, "cases.csv", b"slide,priority\na.tif,1\n")
    assert seen(arrivals) == ["cases.csv"]


def test_file_that_grows_without_a_new_mtime_is_reported_again(folder: Path) -> None:
    arrivals = watched(folder)
    before = put(folder, "a.tif").stat()
    assert seen(arrivals) == ["a.tif"]
    (folder / "a.tif").write_bytes(b"xx")
    os.utime(folder / "a.tif", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert seen(arrivals) == ["a.tif"]
