"""The train command: its files, invalid input, and SIGKILL at any step."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
import tifffile
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.storage.lock import slide_lock
from tests.support.commands import PATIENCE_S, Command, Ran, installed_command
from tests.support.make_discs import Discs, drawn, write_discs
from tests.unit.flows.reporting import assert_alone
from tests.unit.unet_core.training_runs import assert_equal_runs, lines
from unet_core.model_file.header import describe

STEPS, EVERY = 60, 25
TINY = (
    *("network.depth=1", "network.width=2", "network.dropout=0.5"),
    *("sampling.batch=2", "sampling.output_px=32", f"stopping.every={EVERY}", "schedule.warmup=5"),
    *("compute.precision=fp32", "compute.device=cpu", "compute.threads=1", "data.classes=[disc]"),
)


def words(discs: Discs, out: Path, *more: str) -> list[str]:
    """The command line of a tiny training."""
    settings = [word for setting in TINY for word in ("--set", setting)]
    folders = ["--images", str(discs.images), "--masks", str(discs.masks), "--cases", str(discs.cases)]
    return ["train", *folders, "--out", str(out), "--steps", str(STEPS), *settings, *more]


@dataclass(frozen=True)
class Trained:
    """A run of the command without interruption."""

    discs: Discs
    out: Path
    ran: Ran


@pytest.fixture(scope="module")
def trained(overtile: Command, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    discs = write_discs(folder)
    return Trained(discs, folder / "run", overtile.run(*words(discs, folder / "run")))


def kill_at(command: Command, line: Sequence[str], record: Path, steps: int) -> None:
    """Start the command, and kill all its processes once its log holds so many steps."""
    process = subprocess.Popen(
        [*installed_command(), *line],
        env=dict(command.environment),
        cwd=command.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    while process.poll() is None:
        taken = record.read_bytes().count(b'"gradient_norms"') if record.exists() else 0
        if taken >= steps:
            os.killpg(process.pid, signal.SIGKILL)
            break
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == -signal.SIGKILL, output.decode()


def test_training_writes_model_record_and_folds(trained: Trained) -> None:
    assert trained.ran.code == 0, trained.ran.transcript
    spec = describe(trained.out / "best.safetensors").spec
    assert (spec.class_names, spec.mpp) == (("disc",), None)
    assert spec.threshold is not None
    assert [line["step"] for line in lines(trained.out) if "validation" in line] == [0, 25, 50, 60]
    folds = json.loads((trained.out / "folds.json").read_text())
    assert folds["folds"] == {f"{i}": i % 3 for i in range(6)}
    assert describe(trained.out / "last.safetensors").provenance["held_back"] == ["0", "3"]
    assert "best.safetensors" in trained.ran.stdout
    assert f"report: {trained.out / 'report.html'}" in trained.ran.stdout
    assert "Training of run" in assert_alone(trained.out / "report.html").text
    assert "6 images of 6 patients" in trained.ran.stdout


def test_report_path_is_an_artifact(trained: Trained, prefect_server: str) -> None:
    asked = json.dumps({"artifacts": {"key": {"any_": ["training-report"]}}}).encode()
    kind = {"Content-Type": "application/json"}
    with urlopen(Request(f"{prefect_server}/artifacts/filter", asked, kind)) as answer:
        artifacts = json.load(answer)  # of every training beside this server
    assert sum(str((trained.out / "report.html").resolve()) in artifact["data"] for artifact in artifacts) == 1


def test_tensorboard_has_the_same_losses(trained: Trained) -> None:
    board = EventAccumulator(str(trained.out / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    losses = [line["loss"] for line in lines(trained.out) if "loss" in line]
    assert [event.value for event in board.Scalars("training/loss")] == pytest.approx(losses)


@pytest.mark.long
def test_model_with_stain_normalisation_trains_and_segments(overtile: Command, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    asked = ("--set", "network.stain_normalisation=macenko", "--set", "network.equalise=true")
    trained = overtile.run(*words(write_discs(tmp_path), run, *asked))
    assert trained.code == 0, trained.transcript
    image, _ = drawn(3, (200, 240))
    tifffile.imwrite(tmp_path / "slide.tif", image, photometric="rgb", tile=(64, 64))
    ran = overtile.segment(tmp_path / "slide.tif", out, "tissue=null", model=run / "best.safetensors")
    assert ran.code == 0, ran.transcript
    facts = json.loads((out / "slide" / "manifest.json").read_text())["stages"]["tissue"]["facts"]
    (fitted,) = facts["normalisation"]
    assert (fitted["kept"], len(fitted["matrix"]), len(fitted["ranks"])) == ([], 3, 3)
    assert "colours_not_normalised" not in facts["flags"]


def test_complete_training_is_not_repeated(trained: Trained, overtile_alone: Command) -> None:
    """It does not wait for Prefect either."""
    before = (trained.out / "resume.safetensors").stat().st_mtime_ns
    ran = overtile_alone.run(*words(trained.discs, trained.out))
    assert ran.code == 0, ran.transcript
    assert "nothing to do" in ran.stdout
    assert "best.safetensors" in ran.stdout
    assert (trained.out / "resume.safetensors").stat().st_mtime_ns == before


@pytest.mark.long
def test_fault_25_sigkill_inside_an_epoch_changes_no_weight(
    trained: Trained, overtile: Command, tmp_path: Path
) -> None:
    seed = 3
    step = random.Random(seed).randrange(EVERY + 1, STEPS - 1)
    print(f"seed {seed}: killed after {step} steps or a little later")
    line = words(trained.discs, tmp_path / "run")
    kill_at(overtile, line, tmp_path / "run" / "metrics.jsonl", step)
    ran = overtile.run(*line)
    assert ran.code == 0, ran.transcript
    assert_equal_runs(tmp_path / "run", trained.out)


@pytest.mark.long
def test_fault_25_five_sigkills_change_no_weight(trained: Trained, overtile: Command, tmp_path: Path) -> None:
    seed = 21
    steps = sorted(random.Random(seed).sample(range(1, STEPS - 1), 5))
    print(f"seed {seed}: killed after {steps} steps or a little later")
    line = words(trained.discs, tmp_path / "run")
    for step in steps:
        kill_at(overtile, line, tmp_path / "run" / "metrics.jsonl", step)
    ran = overtile.run(*line)
    assert ran.code == 0, ran.transcript
    assert_equal_runs(tmp_path / "run", trained.out)


def test_dry_run_prints_summary_and_draws_samples(trained: Trained, overtile_alone: Command, tmp_path: Path) -> None:
    ran = overtile_alone.run(*words(trained.discs, tmp_path / "run", "--dry-run"))
    assert ran.code == 0, ran.transcript
    assert "6 images of 6 patients" in ran.stdout
    with Image.open(tmp_path / "run" / "samples.png") as picture:
        assert picture.size[0] > 600
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["samples.png"]


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--minutes", "3"), r"--minutes and --steps"),
        (("--config", "nowhere.yaml"), r"nowhere\.yaml"),
        (("--images", "nowhere"), r"nowhere is no folder"),
        (("--cases", "nowhere.csv"), r"nowhere\.csv does not exist"),
    ],
)
def test_invalid_paths_and_options_are_rejected_immediately(
    trained: Trained, overtile_alone: Command, tmp_path: Path, more: tuple[str, ...], said: str
) -> None:
    ran = overtile_alone.run(*words(trained.discs, tmp_path / "run", *more))
    assert ran.code == 2
    assert re.search(said, ran.only_error)
    assert not (tmp_path / "run").exists()


def test_wrong_key_and_changed_recipe_are_one_line_errors(trained: Trained, overtile_alone: Command) -> None:
    ran = overtile_alone.run(*words(trained.discs, trained.out, "--set", "optimiser.rat=1"))
    assert ran.code == 2
    assert "did you mean 'rate'" in ran.only_error


def test_second_training_in_one_folder_is_rejected(trained: Trained, overtile_alone: Command) -> None:
    with slide_lock(trained.out / ".work"):
        ran = overtile_alone.run(*words(trained.discs, trained.out))
    assert ran.code == 75
    assert f"process {os.getpid()}" in ran.only_error


@pytest.mark.long
def test_fault_61_diverged_training_exits_with_4_and_names_what_is_kept(
    trained: Trained, overtile: Command, tmp_path: Path
) -> None:
    wild = ("optimiser.kind=sgd", "optimiser.rate=1.0e+25", "optimiser.clip=null")
    settings = [word for setting in wild for word in ("--set", setting)]
    ran = overtile.run(*words(trained.discs, tmp_path / "run", *settings))
    assert ran.code == 4
    assert "diverged at step" in ran.only_error
    assert "best.safetensors" in ran.only_error
    describe(tmp_path / "run" / "best.safetensors")


@pytest.mark.long
def test_fold_all_trains_every_fold(trained: Trained, overtile: Command, tmp_path: Path) -> None:
    ran = overtile.run(*words(trained.discs, tmp_path / "run", "--fold", "all", "--steps", "3"))
    assert ran.code == 0, ran.transcript
    held = [
        describe(tmp_path / "run" / f"fold-{fold}" / "best.safetensors").provenance["held_back"] for fold in range(3)
    ]
    assert held == [["0", "3"], ["1", "4"], ["2", "5"]]
