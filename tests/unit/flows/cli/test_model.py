"""The model commands: facts about a model are correct, and checkpoints are converted without running code."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from flows.cli.model import details, show
from tests.support.commands import Command
from unet_core.errors import CheckpointError
from unet_core.model_file import header
from unet_core.model_file.checkpoint import load, save, with_spec
from unet_core.model_file.convert import convert
from unet_core.networks.factory import build
from unet_core.networks.unet import UNet
from unet_core.spec import UNetSpec, preset

SPEC = UNetSpec(depth=2, width=4, in_channels=3, classes=3, mpp=0.5, class_names=("a", "b"), threshold=0.4)
BUILT_IN = header.WEIGHTS / "nuclei@1.safetensors"


@pytest.fixture
def network() -> UNet:
    torch.manual_seed(3)
    return UNet(SPEC).eval()


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(SPEC.model_dump(mode="json")))
    return path


# ---- list and info -------------------------------------------------------------------------------------------------


def test_list_shows_every_built_in_model(overtile_alone: Command) -> None:
    ran = overtile_alone.run("model", "list", "--json")
    assert ran.code == 0, ran.transcript
    found = {f"{one['name']}@{one['version']}": one for one in json.loads(ran.stdout)}
    assert set(found) == {path.stem for path in header.WEIGHTS.glob("*.safetensors")}
    model, network = found["nuclei@1"], load(BUILT_IN)
    assert model["parameters"] == sum(one.numel() for one in network.parameters())
    assert model["bytes"] == BUILT_IN.stat().st_size
    assert (model["classes"], model["mpp"], model["threshold"]) == (["nucleus"], 0.25, 0.35)
    assert model["about"] in BUILT_IN.with_suffix(".md").read_text("utf-8")
    shown = overtile_alone.run("model", "list").stdout
    assert "nuclei@1" in shown
    assert "1,941,122" in shown


def test_info_shows_the_content_of_the_file(overtile_alone: Command) -> None:
    told = json.loads(overtile_alone.run("model", "info", "nuclei@1", "--json").stdout)
    assert told["sha256"] == header.sha256(BUILT_IN)
    assert (told["halo_px"], told["step_px"], told["input_px"]) == (92, 16, 1212)
    assert sum(layer["parameters"] for layer in told["layers"]) == told["parameters"]
    assert told["spec"]["mean"] == list(load(BUILT_IN).spec.mean)
    assert told["provenance"]["held_back"] == [0]
    assert set(told["memory_bytes"]) == {"fp32", "bf16 or fp16"}
    assert told["operations_per_px"]["1024"] > told["operations_per_px"]["limit"]
    shown = overtile_alone.run("model", "info", BUILT_IN)
    assert shown.code == 0, shown.transcript
    for words in ("halo 92 px", "join.3.2", "sha256", "0.35", "provenance"):
        assert words in shown.stdout


def test_info_shows_colour_normalisation(network: UNet, tmp_path: Path) -> None:
    asked = {"stain_normalisation": "macenko", "stain_target": [[1.1, 1.4, 0.8], [0.2, 0.8, 0.5]], "equalise": True}
    spec = UNetSpec.model_validate(SPEC.model_dump() | asked)
    said = {}
    for name, one in (("plain", SPEC), ("asked", spec)):
        save(tmp_path / f"{name}.safetensors", with_spec(network, one), {})
        record = details(tmp_path / f"{name}.safetensors")
        console = Console(file=StringIO(), width=200)
        show(record, console)
        said[name] = console.file.getvalue()  # type: ignore[attr-defined]  # it is the one above
        assert {key: record["spec"].get(key) for key in asked} == (asked if name == "asked" else dict.fromkeys(asked))
    assert "normalised to [[1.1, 1.4, 0.8], [0.2, 0.8, 0.5]] (macenko)" in said["asked"]
    assert "histogram equalisation" in said["asked"]
    assert "macenko" not in said["plain"]
    assert "equalis" not in said["plain"]


def test_maps_and_object_settings_are_shown(overtile_alone: Command) -> None:
    ran = overtile_alone.run("model", "info", "nuclei@3")
    assert "maps: distance, centre" in ran.stdout
    assert "objects: seeds of the map centre, depth 0.3, largest object 1534 um2" in ran.stdout
    assert "objects:" not in overtile_alone.run("model", "info", "nuclei@2").stdout


def test_unknown_model_is_rejected_with_the_known_ones(overtile_alone: Command) -> None:
    ran = overtile_alone.run("model", "info", "nuclei@99")
    assert ran.code == 2
    assert "nuclei@1" in ran.only_error


def test_name_without_version_is_the_registered_one_or_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in (1, 2, 10):
        shutil.copy(BUILT_IN, tmp_path / f"nuclei@{version}.safetensors")
        shutil.copy(BUILT_IN, tmp_path / f"cells@{version}.safetensors")
    monkeypatch.setattr(header, "WEIGHTS", tmp_path)
    assert header.resolve("nuclei").name == "nuclei@10.safetensors"
    assert [header.resolve(f"nuclei@{version}").stem for version in (1, 2, 10)] == ["nuclei@1", "nuclei@2", "nuclei@10"]
    assert [path.stem for path in header.built_in()][2:4] == ["cells@10", "nuclei@1"]
    (tmp_path / "defaults.json").write_text('{"cells": 2}')
    assert header.resolve("cells").name == "cells@2.safetensors"
    assert header.resolve("nuclei").name == "nuclei@10.safetensors"


def some_long(cases: Mapping[str, Any], *long: str) -> list[Any]:
    """Cases as parameters: each conversion starts a process for the untrusted file, which takes two seconds."""
    marked = {name: [pytest.mark.long] if name in long else [] for name in cases}
    return [pytest.param(*case, id=name, marks=marked[name]) for name, case in cases.items()]


# ---- convert -------------------------------------------------------------------------------------------------------

Wrap = Callable[[dict[str, Any]], dict[str, Any]]
WRAPPED: dict[str, tuple[Wrap, list[str]]] = {
    "bare": (lambda state: state, []),
    "entry": (lambda state: {"state_dict": state, "epoch": 3}, ["took the entry 'state_dict'"]),
    "parallel": (
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        ["took 'module.' off every name"],
    ),
    "both": (
        lambda state: {"model": {f"module.net.{name}": tensor for name, tensor in state.items()}},
        ["took the entry 'model'", "took 'module.' off every name", "took 'net.' off every name"],
    ),
}


@pytest.mark.parametrize(("wrap", "said"), some_long(WRAPPED, "bare", "entry", "parallel"))
def test_converted_checkpoint_is_the_same_network(tmp_path: Path, network: UNet, wrap: Wrap, said: list[str]) -> None:
    source, target = tmp_path / "in.pt", tmp_path / "out.safetensors"
    torch.save(wrap(network.state_dict()), source)
    assert convert(source, target, SPEC) == said
    converted = load(target)
    assert converted.spec == SPEC
    image = torch.rand(1, 3, 60, 60)
    with torch.inference_mode():
        assert torch.equal(converted(image), network(image))
    assert header.describe(target).provenance["converted"]["sha256"] == header.sha256(source)


def test_converted_file_equals_a_saved_one(tmp_path: Path, overtile_alone: Command, network: UNet) -> None:
    source, target, ours = tmp_path / "in.pt", tmp_path / "out.safetensors", tmp_path / "ours.safetensors"
    torch.save({"state_dict": network.state_dict()}, source)
    settings = [
        part for key, value in SPEC.model_dump(mode="json").items() for part in ("--set", f"{key}={json.dumps(value)}")
    ]
    ran = overtile_alone.run("model", "convert", source, target, *settings)
    assert ran.code == 0, ran.transcript
    assert ran.stdout.startswith("note: took the entry 'state_dict'\n")
    save(ours, network, header.describe(target).provenance)
    assert target.read_bytes() == ours.read_bytes()


def test_monai_checkpoint_converts_without_renaming(tmp_path: Path) -> None:
    from monai.networks.nets.basic_unetplusplus import BasicUNetPlusPlus

    spec = preset("unet++", width=2)
    theirs = BasicUNetPlusPlus(2, 3, 2, (2, 4, 8, 16, 32, 2), norm="batch").eval()
    torch.save(theirs.state_dict(), tmp_path / "in.pt")
    assert convert(tmp_path / "in.pt", tmp_path / "out.safetensors", spec) == []
    image = torch.rand(1, 3, 48, 32)
    with torch.inference_mode():
        assert torch.equal(load(tmp_path / "out.safetensors")(image), theirs(image)[0])


@pytest.mark.parametrize("name", ["unet++", "attention"])
def test_info_of_other_architectures(tmp_path: Path, name: str) -> None:
    spec = preset(name, width=2)
    save(tmp_path / "net.safetensors", build(spec), {})
    told = details(tmp_path / "net.safetensors")
    assert (told["halo_px"], told["step_px"]) == ({"unet++": 96, "attention": 64}[name], 16)
    assert told["parameters"] == sum(one.numel() for one in build(spec).parameters())
    assert sum(layer["parameters"] for layer in told["layers"]) == told["parameters"]
    assert told["operations_per_px"]["1024"] > told["operations_per_px"]["limit"] > 0
    sizes = list(told["memory_bytes"]["fp32"].values())
    assert sizes == sorted(sizes)
    assert sizes[0] > 0
    assert told["spec"]["architecture"] == name


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.witness}'",)


@pytest.mark.parametrize("zipped", [True, False])
def test_malicious_pickle_is_rejected_and_not_run(
    overtile_alone: Command, tmp_path: Path, spec_file: Path, zipped: bool
) -> None:
    source, target, witness = tmp_path / "in.pt", tmp_path / "out.safetensors", tmp_path / "witness"
    torch.save({"state_dict": Payload(witness)}, source, _use_new_zipfile_serialization=zipped)
    ran = overtile_alone.run("model", "convert", source, target, "--spec", spec_file)
    assert ran.code == 2, ran.transcript
    assert "system" in ran.only_error
    assert "not run" in ran.only_error
    assert not witness.exists()
    assert not target.exists()


def without_head(state: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("head", "outc"): tensor for name, tensor in state.items()}


def wider_head(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "head.weight": torch.zeros(5, 4, 1, 1)}


BAD: dict[str, tuple[Callable[[dict[str, Any]], Any], list[str]]] = {
    "other names": (without_head, ["expects head.bias, head.weight", "the file has outc.bias, outc.weight"]),
    "other shape": (wider_head, ["head.weight", "(3, 4, 1, 1)", "(5, 4, 1, 1)"]),
    "no tensors": (lambda state: {"epoch": 3}, ["expected names and tensors", "'epoch'"]),
    "one tensor": (lambda state: torch.zeros(3), ["expected a state_dict", "Tensor"]),
    "not finite": (lambda state: {**state, "head.bias": torch.full((3,), torch.nan)}, ["head.bias", "NaN"]),
}


@pytest.mark.parametrize(("spoil", "words"), some_long(BAD, "other names", "no tensors", "one tensor", "not finite"))
def test_mismatched_weights_are_rejected_with_both_shapes(
    tmp_path: Path, network: UNet, spoil: Callable[[dict[str, Any]], Any], words: list[str]
) -> None:
    source, target = tmp_path / "in.pt", tmp_path / "out.safetensors"
    torch.save(spoil(dict(network.state_dict())), source)
    with pytest.raises(CheckpointError) as refusal:
        convert(source, target, SPEC)
    assert all(word in str(refusal.value) for word in words), refusal.value
    assert not target.exists()


def test_spec_requires_explicit_and_known_keys(
    overtile_alone: Command, tmp_path: Path, network: UNet, spec_file: Path
) -> None:
    source, target = tmp_path / "in.pt", tmp_path / "out.safetensors"
    torch.save(network.state_dict(), source)
    words = ("model", "convert", source, target)
    told = overtile_alone.run(*words, "--set", "depth=2").only_error
    assert all(key in told for key in ("padding", "mean", "std", "mpp", "head", "up"))
    assert "did you mean 'width'" in overtile_alone.run(*words, "--spec", spec_file, "--set", "widht=3").only_error
    assert "depth" in overtile_alone.run(*words, "--spec", spec_file, "--set", 'depth="2"').only_error
    assert "does not exist" in overtile_alone.run("model", "convert", tmp_path / "no.pt", target).only_error
    target.write_bytes(b"somebody's")
    ran = overtile_alone.run(*words, "--spec", spec_file)
    assert ran.code == 2
    assert "new .safetensors file" in ran.only_error
    assert target.read_bytes() == b"somebody's"


def test_file_that_is_no_checkpoint_is_rejected(overtile_alone: Command, tmp_path: Path, spec_file: Path) -> None:
    source, target = tmp_path / "in.pt", tmp_path / "out.safetensors"
    for content in (b"", b"PK\x03\x04" + bytes(100)):
        source.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"saved by torch\.save"):
            convert(source, target, SPEC)
    source.write_bytes(b"weights")
    ran = overtile_alone.run("model", "convert", source, target, "--spec", spec_file)
    assert ran.code == 2, ran.transcript
    assert "saved by torch.save" in ran.only_error
    assert not target.exists()
