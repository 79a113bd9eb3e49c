"""Results, a training and a schedule that an earlier release wrote are read, resumed and computed again unchanged.

The files lie in tests/frozen; its README says how they were made. They are read and compared through the installed
command, the Prefect server's interface and file formats. No module of the product is imported.

Network arithmetic depends on the processor. The rule for what a network computes is:

- Where instruction set, machine and torch release are those recorded in made.json, every byte is equal.
- Elsewhere stored probabilities differ by at most one grey level, and a resumed training ends within a tolerance of an
  uninterrupted one. All stages after prediction are computed from the frozen probability, and every byte is equal.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from PIL import Image
from safetensors import safe_open

from tests.frozen.frozen import (
    DEPLOYMENT,
    MODELS,
    at,
    command_words,
    deployment_name,
    same_arithmetic,
    served_schedule,
    stored_request,
    unpack,
)
from tests.support.commands import Command, FileState, Ran, files_of, history, result_digests

KEYS = ("photo", "tissue", "cells", "deep/drawn", "series")
STAGES = ("ingest", "tissue", "predict", "label", "measure", "pyramid", "export", "overlay")
AFTER_PREDICT = STAGES[3:]
BATCH_FILES = ("results.csv", "failures.csv")
GREY_LEVELS = 1
"""Of stored probabilities (0 to 255) on two kinds of processor, coarser levels included."""
LOSS_TOLERANCE = 0.05
"""Of losses of trainings on two kinds of processor."""


@dataclass(frozen=True)
class Frozen:
    """An unpacked folder of slides, cases table and results."""

    folder: Path

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def segment(self, command: Command, out: str = "out") -> Ran:
        """Run the command that made the results."""
        return at(command, self.folder).run(*command_words("segment", out=out), out=self.folder / out)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Frozen:
    """The frozen result. Tests copy what they change."""
    return Frozen(unpack("segmented", tmp_path_factory.mktemp("segmented")))


@pytest.fixture
def frozen(unpacked: Frozen, tmp_path: Path) -> Frozen:
    """A copy of the frozen result."""
    return Frozen(Path(shutil.copytree(unpacked.folder, tmp_path / "frozen")))


# ---- the finished result ---------------------------------------------------------------------------------------------


def test_result_is_complete_and_verified(frozen: Frozen, overtile_alone: Command) -> None:
    """The same command computes no block, and neither it nor `verify` changes a file of a slide."""
    results = {name: (frozen.out / name).read_bytes() for name in BATCH_FILES}
    before = {key: files_of(frozen.out / key) for key in KEYS}
    ran = frozen.segment(overtile_alone)
    assert ran.code == 0, ran.transcript
    assert "5 of 5 slides complete; 0 blocks computed, 0 network calls" in " ".join(ran.stdout.split())
    assert ran.states() == dict.fromkeys(KEYS, "complete before")
    verified = overtile_alone.run("verify", frozen.out)
    assert verified.code == 0, verified.transcript
    assert {key: files_of(frozen.out / key) for key in KEYS} == before
    assert {name: (frozen.out / name).read_bytes() for name in BATCH_FILES} == results


def test_damage_is_found(frozen: Frozen, overtile_alone: Command) -> None:
    """One changed byte of a shard: `verify` names the file."""
    shard = frozen.out / "tissue" / "slide.ome.zarr" / "probability" / "0" / "c" / "0" / "0" / "1"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    verified = overtile_alone.run("verify", frozen.out)
    assert verified.code == 3, verified.transcript
    assert "probability/0/c/0/0/1" in verified.transcript


def test_cases_table_reaches_each_slide(unpacked: Frozen) -> None:
    """Precondition of the other tests: the frozen results show each column of the table."""
    found = {key: json.loads((unpacked.out / key / "manifest.json").read_text())["plan"] for key in KEYS}
    assert found["photo"]["model"]["name"] == "nuclei@1"
    assert found["cells"]["model"]["name"] == "nuclei-fluorescence@1"
    assert (found["cells"]["image"]["slide_mpp"], found["cells"]["image"]["mpp"]) == (0.9, 0.65)
    assert found["tissue"]["image"]["level0_from_image_yx"] == [1.25, 1.25]
    assert found["deep/drawn"]["regions"]["names"] == ["left", "right"]
    assert found["photo"]["case"]["stain"] == "H&E, weak"
    batch = json.loads((unpacked.out / "batch.json").read_text())
    assert [one["key"] for one in batch["run"]["outcomes"]] == list(KEYS), "ordered by priority; not-asked is left out"


# ---- computed again --------------------------------------------------------------------------------------------------


def test_stages_after_prediction_give_the_same_bytes(frozen: Frozen, overtile: Command) -> None:
    """A run that was stopped after prediction continues there: all that follows is computed from the frozen arrays."""
    promised = {key: digests(frozen.out / key) for key in KEYS}
    for key in KEYS:
        stopped_after_prediction(frozen.out / key)
    ran = frozen.segment(overtile)
    assert ran.code == 0, ran.transcript
    for key in KEYS:
        assert not {"ingest", "tissue", "predict"} & set(ran.computed(key)), ran.computed(key)
        assert ran.outcome(key)["network_calls"] == 0
        assert digests(frozen.out / key) == promised[key]


def digests(slide: Path) -> dict[str, str]:
    """Digest of every file but the picture, whose texts are drawn in another font than that of the frozen results."""
    return {name: digest for name, digest in result_digests(slide).items() if name != "overview.png"}


def assert_same_tissue(frozen: Path, again: Path) -> None:
    """Pictures differ in their texts only: the caption above the tissue, and the scale bar in its lower left corner."""
    before, after = (np.asarray(Image.open(path).convert("RGB")) for path in (frozen, again))
    rows = min(len(before), len(after)) // 2
    assert (before[-rows:] != after[-rows:]).any(axis=-1).mean() < 0.02


def stopped_after_prediction(slide: Path) -> None:
    """Remove what the later stages wrote, and the manifest."""
    arrays, work = slide / "slide.ome.zarr", slide / ".work"
    for name in ("manifest.json", "objects.parquet", "objects.geojson.gz", "overview.png"):
        (slide / name).unlink()
    shutil.rmtree(arrays / "labels")
    for group in (arrays, arrays / "probability"):
        for level in group.glob("[1-9]"):
            shutil.rmtree(level)
    for stage in AFTER_PREDICT:
        (work / f"{stage}.stamp").unlink()
        shutil.rmtree(work / stage, ignore_errors=True)


def test_a_run_from_scratch_gives_the_same_result(unpacked: Frozen, overtile: Command) -> None:
    ran = unpacked.segment(overtile, out="again")
    assert ran.code == 0, ran.transcript
    assert ran.states() == dict.fromkeys(KEYS, "complete")
    for key in KEYS:
        frozen, again = unpacked.out / key, ran.out / key
        assert hashes(again) == hashes(frozen), "plan hashes"
        assert [line["stage"] for line in history(again)] == [line["stage"] for line in history(frozen)]
        assert_same_arrays(frozen, again)
        if same_arithmetic():
            assert digests(again) == digests(frozen)
            assert_same_tissue(frozen / "overview.png", again / "overview.png")
            assert pq.read_table(again / "objects.parquet").equals(pq.read_table(frozen / "objects.parquet"))
    if same_arithmetic():
        assert rows(ran.out) == rows(unpacked.out)


def hashes(slide: Path) -> dict[str, str]:
    """The plan hash of each stage, as the manifest has it."""
    return dict(json.loads((slide / "manifest.json").read_text())["plan"]["hashes"])


def assert_same_arrays(frozen: Path, again: Path) -> None:
    """Decoded arrays are equal; probabilities, and what follows from them, may differ on another kind of processor."""
    names = sorted(path.parent.relative_to(frozen).as_posix() for path in frozen.glob("slide.ome.zarr/**/zarr.json"))
    assert names == sorted(
        path.parent.relative_to(again).as_posix() for path in again.glob("slide.ome.zarr/**/zarr.json")
    )
    for name in names:
        one, other = (zarr.open(slide / name, mode="r") for slide in (frozen, again))
        assert dict(one.attrs) == dict(other.attrs), name
        if isinstance(one, zarr.Group):
            continue
        assert (one.shape, one.dtype) == (other.shape, other.dtype), name
        expected, found = (np.asarray(array[:]) for array in (one, other))
        if same_arithmetic() or not any(part in name for part in ("probability", "labels")):
            assert expected.tobytes() == found.tobytes(), name
        elif "probability" in name:
            assert np.abs(expected.astype(np.int16) - found).max() <= GREY_LEVELS, name


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# ---- training --------------------------------------------------------------------------------------------------------


def test_a_stopped_training_continues_to_the_same_model(tmp_path: Path, overtile: Command) -> None:
    """The stopped run, an uninterrupted one by this code and the frozen one end with the same bytes.

    The uninterrupted run states the defaults of that time for settings that networks have had since.
    """
    folder = unpack("trained", tmp_path)
    begun = steps(folder / "stopped")
    assert 25 < max(begun) < 60, "the frozen run was killed between two checkpoints"
    command = at(overtile, folder)
    resumed = command.run(*command_words("train", out="stopped"))
    earlier = ("--set", "maps.names=[]", "--set", "optimiser.average=0")
    whole = command.run(*command_words("train", out="whole"), *earlier)
    assert (resumed.code, whole.code) == (0, 0), resumed.transcript + whole.transcript
    assert list(steps(folder / "stopped")) == list(range(1, 61)), "each step once"
    frozen_losses = list(steps(folder / "finished").values())
    assert list(steps(folder / "stopped").values())[:25] == frozen_losses[:25], "kept, not computed again"
    for run in ("stopped", "whole"):
        if same_arithmetic():
            assert record(folder / run) == record(folder / "finished")
            for name in ("best.safetensors", "last.safetensors"):
                assert (folder / run / name).read_bytes() == (folder / "finished" / name).read_bytes(), (run, name)
            assert identity(folder / run) == identity(folder / "finished")
        else:
            assert list(steps(folder / run).values()) == pytest.approx(frozen_losses, abs=LOSS_TOLERANCE)
            assert described(folder / run).keys() == described(folder / "finished").keys()


def test_a_finished_training_has_nothing_to_do(tmp_path: Path, overtile_alone: Command) -> None:
    """Its checkpoint is that of the same request: the command does not refuse it, and changes no file."""
    folder = unpack("trained", tmp_path)
    (folder / "finished" / "report.html").touch()  # left out of the archive
    before = files_of(folder / "finished")
    ran = at(overtile_alone, folder).run(*command_words("train", out="finished"))
    assert ran.code == 0, ran.transcript
    assert "nothing to do" in ran.stdout
    after = files_of(folder / "finished")
    assert {name: after[name] for name in before} == before


def record(run: Path) -> list[dict[str, Any]]:
    """Lines of the journal without their times."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def steps(run: Path) -> dict[int, float]:
    """The loss of each step."""
    return {line["step"]: line["loss"] for line in record(run) if "loss" in line}


