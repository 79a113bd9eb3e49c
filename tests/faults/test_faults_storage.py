"""Disks that fail, refuse or hang.

System calls fail below Python, in the command's own process.
"""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.commands import Command, Ran, files_of, is_complete, result_digests
from tests.support.faults.pictures import draw, red_and_blue, write
from tests.support.faults.preload import Preload, Rule, times
from tests.support.faults.trees import Finished

TRIES = 3
"""Number of attempts before giving up."""

# ---- reading fails ---------------------------------------------------------------------------------------------------

ONCE = {
    "slide_once": Rule("read", "/slide_once.tif", errno.EIO, 1, 1),
    "shard_once": Rule("read", "/shard_once/slide.ome.zarr/0/c/", errno.EIO, 1, 1),
    "result_once": Rule("read", "/result_once/.work/label/pieces/", errno.EIO, 2, 2),
    "digest_once": Rule("read", "/digest_once/slide.ome.zarr/probability/0/c/0/0/0", errno.EIO, 8, 8),
}
ALWAYS = {
    "slide_always": Rule("read", "/slide_always.tif", errno.EIO),
    "shard_always": Rule("read", "/shard_always/slide.ome.zarr/0/c/0/0/1", errno.EIO),
}


@dataclass(frozen=True)
class Reading:
    """A run with read errors, how often each fault occurred, and the next run without faults."""

    ran: Ran
    met: dict[str, int]
    complete: dict[str, bool]
    states: dict[str, str]
    after: Ran


@pytest.fixture(scope="module")
def reading(overtile: Command, preload: Preload, tmp_path_factory: pytest.TempPathFactory) -> Reading:
    folder = tmp_path_factory.mktemp("reading")
    rules = ONCE | ALWAYS
    for name in (*rules, "neighbour"):
        write(folder / "slides" / f"{name}.tif", draw((200, 1100), red_and_blue((200, 1100))))
    command, counters = preload.under(overtile, *rules.values())
    ran = command.segment(folder / "slides", folder / "out")
    met = dict(zip(rules, map(times, counters), strict=True))
    complete = {name: is_complete(folder / "out" / name) for name in (*rules, "neighbour")}
    return Reading(ran, met, complete, ran.states(), overtile.segment(folder / "slides", folder / "out"))


@pytest.mark.parametrize("name", ONCE)
def test_fault_28_transient_read_error_is_retried(reading: Reading, name: str) -> None:
    assert reading.met[name] >= ONCE[name].first, "the fault did not occur"
    assert reading.states[name] == "complete", reading.ran.transcript
    assert reading.complete[name]
    assert result_digests(reading.ran.out / name) | {"overview.png": ""} == result_digests(
        reading.ran.out / "neighbour"
    ) | {"overview.png": ""}


@pytest.mark.parametrize(("name", "stage"), [("slide_always", "plan"), ("shard_always", "tissue")])
def test_fault_28_permanent_read_error_fails_only_its_slide(reading: Reading, name: str, stage: str) -> None:
    assert reading.ran.code == 3, reading.ran.transcript
    assert len(reading.ran.errors) == len(ALWAYS)
    line = reading.ran.error_of(name)
    assert line.startswith(f"{name}: failed at {stage}: "), line
    assert "Input/output error" in line
    assert reading.met[name] == TRIES, "retried a limited number of times"
    assert not reading.complete[name]
    assert reading.complete["neighbour"]


def test_fault_28_read_error_names_file_and_position(reading: Reading) -> None:
    assert "slide_always.tif" in reading.ran.error_of("slide_always")
    assert "row 0, col 1" in reading.ran.error_of("shard_always")


def test_fault_28_the_run_after_computes_only_what_is_missing(reading: Reading) -> None:
    assert reading.after.code == 0, reading.after.transcript
    assert reading.after.states()["shard_always"] == "complete"
    computed = reading.after.computed("shard_always")
    assert "ingest" not in computed, "all of its blocks existed"
    assert computed["tissue"] == 2, "one of three blocks existed"
    assert all(reading.after.computed(name) == {} for name in (*ONCE, "neighbour"))


# ---- writing is refused ----------------------------------------------------------------------------------------------


def _refused(ran: Ran, out: Path) -> None:
    assert ran.code == 74, ran.transcript
    assert f"the output folder {out}" in ran.only_error
    assert "Choose another --out" in ran.only_error
    assert "network calls" not in ran.stdout


@pytest.mark.parametrize("call", ["mkdir", "create"])
def test_fault_29_a_read_only_output_is_refused_before_anything_is_computed(
    finished: Finished, overtile_alone: Command, preload: Preload, tmp_path: Path, call: str
) -> None:
    out = tmp_path / "read-only"
    if call == "create":
        out.mkdir()
    command, (counter,) = preload.under(overtile_alone, Rule(call, "/read-only", errno.EROFS))
    ran = command.segment(finished.slide, out)
    _refused(ran, out)
    assert "Read-only file system" in ran.only_error
    assert times(counter) == 1
    assert not out.exists() or not list(out.iterdir())


def test_fault_29_a_real_read_only_file_system(finished: Finished, overtile_alone: Command, tmp_path: Path) -> None:
    out = tmp_path / "mounted"
    out.mkdir()
    mount = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    script = 'mount -t tmpfs -o ro none "$0" && exec "$@"'
    if not shutil.which("unshare") or subprocess.run([*mount, script, out, "true"], check=False).returncode:
        pytest.skip("mount namespaces are not available; the preloaded fault above covers this")
    mounted = Command(overtile_alone.environment, overtile_alone.folder, (*mount, script, str(out)))
    ran = mounted.segment(finished.slide, out)
    _refused(ran, out)
    assert "Read-only file system" in ran.only_error


