"""Error messages, options, records and checks of the commands, without a run."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from flows.batch.batch import Batch, BatchRequest, ModelRuntime
from flows.batch.outcome import Outcome, State
from flows.cli import doctor, main
from flows.reports.batch_files import write_batch_files
from flows.reports.inspect import inspect_stores
from pipeline.config import ModelSection, RunConfig
from pipeline.errors import ConfigError, DiskError, LockedError, ModelError, OvertileError, SlideError
from pipeline.inference.ensemble import Ensemble, EnsembleMember
from pipeline.runs.plan import Compute
from pipeline.storage.slide_store import SlideStore
from tests.support.commands import Command
from unet_core.model_file.header import Weights
from unet_core.spec import UNetSpec


def batch_of(out: Path, *states: State, disk_failed: bool = False) -> Batch:
    request = BatchRequest(inputs=(out,), out=out, config=RunConfig())
    model = Ensemble((EnsembleMember("tiny", Weights(out / "tiny.safetensors", "0" * 64), UNetSpec()),))
    outcomes = [Outcome(f"slide {number}", out / f"{number}.tif", state) for number, state in enumerate(states)]
    outcomes[0].disk_failed = disk_failed
    return Batch(request, {ModelSection(weights="tiny"): ModelRuntime(model, Compute("cpu", "fp32", 512))}, outcomes)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (ModelError("x"), 2),
        (LockedError("x"), 75),
        (DiskError("x"), 74),
        (SlideError("x"), 4),
        (OvertileError("x"), 4),
    ],
)
def test_errors_are_one_line_and_an_exit_code(error: Exception, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> None:
        raise error

    assert main._guarded(refuse) == code
    assert capsys.readouterr().err.count("\n") == 1


def test_force_without_key_applies_to_every_slide() -> None:
    assert main._expand_bare_force([]) == []
    assert main._expand_bare_force(["a.tif", "--force", "--out", "o"]) == ["a.tif", "--force", main.ALL, "--out", "o"]
    assert main._expand_bare_force(["--force"]) == ["--force", main.ALL]
    assert main._expand_bare_force(["--force", "key", "--force"]) == ["--force", "key", "--force", main.ALL]


NASTY = ['=cmd|" /C calc"!A0', "+1", "-1", "@x", "a\nb", "\x1b[31mred", "<img src=x onerror=alert(1)>", "a|b`c`"]


def test_names_are_inert_in_tables_and_sheets(tmp_path: Path) -> None:
    batch = batch_of(tmp_path, *["failed"] * len(NASTY))
    for outcome, text in zip(batch.outcomes, NASTY, strict=True):
        outcome.key = outcome.cause = text
    write_batch_files(batch)
    rows = list(csv.reader(io.StringIO((tmp_path / "failures.csv").read_text())))
    assert len(rows) == 1 + len(NASTY)
    assert not [cell for row in rows for cell in row if cell.startswith(("=", "+", "-", "@")) or not cell.isprintable()]
    page = (tmp_path / "summary.md").read_text()
    assert "<img" not in page
    assert "\x1b" not in page
    assert all(line.count("|") - line.count("\\|") == 7 for line in page.splitlines() if line.startswith("| "))
    assert json.loads((tmp_path / "batch.json").read_text())["run"]["outcomes"][0]["key"] == NASTY[0]


def test_slide_without_manifest_is_incomplete(tmp_path: Path) -> None:
    store = SlideStore(tmp_path / "out" / "a")
    store.stamp("predict", "plan", {})
    (store.root / "objects.parquet").write_bytes(b"PAR1")
    (record,) = inspect_stores(tmp_path / "out")
    assert record["state"] == "incomplete"
    (store.root / "manifest.json").write_text("{}")
    (record,) = inspect_stores(tmp_path / "out")
    assert record["state"] == "damaged"


def test_doctor_reports_a_missing_package_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "package_version", lambda package: None if package == "zarr" else "1")
    console = Console(record=True, width=200)
    assert doctor.examine(console) == 1
    assert "zarr is not installed" in console.export_text()


def test_bare_command_and_version_start_quickly(overtile_alone: Command) -> None:
    """The bare command prints help and the version without importing heavy libraries."""
    for words, answer in (((), "Segment whole-slide images with a U-Net."), (("--version",), "overtile 0.")):
        ran = overtile_alone.run(*words)
        assert answer in ran.stdout, ran.transcript
        assert ran.stderr.strip() == ""


def test_warning_of_rasterio_about_map_coordinates_is_not_shown() -> None:
    script = (
        "import sys, warnings\nfrom flows.cli.main import main\nsys.argv = ['overtile', '--version']\n"
        "try:\n    main()\nexcept SystemExit:\n    warnings.warn('Dataset has no geotransform, gcps, or rpcs.')\n"
    )
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert (run.stdout.split()[0], run.stderr) == ("overtile", "")