def described(run: Path) -> dict[str, str]:
    """Header of the final model."""
    with safe_open(run / "best.safetensors", framework="np") as file:
        return dict(file.metadata())


def identity(run: Path) -> Any:
    """What the checkpoint states of the request."""
    with safe_open(run / "resume.safetensors", framework="np") as file:
        return json.loads(file.metadata()["overtile-training"])["asked"]


# ---- models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_built_in_model_is_the_same_file_and_network(name: str, overtile_alone: Command) -> None:
    """`model info` reports the frozen facts. The path and the sentence of the card may change."""
    ran = overtile_alone.run("model", "info", name, "--json")
    assert ran.code == 0, ran.transcript
    found = json.loads(ran.stdout)
    assert hashlib.sha256(Path(found["file"]).read_bytes()).hexdigest() == MODELS[name]["sha256"]
    assert {key: found[key] for key in MODELS[name]} == MODELS[name]


def test_every_built_in_model_is_frozen(overtile_alone: Command) -> None:
    ran = overtile_alone.run("model", "list", "--json")
    assert {f"{one['name']}@{one['version']}" for one in json.loads(ran.stdout)} >= set(MODELS)


# ---- schedule --------------------------------------------------------------------------------------------------------


def test_parameters_of_a_stored_deployment_run(frozen: Frozen, overtile: Command, tmp_path: Path) -> None:
    """The schedule registers the stored deployment again, and a run with its stored parameters does the batch."""
    with served_schedule(at(overtile, frozen.folder), tmp_path / "log") as served:
        deployment = served.deployment(frozen.out)
        assert served.read(f"flows/{deployment['flow_id']}")["name"] == DEPLOYMENT["flow"], "the old one would remain"
        assert without_later_settings(deployment["parameters"]) == stored_request(frozen.folder)
        assert deployment["schedules"][0]["schedule"] == DEPLOYMENT["schedule"]
        assert deployment["global_concurrency_limit"]["limit"] == DEPLOYMENT["concurrency_limit"]
        assert deployment["concurrency_options"] == DEPLOYMENT["concurrency_options"]
        before = {key: unlocked(frozen.out / key) for key in KEYS}
        assert served.run(deployment, stored_request(frozen.folder)) == "Completed"
    assert {key: unlocked(frozen.out / key) for key in KEYS} == before
    lines = map(json.loads, (frozen.out / "history.jsonl").read_text().splitlines())
    ended = [line for line in lines if line["event"] == "ended"]
    assert ended[-1]["states"] == {"complete before": len(KEYS)}
    assert deployment["name"] == deployment_name(frozen.out)
    assert deployment_name(Path(DEPLOYMENT["folder"]) / "out") == DEPLOYMENT["name"]


def without_later_settings(parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters without the settings that segment has had since, which have their defaults."""
    request = dict(parameters["request"])
    objects = dict(request["config"]["objects"])
    assert {name: objects.pop(name) for name in ("method", "seed_depth")} == {"method": "auto", "seed_depth": None}
    return {**parameters, "request": {**request, "config": {**request["config"], "objects": objects}}}


def unlocked(slide: Path) -> dict[str, FileState]:
    """Every file of a slide but its lock, which each run opens."""
    return {name: state for name, state in files_of(slide).items() if name != ".work/lock"}
