"""Unusable or changed models.

They are refused before a slide is read, with expected and found values.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from tests.support import oracle
from tests.support.commands import CLASSES, CONTEXT, Command, is_complete
from tests.support.faults.pictures import PINK, RED, Disc, draw, write
from tests.support.faults.trees import Finished
from unet_core.model_file.checkpoint import load, save
from unet_core.networks.unet import UNet
from unet_core.spec import UNetSpec

BLACK = (0, 0, 0)
SMALL = UNetSpec(depth=1, width=2, mpp=0.5)


def nothing_in(folder: Path) -> bool:
    """Return whether there are no files, at most an empty folder."""
    return not folder.exists() or not any(folder.iterdir())


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.witness}'",)


def _torch_archive(path: Path, witness: Path) -> None:
    torch.save({"state": Payload(witness)}, path)


def _torch_legacy(path: Path, witness: Path) -> None:
    torch.save({"state": Payload(witness)}, path, _use_new_zipfile_serialization=False)


def _bare_pickle(path: Path, witness: Path) -> None:
    path.write_bytes(pickle.dumps(Payload(witness), protocol=4))


@pytest.mark.parametrize("make", [_torch_archive, _torch_legacy, _bare_pickle])
def test_fault_55_a_pickle_is_refused_and_its_payload_not_run(
    finished: Finished, overtile_alone: Command, tmp_path: Path, make: Callable[[Path, Path], None]
) -> None:
    model, witness = tmp_path / "model.safetensors", tmp_path / "witness"
    make(model, witness)
    ran = overtile_alone.segment(finished.slide, tmp_path / "out", model=model)
    assert ran.code == 2, ran.transcript
    assert "found a pickle" in ran.only_error
    assert not witness.exists()
    assert not (tmp_path / "out").exists()


def _truncated(path: Path) -> str:
    path.write_bytes(CONTEXT.read_bytes()[:-1000])
    size = CONTEXT.stat().st_size
    return f"truncated: expected {size} bytes, found {size - 1000}"


def _grown(path: Path) -> str:
    path.write_bytes(CONTEXT.read_bytes() + bytes(7))
    size = CONTEXT.stat().st_size
    return f"damaged: expected {size} bytes, found {size + 7}"


def _of_another_width(path: Path) -> str:
    """Combine the weights of one network with the spec of another."""
    save(path, UNet(SMALL), {})
    header, weights = _parts(path)
    own = json.loads(header["__metadata__"]["overtile"])
    own["spec"]["width"] = 3
    header["__metadata__"]["overtile"] = json.dumps(own)
    _join(path, header, weights)
    return "tensor bottom.0.bias: expected (6,) (from the spec in the header), found (4,)"


def _not_a_number(path: Path) -> str:
    save(path, UNet(SMALL), {})
    header, weights = _parts(path)
    start = next(entry["data_offsets"][0] for name, entry in header.items() if name == "head.bias")
    _join(path, header, weights[:start] + struct.pack("<f", float("nan")) + weights[start + 4 :])
    return "expected finite weights, found 1 of 2 NaN or infinite in head.bias"


def _parts(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _join(path: Path, header: dict[str, Any], weights: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + weights)


@pytest.mark.parametrize("make", [_truncated, _grown, _of_another_width, _not_a_number])
def test_fault_56_57_weights_that_cannot_be_right_are_refused_with_both_sides_named(
    finished: Finished, overtile_alone: Command, tmp_path: Path, make: Callable[[Path], str]
) -> None:
    model = tmp_path / "model.safetensors"
    phrase = make(model)
    ran = overtile_alone.segment(finished.slide, tmp_path / "out", model=model)
    assert ran.code == 2, ran.transcript
    assert phrase in ran.only_error
    assert str(model) in ran.only_error
    assert nothing_in(tmp_path / "out")


def test_fault_56_a_model_for_other_channels_fails_the_slide_with_both_numbers(
    finished: Finished, overtile_alone: Command, tmp_path: Path
) -> None:
    model = tmp_path / "four-channels.safetensors"
    save(model, UNet(UNetSpec(depth=1, width=2, in_channels=4, mpp=0.5)), {})
    ran = overtile_alone.segment(finished.slide, tmp_path / "out", model=model)
    assert ran.code == 4, ran.transcript
    assert "expected 4 channels for model four-channels, found 3" in ran.error_of("slide")
    assert not is_complete(tmp_path / "out" / "slide")


def test_fault_59_a_tile_off_the_step_grid_is_refused_with_the_nearest_legal_sizes(
    finished: Finished, overtile_alone: Command, tmp_path: Path
) -> None:
    ran = overtile_alone.segment(finished.slide, tmp_path / "out", "tiles.tile=388", model=CONTEXT)
    assert ran.code == 2, ran.transcript
    assert "a multiple of the network's step 16" in ran.only_error
    assert "Nearest: 384 or 400" in ran.only_error
    assert nothing_in(tmp_path / "out")


def test_fault_57_an_output_that_overflows_fails_its_slide_and_is_never_background(
    overtile: Command, tmp_path: Path
) -> None:
    """Finite weights whose output overflows fp32 for colours and is finite for black."""
    model = load(CLASSES)
    with torch.no_grad():
        for name in ("down.0.0.weight", "down.0.2.weight"):
            model.get_parameter(name).mul_(1e30)
    save(tmp_path / "overflowing.safetensors", model, {})
    write(tmp_path / "slides" / "coloured.tif", draw((200, 700), [Disc(100, 600, 20, RED)], ground=BLACK))
    write(tmp_path / "slides" / "black.tif", draw((200, 700), [], ground=BLACK))
    ran = overtile.segment(tmp_path / "slides", tmp_path / "out", model=tmp_path / "overflowing.safetensors")
    assert ran.code == 3, ran.transcript
    assert len(ran.errors) == 1
    assert ran.error_of("coloured").startswith("coloured: failed at predict: ")
    assert "the network's output is not finite" in ran.error_of("coloured")
    assert not is_complete(tmp_path / "out" / "coloured")
    shards = tmp_path / "out" / "coloured" / "slide.ome.zarr" / "probability" / "0" / "c" / "0" / "0"
    assert [path.name for path in shards.iterdir()] == ["0"], "the block that overflowed was not written"
    assert is_complete(tmp_path / "out" / "black")


def test_fault_16_58_changed_weights_are_noticed_and_never_mixed(
    finished: Finished, overtile: Command, tmp_path: Path
) -> None:
    """One slide is complete with the old weights, one was stopped during prediction with them."""
    slides, out = finished.copies(tmp_path, ["complete", "begun"])
    begun = out / "begun"
    (begun / "manifest.json").unlink()
    for stage in ("predict", "label", "measure", "pyramid", "export", "overlay"):
        (begun / ".work" / f"{stage}.stamp").unlink()
    (begun / "slide.ome.zarr" / "probability" / "0" / "c" / "0" / "0" / "2").unlink()
    model = load(CLASSES)
    with torch.no_grad():
        model.get_parameter("head.bias").add_(30)  # pink becomes uncertain
    save(tmp_path / "classes.safetensors", model, {})
    before = {path: path.stat().st_ino for path in (out / "complete").rglob("*") if path.is_file()}
    ran = overtile.segment(slides, out, model=tmp_path / "classes.safetensors")
    assert ran.code == 3, ran.transcript
    assert ran.states() == {"begun": "complete", "complete": "kept"}
    (kept,) = ran.errors
    assert kept.startswith("complete: kept at plan: ")
    assert "the weights, classes" in kept
    assert "--force complete" in kept
    assert {path: path.stat().st_ino for path in before if path.name != "lock"} == {
        path: inode for path, inode in before.items() if path.name != "lock"
    }
    assert "begun: changed since it was begun: the weights, classes" in ran.stdout
    assert ran.computed("begun")["predict"] == 3, "none of the old weights' blocks was kept"
    probability = np.asarray(zarr.open_array(begun / "slide.ome.zarr" / "probability" / "0", mode="r")[:])
    image = np.asarray(zarr.open_array(begun / "slide.ome.zarr" / "0", mode="r")[:])
    changed = oracle.network(tmp_path / "classes.safetensors")
    ground = oracle.forward(changed, np.full((3, 140, 140), np.array(PINK, np.uint8)[:, None, None]))
    assert (image[:, 0, 0] == PINK).all()
    assert np.array_equal(probability[:, 0, 0], ground[:, 0, 0])
    assert (np.abs(probability[:, 0, ::100].astype(int) - ground[:, :1, 0]) <= 1).all(), "in every block"
