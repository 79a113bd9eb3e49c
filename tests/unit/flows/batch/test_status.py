"""States of slides from the files in OUT: folders precede the history, and every cause has a command as remedy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.batch.history import BatchHistory, note
from flows.batch.status import Status
from pipeline.errors import ConfigError
from pipeline.storage.atomic_files import digest, write_json
from pipeline.storage.lock import STALE_S, slide_lock
from pipeline.storage.slide_store import ArraySpec, SlideStore
from tests.support.commands import Command

TYPED = ["/usr/bin/overtile", "segment", "my slides", "--out", "out"]
AS_TYPED = "overtile segment 'my slides' --out out"
PLAN = "f" * 64


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "slides").mkdir()
    return tmp_path / "out"


def complete(out: Path, key: str) -> None:
    """The files of a complete slide that its state depends on."""
    plan = {
        "key": key,
        "hashes": {"predict": PLAN},
        "model": {"name": "m", "sha256": "0"},
        "image": {"mpp": 0.5, "warnings": [], "level0_from_image_yx": [1, 1]},
    }
    stages = {"tissue": {"facts": {"tissue_px": 100}, "runs": []}}
    content = {"plan": plan, "stages": stages, "finished": "now"}
    write_json(out / key / "manifest.json", content | {"sha256": digest(content)})


def begun(out: Path, key: str, shards: int) -> SlideStore:
    """A slide of 2 x 3 blocks, so many of which are predicted."""
    store = SlideStore(out / key)
    config = {"tiles": {"block": 512}, "outputs": {"scratch": None}}
    plan = {"image": {"shape_yx": [700, 1200]}, "config": config, "hashes": {"predict": PLAN}}
    write_json(store.work / "plan.json", plan)
    if shards:
        store.create(ArraySpec("probability/0", (1, 700, 1200), "uint8", 512, PLAN))
    for number in range(shards):
        shard = store.zarr / "probability" / "0" / "c" / "0" / str(number // 3) / str(number % 3)
        shard.parent.mkdir(parents=True, exist_ok=True)
        shard.write_bytes(b"x")
    return store


def run(out: Path, name: str, *, exit_code: int | None = 3, **states: str) -> None:
    """A run that left slides in these states; None for a killed run."""
    out.mkdir(exist_ok=True)
    note(out, "began", {"run": name, "force": [], "command": TYPED, "who": "anna", "host": "lab", "pid": 1})
    if exit_code is None:
        return
    for key in states:
        (out.parent / "slides" / f"{key}.tif").touch()
    told = {
        key: {
            "state": state,
            "stage": "ingest",
            "cause": f"why {key} is {state}",
            "slide": str(out.parent / "slides" / f"{key}.tif"),
            "attempt": "a",
        }
        for key, state in states.items()
    }
    note(out, "ended", {"run": name, "exit_code": exit_code, "not_complete": told, "recovered": []})


def found(out: Path) -> dict[str, Any]:
    return {slide.key: slide for slide in Status.of(out).slides}


def test_states_are_those_of_the_summary(out: Path) -> None:
    complete(out, "done")
    begun(out, "half", 4)
    begun(out, "planned", 0)
    begun(out, "broke", 2)
    states = {"half": "resumable", "broke": "failed", "nowhere": "failed", "young": "deferred"}
    run(out, "a", **states)
    slides = found(out)
    assert {key: slide.state for key, slide in slides.items()} == {**states, "done": "complete", "planned": "resumable"}
    progress = {key: (slide.blocks_done, slide.blocks) for key, slide in slides.items()}
    assert progress["half"] == (4, 6)
    assert progress["planned"] == (0, 6)
    assert progress["broke"] == (2, 6)
    assert progress["done"] == progress["nowhere"] == (None, None)
    assert {slides[key].cure for key in states} == {AS_TYPED}
    assert slides["broke"].cause == "why broke is failed"
    assert Status.of(out).totals == {"complete": 1, "failed": 2, "deferred": 1, "resumable": 2}


def test_only_a_live_lock_means_in_progress(out: Path) -> None:
    """Reading the status takes no lock, so a run can start meanwhile."""
    store = begun(out, "slide", 3)
    with slide_lock(store.work):
        (slide,) = Status.of(out).slides
        assert (slide.state, slide.blocks_done, slide.blocks) == ("in progress", 3, 6)
        assert f"by process {os.getpid()}" in slide.cause
        kept = (store.work / "lock").read_bytes()
    assert found(out)["slide"].state == "resumable"
    process = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    dead = {**json.loads(kept), "pid": int(process.stdout)}
    (store.work / "lock").write_text(json.dumps(dead))
    assert found(out)["slide"].state == "resumable", "killed: its process is no more"
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        (store.work / "lock").write_text(json.dumps({**dead, "pid": ended.pid}))
        assert found(out)["slide"].state == "resumable", "killed without a recorded end"
    elsewhere = {**dead, "host": "another.host"}
    (store.work / "lock").write_text(json.dumps(elsewhere))
    assert found(out)["slide"].state == "in progress"
    old = (store.work / "lock").stat().st_mtime - STALE_S - 60
    os.utime(store.work / "lock", (old, old))
    assert found(out)["slide"].state == "resumable"


def test_folders_take_precedence_over_the_history(out: Path) -> None:
    run(out, "a", slide="failed")
    assert found(out)["slide"].state == "failed"
    complete(out, "slide")
    assert found(out)["slide"].state == "complete"
    (out / "slide" / "manifest.json").write_text("{}")
    assert found(out)["slide"].state == "damaged"


def test_kept_result_is_shown_with_the_command_that_replaces_it(out: Path) -> None:
    complete(out, "slide")
    run(out, "a", slide="kept")
    slide = found(out)["slide"]
    assert (slide.state, slide.cure) == ("kept", f"{AS_TYPED} --force slide")
    run(out, "b", exit_code=0)
    assert found(out)["slide"].state == "complete", "the last run asked for what lies there"


def test_quarantine_is_shown_with_the_command_that_ends_it(out: Path) -> None:
    for name in "abc":
        run(out, name, slide="failed")
    slide = found(out)["slide"]
    assert (slide.state, slide.cure) == ("quarantined", f"overtile retry {out} slide")
    run(out, "d", slide="quarantined")
    assert found(out)["slide"].state == "quarantined"
    note(out, "retry", {"keys": ["slide"]})
    slide = found(out)["slide"]
    assert (slide.state, slide.cure) == ("waiting", AS_TYPED)


def test_fault_24_missing_slide_is_named(out: Path) -> None:
    begun(out, "begun", 1)
    run(out, "a", begun="failed", never="deferred")
    shutil.rmtree(out.parent / "slides")
    assert {key: slide.state for key, slide in found(out).items()} == {"begun": "vanished", "never": "vanished"}
    assert "begun.tif does not exist any more" in found(out)["begun"].cause
    run(out, "b", exit_code=0)
    assert set(found(out)) == {"begun"}, "a slide without trace is not listed for ever"


def test_killed_run_is_shown_without_an_end(out: Path) -> None:
    begun(out, "slide", 1)
    run(out, "a", exit_code=None)
    status = Status.of(out)
    assert [one.exit_code for one in status.runs] == [None]
    assert (status.slides[0].state, status.slides[0].cure) == ("resumable", AS_TYPED)


@pytest.mark.parametrize(
    ("names", "states", "code"), [("ab", {}, 0), ("a", {"b": "failed"}, 3), ("", {"a": "failed"}, 4)]
)
def test_exit_code_equals_that_of_segment(out: Path, names: str, states: dict[str, str], code: int) -> None:
    for name in names:
        complete(out, name)
    run(out, "a", **states)
    assert Status.of(out).exit_code() == code


def test_folder_without_results_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no results"):
        Status.of(tmp_path)


# ---- the commands ----------------------------------------------------------------------------------------------------


def test_command_prints_causes_remedies_and_runs_and_writes_nothing(out: Path, overtile_alone: Command) -> None:
    complete(out, "done")
    for name in "abc":
        run(out, name, **{"x\x1b[31m": "failed", "ok": "deferred"})
    before = sorted((path, path.stat().st_mtime_ns) for path in out.rglob("*"))
    shown = overtile_alone.run("status", out)
    assert shown.code == 3, shown.transcript
    assert "1 of 3 slides complete, 1 deferred, 1 quarantined" in shown.stdout
    assert "overtile retry" in shown.stdout
    assert "\x1b" not in shown.stdout
    assert shown.stdout.count(AS_TYPED) == 4, "as the cure of one, and of each run"
    assert "anna@lab  exit 3" in shown.stdout
    told = json.loads(overtile_alone.run("status", out, "--failed", "--json").stdout)
    assert [slide["state"] for slide in told["slides"]] == ["quarantined"]
    assert told["totals"] == {"complete": 1, "deferred": 1, "quarantined": 1}
    assert [line["exit_code"] for line in (one["ended"] for one in told["runs"])] == [3, 3, 3]
    assert sorted((path, path.stat().st_mtime_ns) for path in out.rglob("*")) == before


def test_retry_appends_to_the_history_and_rejects_slides_that_never_failed(out: Path, overtile_alone: Command) -> None:
    for name in "abc":
        run(out, name, slide="failed")
    refused = overtile_alone.run("retry", out, "slid")
    assert refused.code == 2, refused.transcript
    assert "slid: expected the key of a slide that failed in " in refused.only_error
    assert ", found slide" in refused.only_error
    done = overtile_alone.run("retry", out, "slide")
    assert done.code == 0, done.transcript
    last = BatchHistory.read(out).lines[-1]
    assert (last["event"], last["keys"]) == ("retry", ["slide"])
    assert Path(last["command"][0]).name == "overtile"
    assert BatchHistory.read(out).failures() == {}
