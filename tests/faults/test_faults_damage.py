"""Damaged results: ``verify`` and repair.

``verify`` finds every damaged file, and the next run recomputes only those files. Damage in an unfinished result is
named, never read as zeros, and repaired by the run after.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.runs.verify import verify_slide
from pipeline.storage.atomic_files import remove
from pipeline.storage.slide_store import SlideStore
from tests.support.commands import Command, FileState, Ran, files_of, is_complete, result_digests
from tests.support.faults.trees import DAMAGES, SHARDS, Finished

METADATA = ("slide.ome.zarr/probability/0/zarr.json", "slide.ome.zarr/labels/zarr.json")
HIT = (*SHARDS.values(), *METADATA)
"""Files damaged in each slide: one of every stage, and metadata of an array and of a group."""

NAMED = "overview.png"
"""Contains the slide's name, and so differs between copies."""

# ---- finished results ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DAMAGES)
def test_fault_31_verify_names_every_file_that_is_damaged(finished: Finished, tmp_path: Path, kind: str) -> None:
    root = tmp_path / "slide"
    shutil.copytree(finished.result, root)
    store = SlideStore(root)
    names = [name for name in files_of(root) if not name.startswith(".work/")]
    assert len(names) > 30
    for name in names:
        content = (root / name).read_bytes()
        DAMAGES[kind](root / name)
        found = verify_slide(store)
        if (name, kind) == ("manifest.json", "deleted"):
            assert found is None, "without a manifest, a result is not complete"
        else:
            assert found is not None
            assert [damage.path for damage in found] == [name]
        (root / name).write_bytes(content)
    assert verify_slide(store) == []


@dataclass(frozen=True)
class Repair:
    """Copies of one finished result, each damaged in one way, with the output of ``verify`` and of the next run."""

    before: dict[str, dict[str, FileState]]
    manifest: dict[str, Any]
    verified: Ran
    noticed: list[str]
    ran: Ran
    after: Ran


@pytest.fixture(scope="module")
def repair(
    finished: Finished, overtile: Command, overtile_alone: Command, tmp_path_factory: pytest.TempPathFactory
) -> Repair:
    folder = tmp_path_factory.mktemp("repair")
    slides, out = finished.copies(folder, DAMAGES)
    before = {kind: files_of(out / kind) for kind in DAMAGES}
    for kind, damage in DAMAGES.items():
        for name in HIT:
            damage(out / kind / name)
    verified = overtile_alone.run("verify", out, out=out)
    noticed = [kind for kind in DAMAGES if (out / kind / ".work" / "damage.json").exists()]
    ran = overtile.segment(slides, out)
    after = overtile_alone.run("verify", out)
    manifest = json.loads((finished.result / "manifest.json").read_text())
    return Repair(before, manifest, verified, noticed, ran, after)


def test_fault_31_the_command_says_which_files_of_which_slide(repair: Repair) -> None:
    assert repair.verified.code == 3
    assert repair.verified.only_error.startswith("4 slides are damaged")
    sections = repair.verified.stdout.split("DAMAGED")[1:]
    assert len(sections) == len(DAMAGES)
    for part in sections:
        lines = [line.strip().partition(": ")[0] for line in part.splitlines()[1:]]
        assert sorted(lines) == sorted(HIT)
    assert repair.noticed == list(DAMAGES)


@pytest.mark.parametrize("kind", DAMAGES)
def test_fault_31_the_next_run_makes_just_those_files_again(repair: Repair, kind: str) -> None:
    assert repair.ran.code == 0, repair.ran.transcript
    root = repair.ran.out / kind
    files = json.loads((root / "manifest.json").read_text())["files"]
    assert files | {NAMED: 0} == repair.manifest["files"] | {NAMED: 0}
    now = files_of(root)
    before = {name: state for name, state in repair.before[kind].items() if not name.startswith(".work/")}
    written = {name for name, state in before.items() if now[name] != state}
    groups = {f"slide.ome.zarr{group}/zarr.json" for group in ("", "/probability", "/labels", "/labels/objects")}
    assert set(HIT) <= written
    assert written - set(HIT) <= groups | {"manifest.json"}, "metadata of groups is written again with the pyramid"
    promised = {name: state.sha256 for name, state in before.items() if name != "manifest.json"}
    assert result_digests(root) | {NAMED: ""} == promised | {NAMED: ""}
    assert repair.ran.computed(kind) == {"ingest": 1, "predict": 1, "label": 1, "pyramid": 1, "export": 3, "overlay": 1}


