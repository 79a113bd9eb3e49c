"""Model files are read back unchanged; invalid files are rejected by name and never run."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from unet_core.errors import CheckpointError, UnknownModelError
from unet_core.model_file import header
from unet_core.model_file.checkpoint import load, save, with_spec
from unet_core.model_file.header import describe, resolve, sha256
from unet_core.networks.unet import UNet
from unet_core.spec import UNetSpec

SPEC = UNetSpec(depth=1, width=2, mpp=0.5, class_names=("cell",), threshold=0.4)


@pytest.fixture
def model() -> UNet:
    torch.manual_seed(0)
    return UNet(SPEC).eval()


@pytest.fixture
def saved(model: UNet, tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    save(path, model, {"data": "none", "steps": 3})
    return path


def test_a_model_is_read_back_to_the_bit(model: UNet, saved: Path) -> None:
    loaded = load(saved)
    assert loaded.spec == SPEC
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    x = torch.rand(1, 3, 34, 34)
    assert torch.equal(loaded(x), model(x))


def test_half_precision_is_stored_and_computed_with_in_single(model: UNet, saved: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.safetensors"
    save(half, model, {}, precision="half")
    loaded = load(half)
    for name, tensor in model.state_dict().items():
        assert loaded.state_dict()[name].dtype == torch.float32
        assert torch.equal(loaded.state_dict()[name], tensor.half().float())
    assert {tensor.dtype for tensor in describe(half).tensors.values()} == {"F16"}
    assert half.stat().st_size < saved.stat().st_size


def test_batch_norm_is_read_back(tmp_path: Path) -> None:
    model = UNet(SPEC.model_copy(update={"norm": "batch"})).train()
    model(torch.rand(2, 3, 34, 34))
    path = tmp_path / "norm.safetensors"
    save(path, model, {}, precision="half")
    loaded = load(path)
    assert loaded.down[0][1].num_batches_tracked == 1
    assert torch.equal(loaded.down[0][1].running_mean, model.down[0][1].running_mean.half().float())


def test_loading_uses_no_random_numbers(saved: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load(saved)
    assert torch.equal(torch.rand(3), expected)


def test_saving_twice_gives_the_same_bytes(model: UNet, saved: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.safetensors"
    save(again, model, {"steps": 3, "data": "none"})
    assert sha256(again) == sha256(saved)


def test_spec_and_provenance_are_read_from_the_header_alone(saved: Path) -> None:
    found = describe(saved)
    assert (found.spec, found.provenance) == (SPEC, {"data": "none", "steps": 3})
    assert found.tensors["head.weight"].shape == (2, 2, 1, 1)


def test_reading_a_header_needs_no_torch(saved: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from unet_core.model_file.header import describe, resolve, sha256\n"
        "import unet_core.shapes, unet_core.mirror\n"
        f"describe(resolve({str(saved)!r})), sha256(Path({str(saved)!r}))\n"
        "assert 'torch' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


class Malicious:
    """Unpickling this would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5, None])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_pickles_are_rejected_without_being_run(tmp_path: Path, protocol: int | None, suffix: str) -> None:
    path, target = tmp_path / f"net.{suffix}", tmp_path / "was run"
    if protocol is None:
        torch.save({"weights": Malicious(target)}, path)
    else:
        path.write_bytes(pickle.dumps(Malicious(target), protocol=protocol))
    with pytest.raises(CheckpointError, match="found a pickle"):
        load(path)
    assert not target.exists()


@pytest.mark.parametrize("content", [b"", b"short", b"\x89HDF\r\n\x1a\n" + bytes(100), bytes(100), b"II*\x00" * 30])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"net\.safetensors: expected a \.safetensors file"):
        load(path)


@pytest.mark.parametrize("kept", [9, 200, -1])
def test_a_truncated_file_is_named_with_both_lengths(saved: Path, kept: int) -> None:
    whole = saved.read_bytes()
    saved.write_bytes(whole[:kept])
    with pytest.raises(CheckpointError, match=r"truncated.*bytes"):
        load(saved)


def test_trailing_bytes_are_rejected(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match=r"damaged: expected .* bytes, found"):
        load(saved)


