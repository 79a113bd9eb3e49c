"""Header of a model file, read without torch and without the weights.

A model is one .safetensors file. Its header has an entry `overtile` with format version, UNetSpec and provenance as
JSON, so a few kilobytes describe the network, and no file is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from unet_core.errors import CheckpointError, UnknownModelError
from unet_core.spec import UNetSpec

FORMAT_VERSION = 1
ENTRY = "overtile"
WEIGHTS = Path(__file__).parents[1] / "weights"
LARGEST_HEADER = 100_000_000  # the limit of the safetensors format
PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Number type and shape of one tensor in the file."""

    dtype: str
    shape: tuple[int, ...]
    stop: int  # last byte + 1, counted from the end of the header


@dataclass(frozen=True, slots=True)
class Weights:
    """A model file, and its digest at the time of its selection."""

    path: Path
    sha256: str


@dataclass(frozen=True, slots=True)
class ModelHeader:
    """Content of a model file's header."""

    spec: UNetSpec
    provenance: dict[str, Any]
    tensors: dict[str, StoredTensor]


def resolve(name_or_path: str | Path) -> Path:
    """Return the file of a model.

    Args:
        name_or_path: Built-in model (`nuclei`: its default version, `nuclei@1`: that version) or a file. The default
            versions are listed in weights/defaults.json; of other names, the newest version is the default.

    Raises:
        UnknownModelError: There is no such model or file; the message lists the built-in models.
    """
    text = str(name_or_path)
    versions = {path.stem: path for path in built_in()}
    if text in versions:
        return versions[text]
    if (default := f"{text}@{default_versions().get(text)}") in versions:
        return versions[default]
    numbered = [(int(stem.rpartition("@")[2]), path) for stem, path in versions.items() if _is_version(stem, text)]
    if numbered:
        return max(numbered)[1]
    path = Path(name_or_path)
    if path.is_file():
        return path.absolute()
    known = ", ".join(sorted(versions)) or "none"
    raise UnknownModelError(f"no model {text!r}: expected a built-in one ({known}) or an existing .safetensors file")


def built_in() -> list[Path]:
    """Return the files of the built-in models, `name@version`, sorted by name and version."""
    split = {path: re.fullmatch(r"(.+)@(\d+)", path.stem) for path in WEIGHTS.glob("*.safetensors")}
    numbered = {path: (found[1], int(found[2])) for path, found in split.items() if found}
    return sorted(numbered, key=lambda path: numbered[path])


def default_versions() -> dict[str, int]:
    """Return the version that each bare name of a built-in model means."""
    path = WEIGHTS / "defaults.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _is_version(stem: str, name: str) -> bool:
    return re.fullmatch(re.escape(name) + r"@\d+", stem) is not None


def sha256(path: Path) -> str:
    """Return the file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(path: Path) -> ModelHeader:
    """Return spec, provenance and tensor shapes; reads the header only and runs no code in the file.

    Raises:
        CheckpointError: The file is a pickle, another format, truncated, or has an invalid header.
    """
    with path.open("rb") as file:
        start = file.read(9)
        length = int.from_bytes(start[:8], "little")
        size = path.stat().st_size
        own_kind = start[8:] == b"{"
        if not own_kind and start.startswith(PICKLE_STARTS):
            raise CheckpointError(
                f"{path}: expected a .safetensors file, found a pickle (.pt, .pth); it could run code and was not "
                "opened. Run 'overtile model convert', which reads such a file without running it"
            )
        if not own_kind or not 2 <= length <= LARGEST_HEADER:
            raise CheckpointError(f"{path}: expected a .safetensors file, found {size} bytes of something else")
        if size < 8 + length:
            raise CheckpointError(f"{path}: truncated: header of {length} bytes expected, file has {size} bytes")
        raw = start[8:] + file.read(length - 1)
    header = _parsed(path, raw)
    expected = 8 + length + max((tensor.stop for tensor in header.tensors.values()), default=0)
    if size != expected:
        what = "truncated" if size < expected else "damaged"
        raise CheckpointError(f"{path}: {what}: expected {expected} bytes, found {size}; copy it again")
    return header


def _parsed(path: Path, raw: bytes) -> ModelHeader:
    """Parse the header's JSON."""
    try:
        entries = json.loads(raw)
        own = json.loads(entries.pop("__metadata__", {}).get(ENTRY, "null"))
        tensors = {
            name: StoredTensor(str(entry["dtype"]), tuple(entry["shape"]), int(entry["data_offsets"][1]))
            for name, entry in entries.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected a .safetensors header, found something else ({error})") from error
    if not isinstance(own, dict):
        raise CheckpointError(
            f"{path}: expected an entry {ENTRY!r} in the header (the network's spec), found none: another "
            "program saved these weights. Build the UNet and save it with unet_core.save_model"
        )
    if own.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(f"{path}: expected format version {FORMAT_VERSION}, found {own.get('format_version')}")
    try:
        spec = UNetSpec.model_validate(own.get("spec"))
    except ValidationError as error:
        raise CheckpointError(f"{path}: the spec in the header is not valid: {error}") from error
    return ModelHeader(spec=spec, provenance=dict(own.get("provenance") or {}), tensors=tensors)
