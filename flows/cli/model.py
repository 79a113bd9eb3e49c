"""The models: which there are, what one is and costs, and how a PyTorch checkpoint becomes one.

The one decision made here: everything that is said of a model comes from its file's header and from arithmetic, so a
list of models reads a few kilobytes of each and imports no torch.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from flows.cli.options import AsJson
from pipeline.config import read_settings
from pipeline.errors import ConfigError, ModelError
from pipeline.printable import printable
from unet_core.errors import NetworkError
from unet_core.model_file.header import ModelHeader, built_in, describe, resolve, sha256
from unet_core.networks.model_summary import layers, operations_per_px, parameters, tile_bytes
from unet_core.shapes import ValidShape
from unet_core.spec import UNSEEN, UNetSpec

TILES_PX = (384, 512, 1024, 2048)
"""Cores for which costs are told: what people meet."""
ITEM_BYTES = {"fp32": 4, "bf16 or fp16": 2}
app = typer.Typer(no_args_is_help=True, help="List models, say what one is and costs, convert a PyTorch checkpoint.")


@contextmanager
def refused() -> Iterator[None]:
    """What a model file is refused for becomes the command's own error."""
    try:
        yield
    except (NetworkError, OSError) as error:
        raise ModelError(str(error)) from error


@app.command(name="list")
def list_models(as_json: AsJson = False) -> None:  # noqa: FBT002  typer's way to declare a flag
    """The built-in models, one line each."""
    with refused():
        records = [summary(path) for path in built_in()]
    if as_json:
        typer.echo(json.dumps(records, indent=1))
        return
    columns = ("model", "classes", "um/px", "parameters", "MB", "threshold", Column("what it is", overflow="fold"))
    table = Table(*columns)
    for one in records:
        numbers = (_plain(one["mpp"]), f"{one['parameters']:,}", f"{one['bytes'] / 1e6:.1f}", _plain(one["threshold"]))
        about = escape(printable(one["about"]))
        table.add_row(f"{one['name']}@{one['version']}", escape(", ".join(one["classes"])), *numbers, about)
    Console().print(table)


@app.command()
def info(
    model: Annotated[str, typer.Argument(metavar="NAME_OR_FILE", help="Built-in model or .safetensors file.")],
    as_json: AsJson = False,  # noqa: FBT002  typer's way to declare a flag
) -> None:
    """Layers, parameters, arithmetic, memory, normalisation and provenance of one model."""
    with refused():
        record = details(resolve(model))
    if as_json:
        typer.echo(json.dumps(record, indent=1))
    else:
        show(record, Console())


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN.pt", help="A state_dict saved by torch.save.")],
    target: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="The model file to write.")],
    spec: Annotated[Path | None, typer.Option("--spec", metavar="F", help="The network's spec, YAML or JSON.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="key=value", help="One key of the spec. Repeatable.")
    ] = None,
) -> None:
    """Turn a PyTorch checkpoint into a model file. Nothing in it is run; the network is said, not guessed."""
    if target.suffix != ".safetensors" or target.exists():
        raise ConfigError(f"{target}: expected the name of a new .safetensors file. Choose another")
    if not source.is_file():
        raise ConfigError(f"{source} does not exist: expected a checkpoint saved by torch.save")
    wanted = read_spec(spec, settings or [])
    from unet_core.model_file.convert import convert as converted  # torch costs a second

    with refused():
        notes = converted(source, target, wanted)
    for note in notes:
        typer.echo(f"note: {printable(note)}")
    typer.echo(f"{printable(str(target))}: {parameters(wanted):,} parameters, reads back and answers the same")


def read_spec(path: Path | None, settings: list[str]) -> UNetSpec:
    """The spec in a file and in settings. Raises ConfigError for unknown, wrong and unsaid keys."""
    content = read_settings(path, settings)
    if unsaid := [key for key in UNSEEN if key not in content]:
        raise ConfigError(
            f"the spec leaves out {', '.join(unsaid)}: weights do not show them and a wrong one changes every pixel. "
            "Say them in --spec F or with --set key=value"
        )
    try:
        return UNetSpec.model_validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        raise ConfigError(f"{path or 'spec'}: " + "; ".join(_explain(error))) from error


def _explain(error: ValidationError) -> Iterator[str]:
    for fault in error.errors():
        where = ".".join(str(part) for part in fault["loc"]) or "the spec"
        if fault["type"] == "extra_forbidden":
            near = difflib.get_close_matches(where, UNetSpec.model_fields, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(UNetSpec.model_fields)}"
            yield f"unknown key {where!r}: {hint}"
        else:
            yield f"{where}: {fault['msg']}, found {fault['input']!r}"


# ---- what is said of a model -----------------------------------------------------------------------------------------