def test_fault_31_what_was_repaired_is_sound(repair: Repair) -> None:
    assert repair.after.code == 0, repair.after.transcript
    assert repair.after.stdout.count("sound") == len(DAMAGES)


# ---- unfinished results ----------------------------------------------------------------------------------------------


LEFT_BY = {
    "predict": ("slide.ome.zarr/probability",),
    "label": ("slide.ome.zarr/labels", ".work/label"),
    "measure": ("objects.parquet", ".work/measure"),
    "pyramid": ("slide.ome.zarr/1", "slide.ome.zarr/2", "slide.ome.zarr/zarr.json"),
    "export": ("objects.geojson.gz",),
    "overlay": ("overview.png",),
}
"""Outputs of each stage."""


def _stopped_after(root: Path, last: str, *, kept: str = "") -> None:
    """Leave the result as a run stopped after this stage would; ``kept`` is a prefix of files that existed already."""
    (root / "manifest.json").unlink()
    stages = list(LEFT_BY)
    for stage in stages[stages.index(last) + 1 if last in stages else 0 :]:
        (root / ".work" / f"{stage}.stamp").unlink()
        for name in LEFT_BY[stage]:
            if name != kept:
                remove(root / name)


def _shard_missing(root: Path) -> Path:
    _stopped_after(root, "predict")
    return _damaged(root / SHARDS["predict"], None)


def _shard_missing_at_the_end(root: Path) -> Path:
    _stopped_after(root, "export")
    return _damaged(root / SHARDS["predict"], None)


def _shard_flipped(root: Path) -> Path:
    _stopped_after(root, "predict")
    path = root / SHARDS["predict"]
    data = bytearray(path.read_bytes())
    data[40] ^= 16  # within compressed pixels, so that the checksum does not match
    return _damaged(path, bytes(data))


def _metadata_empty(root: Path) -> Path:
    _stopped_after(root, "tissue")
    return _damaged(root / "slide.ome.zarr/0/zarr.json", b"")


def _metadata_cut(root: Path) -> Path:
    _stopped_after(root, "predict")
    path = root / "slide.ome.zarr/probability/0/zarr.json"
    return _damaged(path, path.read_bytes()[:200])


def _metadata_a_list(root: Path) -> Path:
    _stopped_after(root, "label")
    return _damaged(root / "slide.ome.zarr/labels/objects/0/zarr.json", b"[]")


def _stamp_zeroed(root: Path) -> Path:
    _stopped_after(root, "predict")
    path = root / ".work" / "predict.stamp"
    return _damaged(path, bytes(path.stat().st_size))


def _result_cut(root: Path) -> Path:
    _stopped_after(root, "predict", kept=".work/label")
    (path,) = (root / ".work" / "label" / "pieces").glob("0.1.*.npz")
    return _damaged(path, path.read_bytes()[:100])


def _damaged(path: Path, content: bytes | None) -> Path:
    path.unlink() if content is None else path.write_bytes(content)
    return path


UNFINISHED = {
    "shard_missing": (_shard_missing, "label", (0, 1, 3)),
    "shard_missing_at_the_end": (_shard_missing_at_the_end, "manifest", (0, 1, 0)),
    "shard_flipped": (_shard_flipped, "label", (0, 1, 3)),
    "metadata_empty": (_metadata_empty, "predict", (3, 3, 3)),
    "metadata_cut": (_metadata_cut, "label", (0, 3, 3)),
    "metadata_a_list": (_metadata_a_list, "measure", (0, 0, 3)),
    "stamp_zeroed": (_stamp_zeroed, "predict", (0, 0, 3)),
    "result_cut": (_result_cut, "label", (0, 0, 3)),
}
"""Function that damages, stage that detects it, and shards of ingest, predict and label that the next run makes."""