def with_header(path: Path, change: dict[str, Any]) -> None:
    """Rewrite the file's own header entry."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    entries = json.loads(content[8 : 8 + length])
    own = {**json.loads(entries["__metadata__"][header.ENTRY]), **change}
    entries["__metadata__"][header.ENTRY] = json.dumps(own)
    raw = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + content[8 + length :])


def test_weights_of_another_network_name_both_shapes(saved: Path) -> None:
    with_header(saved, {"spec": SPEC.model_copy(update={"width": 4}).model_dump(mode="json")})
    with pytest.raises(CheckpointError, match=r"bottom\.0\.bias: expected \(8,\) .* found \(4,\)"):
        load(saved)


def test_missing_tensors_are_named(saved: Path) -> None:
    with_header(saved, {"spec": SPEC.model_copy(update={"depth": 2}).model_dump(mode="json")})
    with pytest.raises(CheckpointError, match=r"expected \(8,\) .* found \(4,\)|found none"):
        load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "expected format version 1, found 2"),
        ({"spec": None}, "spec in the header is not valid"),
        ({"spec": {"depth": 99}}, "spec in the header is not valid"),
        ({"spec": {"colour": "red"}}, "spec in the header is not valid"),
    ],
)
def test_header_mismatches_are_refused(saved: Path, change: dict[str, Any], message: str) -> None:
    with_header(saved, change)
    with pytest.raises(CheckpointError, match=message):
        describe(saved)


@pytest.mark.parametrize("raw", [b'{"a": 1}', b"{not json}", b"[" * 5000, b'{"w": {"dtype": "F32"}}', b"{}"])
def test_malformed_headers_are_rejected(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw)) + raw)
    with pytest.raises(CheckpointError, match="expected"):
        describe(path)


def test_weights_without_a_spec_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"w": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="expected an entry 'overtile' in the header"):
        load(path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(saved: Path, model: UNet, bad: float) -> None:
    own = {header.ENTRY: json.dumps({"format_version": 1, "spec": SPEC.model_dump(mode="json")})}
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors["head.weight"][0, 0] = bad
    save_file(tensors, saved, own)
    with pytest.raises(CheckpointError, match=r"1 of 4 NaN or infinite in head\.weight"):
        load(saved)


def test_weights_beyond_half_precision_are_not_saved(model: UNet, saved: Path) -> None:
    before = saved.read_bytes()
    model.head.bias.data[0] = 1e6
    with pytest.raises(CheckpointError, match=r"head\.bias.*stored precision"):
        save(saved, model, {}, precision="half")
    assert saved.read_bytes() == before


def test_a_failed_write_leaves_only_the_old_file(model: UNet, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save(saved, model, {"new": True})
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_with_spec_keeps_the_weights(model: UNet) -> None:
    changed = with_spec(model, SPEC.model_copy(update={"threshold": 0.7}))
    assert changed.spec.threshold == 0.7
    assert torch.equal(changed.head.weight, model.head.weight)


def test_names_resolve_to_the_newest_version(saved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("nuclei@1", "nuclei@2", "nuclei@10", "nuclei-large@99", "gland@1"):
        (tmp_path / f"{name}.safetensors").touch()
    monkeypatch.setattr(header, "WEIGHTS", tmp_path)
    assert resolve("nuclei").name == "nuclei@10.safetensors"
    assert resolve("nuclei@2").name == "nuclei@2.safetensors"
    assert resolve(saved) == resolve(str(saved)) == saved
    for unknown in ("nucleus", "nuclei@3", "../nuclei", "nuclei@"):
        with pytest.raises(UnknownModelError, match=r"no model .*gland@1, .*nuclei@1"):
            resolve(unknown)


def test_the_built_in_model_is_small_and_described() -> None:
    path = resolve("nuclei")
    assert path == resolve("nuclei@4")
    assert path.stat().st_size < 5_000_000
    spec = describe(path).spec
    assert (spec.mpp, spec.in_channels, spec.classes, spec.padding, spec.norm) == (0.5, 3, 2, "valid", "batch")
    assert spec.objects is not None
    assert spec.class_names == ("nucleus",)
    assert spec.threshold is not None
    assert path.with_suffix(".md").is_file()


def test_loading_does_not_import_torchs_compiler() -> None:
    """The compiler costs each process 1.6 s and a temporary folder."""
    words = "import sys; from unet_core.model_file import checkpoint, header; checkpoint.load(header.resolve('nuclei'))"
    words += "; import pipeline.runs.stage_runner"  # the imports of a worker; MONAI takes seconds
    line = [sys.executable, "-c", f"{words}; sys.exit(bool({{'torch._dynamo', 'monai'}} & set(sys.modules)))"]
    assert subprocess.run(line, cwd=Path(__file__).parents[4], check=False).returncode == 0