def summary(path: Path) -> dict[str, Any]:
    """The line of a list: name and version, what it finds, its size, what its card says first."""
    header = describe(path)
    name, _, version = path.stem.rpartition("@")
    return {
        "name": name or path.stem,
        "version": version if name else None,
        "classes": list(header.spec.class_names),
        "mpp": header.spec.mpp,
        "threshold": header.spec.threshold,
        "parameters": parameters(header.spec),
        "bytes": path.stat().st_size,
        "about": _about(path),
    }


def _about(path: Path) -> str:
    """The first sentence of the card beside the file that is no heading."""
    card = path.with_suffix(".md")
    lines = card.read_text("utf-8").splitlines() if card.exists() else []
    return next((line for line in lines if line and not line.startswith(("#", "|"))), "")


def details(path: Path) -> dict[str, Any]:
    """Everything there is to say about a model, as plain data; lengths in pixels, memory in bytes."""
    header = describe(path)
    spec, shape = header.spec, ValidShape.of(header.spec)
    tiles = [tile for tile in TILES_PX if tile % shape.step == 0]
    shown = shape.read_px(tiles[-2])
    return {
        **summary(path),
        "file": str(path),
        "sha256": sha256(path),
        "stored_as": _stored_as(header),
        "spec": spec.model_dump(mode="json"),
        "halo_px": shape.halo,
        "step_px": shape.step,
        "input_px": shown,
        "layers": [asdict(layer) | {"operations": layer.operations} for layer in layers(spec, shown)],
        "operations_per_px": {"limit": operations_per_px(spec)}
        | {str(tile): operations_per_px(spec, tile) for tile in tiles},
        "memory_bytes": {
            name: {str(tile): tile_bytes(spec, tile, size) + size * parameters(spec) for tile in tiles}
            for name, size in ITEM_BYTES.items()
        },
        "provenance": header.provenance,
    }


def _stored_as(header: ModelHeader) -> str:
    return ", ".join(sorted({tensor.dtype for tensor in header.tensors.values()}))


def show(record: dict[str, Any], console: Console) -> None:
    """Print the details of a model for a person."""
    spec, limit = record["spec"], record["operations_per_px"]["limit"]
    version = f"@{record['version']}" if record["version"] else ""
    lines = [
        f"[bold]{escape(printable(record['name'] + version))}[/]  {escape(printable(record['about']))}",
        f"{spec['in_channels']} channels to {escape(', '.join(record['classes']))} ({spec['head']}), "
        f"{_plain(record['mpp'])} um per pixel, threshold {_plain(record['threshold'])}, "
        f"smallest object {spec['min_area_um2']:g} um2",
        f"{record['parameters']:,} parameters, stored as {record['stored_as']}, {record['bytes']:,} bytes",
        f"halo {record['halo_px']} px, step {record['step_px']} px, {limit / 1e6:.3f} MFLOP a pixel at the least",
        f"input = (image / its largest value - {spec['mean']}) / {spec['std']}",
        *_colours(spec),
    ]
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False)
    console.print(_layer_table(record))
    console.print(_tile_table(record))
    console.print(f"provenance: {escape(printable(json.dumps(record['provenance'])))}", soft_wrap=True, highlight=False)
    console.print(f"{escape(printable(record['file']))}", soft_wrap=True, highlight=False)
    console.print(f"sha256 {record['sha256']}", soft_wrap=True, highlight=False)


def _colours(spec: dict[str, Any]) -> list[str]:
    """What is done to a slide's colours before, where anything is; one line each."""
    lines = []
    if "stain_normalisation" in spec:
        lines += [
            f"stains are first brought to {spec['stain_target']} ({spec['stain_normalisation']}), fitted once a slide"
        ]
    if "equalise" in spec:
        lines += ["each channel's values are then replaced by their ranks in the slide (histogram equalisation)"]
    return lines


def _layer_table(record: dict[str, Any]) -> Table:
    columns = ("kernel", "channels", "px out", "parameters", "GFLOP")
    table = Table("layer", Column("what", no_wrap=True), *columns, title=f"a tile of {record['input_px']} px")
    for layer in record["layers"]:
        kernel, channels = f"{layer['kernel']}x{layer['kernel']}", f"{layer['into']} to {layer['out']}"
        work = f"{layer['operations'] / 1e9:.2f}" if layer["operations"] else ""
        weights = f"{layer['parameters']:,}" if layer["parameters"] else ""
        table.add_row(layer["name"], layer["kind"], kernel, channels, str(layer["output_px"]), weights, work)
    return table


def _tile_table(record: dict[str, Any]) -> Table:
    table = Table("tile px", "MFLOP a pixel", *(f"MiB in {name}" for name in record["memory_bytes"]))
    for tile, operations in record["operations_per_px"].items():
        if tile != "limit":
            memory = (f"{sizes[tile] / 2**20:.0f}" for sizes in record["memory_bytes"].values())
            table.add_row(tile, f"{operations / 1e6:.3f}", *memory)
    return table


def _plain(number: float | None) -> str:
    return "any" if number is None else f"{number:g}"
