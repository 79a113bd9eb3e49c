"""Damaged and unsupported slides.

They are refused by name, with position and cause, and do not affect other slides. All damaged slides are in one folder
with sound ones of every supported kind; one command is run on it.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.support.commands import CLASSES, Command, Ran, history, installed_command, is_complete
from tests.support.make_damaged_slides import damaged_slides
from tests.support.make_slides import Recipe, noise_image, stained_image, write_tiff

SOUND: dict[str, Callable[[Path], object]] = {
    "sound": lambda path: write_tiff(path, stained_image(200, 300)),
    "sound_rgb_16_bit": lambda path: write_tiff(path, stained_image(200, 300, np.uint16)),
    "sound_grey": lambda path: write_tiff(path, noise_image(200, 300)),
    "sound_grey_16_bit": lambda path: write_tiff(path, noise_image(200, 300, dtype=np.uint16)),
    "sound_grey_alpha": lambda path: write_tiff(path, noise_image(200, 300, 2), Recipe(extrasamples=(2,))),
    "sound_rgba": lambda path: write_tiff(path, noise_image(200, 300, 4), Recipe(extrasamples=(2,))),
    "sound_planar": lambda path: write_tiff(path, stained_image(200, 300), Recipe(planar=True)),
    "sound_constant": lambda path: write_tiff(path, np.full((200, 300, 3), 128, np.uint8)),
    "sound_background": lambda path: write_tiff(path, np.full((500, 500, 3), 245, np.uint8)),
    "sound_levels_misordered": lambda path: _misordered(path),
}
ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "mpp_missing": (lambda path: write_tiff(path, stained_image(200, 300), Recipe(mpp=None)), "--mpp"),
    "mpp_absurd": (lambda path: write_tiff(path, stained_image(200, 300), Recipe(mpp=50.0)), "--mpp"),
    "five_samples": (lambda path: _five_samples(path), "5 samples"),
}


def _five_samples(path: Path) -> None:
    tifffile.imwrite(path, noise_image(200, 300, 5), photometric="rgb", extrasamples=(0, 0), tile=(64, 64))


def _misordered(path: Path) -> None:
    """A reduced level before the full one."""
    image = stained_image(800, 1200)
    with tifffile.TiffWriter(path) as writer:
        for factor in (4, 1, 2):
            scale = {"resolution": (2e4 / factor, 2e4 / factor), "resolutionunit": "CENTIMETER"}
            writer.write(image[::factor, ::factor].copy(), tile=(64, 64), photometric="rgb", metadata=None, **scale)


@dataclass(frozen=True)
class Batch:
    """Slides by name with the phrase that their error must contain, and the command run on them."""

    slides: Path
    phrases: dict[str, str]
    ran: Ran

    def assert_refused(self, *names: str) -> None:
        """Assert that each slide has one error line and no result that looks complete."""
        with (self.ran.out / "failures.csv").open(newline="") as file:
            failures = {row["slide"]: row for row in csv.DictReader(file)}
        for name in names:
            line = self.ran.error_of(name)
            assert line.startswith((f"{name}: failed at plan: ", f"{name}: failed at ingest: ")), line
            assert self.phrases[name] in line, line
            assert f"{name}.tif" in line, line
            assert not is_complete(self.ran.out / name)
            assert failures[name]["state"] == "failed"
            assert self.phrases[name] in failures[name]["cause"]


@pytest.fixture(scope="module")
def bad(overtile: Command, tmp_path_factory: pytest.TempPathFactory) -> Batch:
    folder = tmp_path_factory.mktemp("bad")
    slides = folder / "slides"
    phrases = {name: phrase for name, (_, phrase) in damaged_slides(slides).items()}
    for name, (make, phrase) in ODD.items():
        make(slides / f"{name}.tif")
        phrases[name] = phrase
    for name, make in SOUND.items():
        make(slides / f"{name}.tif")
    return Batch(slides, phrases, overtile.segment(slides, folder / "out"))


def test_every_bad_slide_is_named_and_every_sound_one_complete(bad: Batch) -> None:
    assert bad.ran.code == 3, bad.ran.transcript
    states = {name: "failed" for name in bad.phrases} | {name: "complete" for name in SOUND}
    assert bad.ran.states() == states, bad.ran.transcript
    assert "Traceback" not in bad.ran.transcript
    assert len(bad.ran.errors) == len(bad.phrases) == bad.ran.stderr.count("\n"), "exactly one line per slide"
    bad.assert_refused(*bad.phrases)
    for name in SOUND:
        assert is_complete(bad.ran.out / name)
    summary = (bad.ran.out / "summary.md").read_text()
    assert f"{len(SOUND)} of {len(states)} slides complete**" in summary


def test_what_a_bad_slide_left_is_called_incomplete(bad: Batch, overtile_alone: Command) -> None:
    ran = overtile_alone.run("inspect", bad.ran.out, "--json")
    found = {Path(record["path"]).name: record["state"] for record in json.loads(ran.stdout)}
    assert ran.code == 3
    assert {name for name, state in found.items() if state == "complete"} == set(SOUND)
    assert found["jpeg_scan_damaged"] == "incomplete"
    assert overtile_alone.run("verify", bad.ran.out).code == 0, "complete results pass verify"


def test_fault_20_a_slide_that_is_all_background_is_complete_without_a_network_call(bad: Batch) -> None:
    (line,) = (line for line in history(bad.ran.out / "sound_background") if line["stage"] == "predict")
    assert (line["counts"]["network_calls"], line["computed"]) == (0, 1)


def test_fault_36_a_fifo_is_not_waited_for(bad: Batch) -> None:
    bad.assert_refused("fifo")


def test_fault_38_empty_and_tiny_files(bad: Batch) -> None:
    bad.assert_refused("empty", "six_bytes")


def test_fault_39_other_files_with_a_slide_s_name(bad: Batch) -> None:
    bad.assert_refused("html", "gzipped", "zipped", "pdf")


def test_fault_40_paths_that_are_not_files(bad: Batch) -> None:
    bad.assert_refused("folder", "dangling_link", "link_loop", "device")


def test_fault_41_cut_files(bad: Batch) -> None:
    bad.assert_refused("cut_in_last_tile", "cut_in_directory", "directory_past_end")


def test_fault_42_jpeg_tiles_with_a_damaged_scan(bad: Batch) -> None:
    bad.assert_refused("jpeg_scan_damaged", "jpeg_of_another_size")


def test_fault_43_random_bytes_and_damaged_tails(bad: Batch) -> None:
    bad.assert_refused("random_tile", "deflate_tail_damaged", "lzw_damaged", "jpeg2000_cut")


def test_fault_44_missing_tile_bytes_or_tables_are_not_read_as_black(bad: Batch) -> None:
    bad.assert_refused("count_zero", "table_missing", "table_short")


def test_fault_45_offsets_past_the_end_and_overlapping(bad: Batch) -> None:
    bad.assert_refused("offset_past_end", "tiles_overlap")


def test_fault_46_sides_of_zero_and_of_2_31_pixels(bad: Batch) -> None:
    bad.assert_refused("width_zero", "height_zero", "tile_zero", "huge")


def test_fault_47_a_tile_too_wide_to_hold(bad: Batch) -> None:
    bad.assert_refused("tile_width_huge")


def test_fault_48_kinds_of_pixels_are_supported_or_named(bad: Batch) -> None:
    bad.assert_refused("bits_missing", "bits_12", "bits_32", "floating_point", "signed", "seven_samples")
    bad.assert_refused("five_samples", "palette", "cmyk")


def test_fault_49_unknown_compression_and_endless_directories(bad: Batch) -> None:
    bad.assert_refused("unknown_compression", "directory_loop", "directories_100000")


def test_fault_50_bombs(bad: Batch) -> None:
    bad.assert_refused("bomb_tile", "xml_bomb")


def test_fault_53_resolutions_missing_or_absurd_and_no_numbers_at_all(bad: Batch) -> None:
    bad.assert_refused("mpp_missing", "mpp_absurd", "floating_point")


def test_fault_53_misordered_levels_are_put_in_order(bad: Batch) -> None:
    manifest = json.loads((bad.ran.out / "sound_levels_misordered" / "manifest.json").read_text())
    assert manifest["plan"]["image"]["shape_yx"] == [800, 1200]


@pytest.fixture(scope="module")
def false_directories(
    bad: Batch, overtile_alone: Command, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Ran, float, float]:
    """Three slides with false directories: output of the command, its CPU seconds and its peak MB."""
    folder = tmp_path_factory.mktemp("false_directories")
    for name in ("huge", "tile_width_huge", "directories_100000"):
        shutil.copy(bad.slides / f"{name}.tif", folder)
    return _measured(overtile_alone, folder, folder / "out")


def test_fault_46_49_a_lying_directory_costs_neither_time_nor_memory(
    bad: Batch, false_directories: tuple[Ran, float, float], overtile_alone: Command, tmp_path: Path
) -> None:
    usual = _measured(overtile_alone, bad.slides / "empty.tif", tmp_path / "usual")
    print(f"CPU seconds and MB: {usual[1:]} for an empty file, {false_directories[1:]} for three false_directories")
    assert false_directories[1] - usual[1] < 1
    assert false_directories[2] - usual[2] < 50


def test_fault_19_the_exit_code_is_4_when_every_slide_fails(false_directories: tuple[Ran, float, float]) -> None:
    assert false_directories[0].code == 4, false_directories[0].transcript
    assert [line.split(":")[0] for line in false_directories[0].errors] == [
        "directories_100000",
        "huge",
        "tile_width_huge",
    ]


def _measured(command: Command, source: Path, out: Path) -> tuple[Ran, float, float]:
    line = [*installed_command(), "segment", str(source), "--out", str(out), "--model", str(CLASSES)]
    files = [out.parent / name for name in ("stdout", "stderr")]
    with files[0].open("wb") as stdout_file, files[1].open("wb") as stderr_file:
        process = subprocess.Popen(
            line, env=dict(command.environment), stdout=stdout_file, stderr=stderr_file, cwd=command.folder
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    ran = Ran(process.returncode, *(path.read_text() for path in files), out)
    return ran, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def test_fault_19_rerun_computes_only_the_repaired_slide(bad: Batch, overtile: Command, tmp_path: Path) -> None:
    slides = [tmp_path / f"{name}.tif" for name in ("jpeg_scan_damaged", "sound", "sound_rgba")]
    for slide in slides:
        shutil.copy2(bad.slides / slide.name, slide)
    SOUND["sound"](slides[0])
    ran = overtile.segment(slides, bad.ran.out)
    assert ran.code == 0, ran.transcript
    before = dict.fromkeys(("sound", "sound_rgba"), "complete before")
    assert ran.states() == {"jpeg_scan_damaged": "complete", **before}
    assert ran.computed("jpeg_scan_damaged")["predict"] == 1
    assert ran.computed("sound") == {}