def test_fault_29_a_file_where_the_output_folder_should_be(
    finished: Finished, overtile_alone: Command, tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("somebody else's")
    _refused(overtile_alone.segment(finished.slide, tmp_path / "out"), tmp_path / "out")
    assert (tmp_path / "out").read_text() == "somebody else's"


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.ENOSYS], ids=errno.errorcode.get)
def test_fault_34_a_file_system_without_rename_is_refused_at_the_start(
    finished: Finished, overtile_alone: Command, preload: Preload, tmp_path: Path, number: int
) -> None:
    out = tmp_path / "no-rename"
    command, (counter,) = preload.under(overtile_alone, Rule("rename", "/no-rename/", number))
    ran = command.segment(finished.slide, out)
    _refused(ran, out)
    assert "renamed" in ran.only_error
    assert times(counter) == 1
    assert not list(out.iterdir()), "the attempt leaves no file"


# ---- killed ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Forced:
    """A complete result recomputed by force: its state after each of two kills, and the run that completed it."""

    kills: tuple[Ran, Ran]
    before: dict[str, str]
    untouched: dict[str, str]
    untouched_complete: bool
    half: Ran
    partials: int
    ended: Ran


@pytest.fixture(scope="module")
def forced(
    finished: Finished,
    overtile: Command,
    overtile_alone: Command,
    preload: Preload,
    tmp_path_factory: pytest.TempPathFactory,
) -> Forced:
    slides, out = finished.copies(tmp_path_factory.mktemp("forced"), ["slide"])
    root = out / "slide"
    arguments = (slides, out, "tissue=null", "--force", "slide")
    early, _ = preload.under(overtile, Rule("unlink", "/slide/manifest.json", "kill"))
    first = early.segment(*arguments)
    untouched, untouched_complete = result_digests(root), is_complete(root)
    late, _ = preload.under(overtile, Rule("rename", "/probability/0/c/0/0/", "kill", 2))
    second = late.segment(*arguments)
    half = overtile_alone.run("inspect", out, "--json")
    partials = len(list(root.rglob("*.partial")))
    ended = overtile.segment(*arguments)
    return Forced(
        (first, second), result_digests(finished.result), untouched, untouched_complete, half, partials, ended
    )


@pytest.mark.long
def test_fault_22_kill_before_removing_the_manifest_keeps_the_result(forced: Forced) -> None:
    assert [ran.code for ran in forced.kills] == [-9, -9], "the faults occurred"
    assert forced.untouched_complete
    assert forced.untouched == forced.before


@pytest.mark.long
def test_fault_22_kill_after_removing_the_manifest_is_incomplete(forced: Forced) -> None:
    (record,) = json.loads(forced.half.stdout)
    assert forced.half.code == 3
    assert record["state"] == "incomplete"


@pytest.mark.long
def test_fault_22_the_same_command_ends_it_and_repeats_no_block(forced: Forced, overtile_alone: Command) -> None:
    assert forced.ended.code == 0, forced.ended.transcript
    assert forced.ended.computed("slide")["predict"] == 2, "the first of three blocks was finished before the kill"
    assert "ingest" not in forced.ended.computed("slide"), "its plan did not change"
    after = result_digests(forced.ended.out / "slide")
    pixels = [name for name in after if "/c/" in name]
    assert len(pixels) > 15
    assert {name: after[name] for name in pixels} == {name: forced.before[name] for name in pixels}, (
        "the slide is all tissue: disabling tissue detection changes plans, not pixels"
    )
    assert overtile_alone.run("verify", forced.ended.out).code == 0


@pytest.mark.long
def test_fault_21_what_a_killed_writer_left_is_never_served_and_removed(forced: Forced) -> None:
    assert forced.partials == 1
    assert not list(forced.ended.out.rglob("*.partial"))
    assert not [name for name in files_of(forced.ended.out / "slide") if "/new/" in name or "/old/" in name]


# ---- hanging ---------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.timeout(900)
def test_fault_36_hanging_reads_time_out_with_the_slides_name(
    finished: Finished, overtile: Command, preload: Preload, tmp_path: Path
) -> None:
    """One slide hangs when opened, one when its blocks are read; the command and its workers end."""
    slides, out = tmp_path / "slides", tmp_path / "out"
    slides.mkdir()
    for name in ("never_opens", "never_reads", "neighbour"):
        shutil.copy2(finished.slide, slides / f"{name}.tif")
    rules = Rule("read", "/never_opens.tif", "hang"), Rule("worker read", "/never_reads.tif", "hang")
    command, _ = preload.under(overtile, *rules)
    ran = command.segment(slides, out, "cluster.kind=local", "cluster.workers=2", "input.patience_s=20")
    assert ran.code == 3, ran.transcript
    assert ran.states() == {"neighbour": "complete", "never_opens": "failed", "never_reads": "failed"}
    for name, stage in (("never_opens", "plan"), ("never_reads", "ingest")):
        line = ran.error_of(name)
        assert line.startswith(f"{name}: failed at {stage}: "), line
        assert f"{name}.tif: expected to be read within 20 s" in line
        assert not is_complete(out / name)
    again = overtile.segment(slides, out)
    assert again.code == 0, again.transcript
    assert again.computed("neighbour") == {}
