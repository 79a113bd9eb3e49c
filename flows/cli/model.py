"""The model commands: list, info, convert.

`list` and `info` read the header of a model file and compute the rest, so they import no PyTorch.
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
from unet_core.spec import UNSEEN, ObjectSettings, UNetSpec

TILES_PX = (384, 512, 1024, 2048)
"""Sides of the tiles for which costs are shown."""
ITEM_BYTES = {"fp32": 4, "bf16 or fp16": 2}
app = typer.Typer(no_args_is_help=True, help="List, describe and convert models.")


@contextmanager
def model_errors() -> Iterator[None]:
    """Turn errors of a model file into errors of the command."""
    try:
        yield
    except (NetworkError, OSError) as error:
        raise ModelError(str(error)) from error


@app.command(name="list")
def list_models(as_json: AsJson = False) -> None:  # noqa: FBT002  typer's way to declare a flag
    """List the built-in models."""
    with model_errors():
        records = [summary(path) for path in built_in()]
    if as_json:
        typer.echo(json.dumps(records, indent=1))
        return
    table = Table(
        Column("model", no_wrap=True), "classes", "um/px", "parameters", "MB", Column("what it is", overflow="fold")
    )
    for one in records:
        numbers = (_plain(one["mpp"]), f"{one['parameters']:,}", f"{one['bytes'] / 1e6:.1f}")
        about = escape(printable(one["about"]))
        table.add_row(f"{one['name']}@{one['version']}", escape(", ".join(one["classes"])), *numbers, about)
    Console().print(table)


@app.command()
def info(
    model: Annotated[str, typer.Argument(metavar="NAME_OR_FILE", help="Built-in model or .safetensors file.")],
    as_json: AsJson = False,  # noqa: FBT002  typer's way to declare a flag
) -> None:
    """Show layers, parameters, cost, memory, normalisation and provenance of a model."""
    with model_errors():
        record = details(resolve(model))
    if as_json:
        typer.echo(json.dumps(record, indent=1))
    else:
        show(record, Console())


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(metavar="IN.pt", help="PyTorch checkpoint: a state_dict saved by torch.save.")
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="Model file to write; must not exist.")],
    spec: Annotated[
        Path | None, typer.Option("--spec", metavar="F", help="Specification of the network, YAML or JSON.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="key=value", help="Override one key of the specification. Repeatable."),
    ] = None,
) -> None:
    """Convert a PyTorch checkpoint into a model file.

    No code in the checkpoint is run. The architecture is given by --spec and --set; it is not guessed from the weights.
    """
    if target.suffix != ".safetensors" or target.exists():
        raise ConfigError(f"{target}: expected the name of a new .safetensors file. Choose another")
    if not source.is_file():
        raise ConfigError(f"{source} does not exist: expected a checkpoint saved by torch.save")
    network = read_spec(spec, settings or [])
    from unet_core.model_file.convert import convert as converted  # torch takes a second to import

    with model_errors():
        notes = converted(source, target, network)
    for note in notes:
        typer.echo(f"note: {printable(note)}")
    typer.echo(f"{printable(str(target))}: {parameters(network):,} parameters, read back and verified")


def read_spec(path: Path | None, settings: list[str]) -> UNetSpec:
    """The specification in a file and in settings.

    Raises:
        ConfigError: A key is unknown, invalid or missing.
    """
    content = read_settings(path, settings)
    if missing := [key for key in UNSEEN if key not in content]:
        raise ConfigError(
            f"the spec leaves out {', '.join(missing)}: weights do not show them and a wrong one changes every pixel. "
            "Give them in --spec F or with --set key=value"
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


# ---- descriptions ----------------------------------------------------------------------------------------------------


def summary(path: Path) -> dict[str, Any]:
    """One row of the list: name, version, classes, size and the first sentence of the model card."""
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
    """What a model finds: the model card's first sentence up to its colon."""
    card = path.with_suffix(".md")
    paragraphs = card.read_text("utf-8").split("\n\n") if card.exists() else []
    text = next((one for one in paragraphs if not one.startswith(("#", "|"))), "")
    return " ".join(text.split()).partition(". ")[0].partition(": ")[0]


def details(path: Path) -> dict[str, Any]:
    """All facts about a model as plain data; lengths in pixels, memory in bytes."""
    header = describe(path)
    spec, shape = header.spec, ValidShape.of(header.spec)
    tiles = [tile for tile in TILES_PX if tile % shape.step == 0]
    input_px = shape.read_px(tiles[-2])
    return {
        **summary(path),
        "file": str(path),
        "sha256": sha256(path),
        "stored_as": _stored_as(header),
        "spec": spec.model_dump(mode="json"),
        "halo_px": shape.halo,
        "step_px": shape.step,
        "input_px": input_px,
        "layers": [asdict(layer) | {"operations": layer.operations} for layer in layers(spec, input_px)],
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


def _objects(spec: dict[str, Any]) -> Iterator[str]:
    """The maps of a network, and how its outputs become objects."""
    if spec.get("maps"):
        yield f"maps: {', '.join(spec['maps'])}"
    if objects := spec.get("objects"):
        source = ObjectSettings.model_validate(objects).map_name
        seeds = "" if source is None else f" of the map {source}, depth {objects['depth']:g}"
        largest = (
            ""
            if objects["max_area_um2"] is None
            else f", largest object {objects['max_area_um2']:g} {_area_unit(spec)}"
        )
        yield f"objects: {objects['method']}{seeds}{largest}"


def _area_unit(spec: dict[str, Any]) -> str:
    """The unit of the limits of area: without a resolution they are in pixels."""
    return "um2" if spec["mpp"] else "px"


def show(record: dict[str, Any], console: Console) -> None:
    """Print the details of a model."""
    spec, limit = record["spec"], record["operations_per_px"]["limit"]
    version = f"@{record['version']}" if record["version"] else ""
    lines = [
        f"[bold]{escape(printable(record['name'] + version))}[/]  {escape(printable(record['about']))}",
        f"{spec['in_channels']} channels to {escape(', '.join(record['classes']))} ({spec['head']}), "
        f"{_plain(record['mpp'])} um per pixel, threshold {_plain(record['threshold'])}, "
        f"smallest object {spec['min_area_um2']:g} {_area_unit(spec)}",
        f"{record['parameters']:,} parameters, stored as {record['stored_as']}, {record['bytes']:,} bytes",
        f"halo {record['halo_px']} px, step {record['step_px']} px, {limit / 1e6:.3f} MFLOP a pixel at the least",
        f"input = (image / its largest value - {spec['mean']}) / {spec['std']}",
        *_colours(spec),
        *_objects(spec),
    ]
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False)
    console.print(_layer_table(record))
    console.print(_tile_table(record))
    console.print(f"provenance: {escape(printable(json.dumps(record['provenance'])))}", soft_wrap=True, highlight=False)
    console.print(f"{escape(printable(record['file']))}", soft_wrap=True, highlight=False)
    console.print(f"sha256 {record['sha256']}", soft_wrap=True, highlight=False)


def _colours(spec: dict[str, Any]) -> list[str]:
    """One line for each normalisation of colours before the network."""
    lines = []
    if "stain_normalisation" in spec:
        lines += [f"stains are normalised to {spec['stain_target']} ({spec['stain_normalisation']}), fitted per slide"]
    if "equalise" in spec:
        lines += ["each channel's values are then replaced by their ranks in the slide (histogram equalisation)"]
    if "rescale" in spec:
        lines += ["each channel's intensities are rescaled by the medians of background and signal, fitted per slide"]
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