@dataclass(frozen=True)
class DamagedRun:
    """The run that read the damaged files, the result it left, and the next run."""

    damaged: dict[str, Path]
    first: Ran
    left: dict[str, bool]
    states: dict[str, str]
    second: Ran


@pytest.fixture(scope="module")
def found(finished: Finished, overtile: Command, tmp_path_factory: pytest.TempPathFactory) -> DamagedRun:
    folder = tmp_path_factory.mktemp("unfinished")
    slides, out = finished.copies(folder, [*UNFINISHED, "neighbour"])
    (out / "neighbour" / "manifest.json").unlink()
    torn = out / "neighbour" / ".work" / "history.jsonl"
    torn.write_bytes(torn.read_bytes()[:-40])
    damaged = {name: damage(out / name) for name, (damage, _, _) in UNFINISHED.items()}
    orphan = out / "neighbour" / "slide.ome.zarr/0/c/0/0/.2.0123456789abcdef.partial"
    orphan.write_bytes(b"half a shard")
    os.utime(orphan, (time.time() - 3600,) * 2)
    first = overtile.segment(slides, out)
    left = {name: is_complete(out / name) for name in (*UNFINISHED, "neighbour")}
    states = first.states()
    return DamagedRun(damaged, first, left, states, overtile.segment(slides, out))


@pytest.mark.parametrize("name", UNFINISHED)
def test_fault_32_33_damage_in_unfinished_results_is_named_not_read_as_zeros(found: DamagedRun, name: str) -> None:
    assert found.first.code == 3, found.first.transcript
    line = found.first.error_of(name)
    assert line.startswith(f"{name}: failed at {UNFINISHED[name][1]}: "), line
    assert str(found.damaged[name]) in line
    assert not found.left[name]
    assert found.states[name] == "failed"


@pytest.mark.parametrize("name", UNFINISHED)
def test_fault_32_33_next_run_recomputes_damaged_shards_only(found: DamagedRun, finished: Finished, name: str) -> None:
    assert found.second.code == 0, found.second.transcript
    assert result_digests(found.second.out / name) | {NAMED: ""} == result_digests(finished.result) | {NAMED: ""}
    computed = found.second.outcome(name)["computed"]
    assert tuple(computed[stage] for stage in ("ingest", "predict", "label")) == UNFINISHED[name][2]


def test_fault_21_orphans_are_removed_on_resume_and_never_served(found: DamagedRun) -> None:
    assert found.left["neighbour"]
    assert found.first.computed("neighbour") == {} or found.states["neighbour"] == "complete"
    assert not list((found.first.out / "neighbour").rglob("*.partial"))
    manifest = json.loads((found.first.out / "neighbour" / "manifest.json").read_text())
    assert not [name for name in manifest["files"] if "partial" in name]


def test_fault_31_a_torn_line_of_history_costs_that_line_and_no_more(found: DamagedRun) -> None:
    lines = (found.first.out / "neighbour" / ".work" / "history.jsonl").read_text().splitlines()
    torn = [line for line in lines if not line.endswith("}")]
    assert len(torn) == 1
    assert len([json.loads(line) for line in lines if line not in torn]) == 15, "7 valid lines, then 8 stages"


def test_what_lies_in_work_is_not_needed_once_complete(
    finished: Finished, overtile_alone: Command, tmp_path: Path
) -> None:
    slides, out = finished.copies(tmp_path, ["removed", "zeroed"])
    shutil.rmtree(out / "removed" / ".work")
    for path in (out / "zeroed" / ".work").rglob("*"):
        if path.is_file():
            DAMAGES["zeroed"](path)
    ran = overtile_alone.segment(slides, out)
    assert ran.code == 0, ran.transcript
    assert set(ran.states().values()) == {"complete before"}
