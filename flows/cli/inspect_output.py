"""Output of the inspect command: a few lines, then tables of classes, stages and arrays.

All text from files (names, causes, notes) is escaped before it is printed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from flows.reports.inspect import describe_seams
from pipeline.printable import printable
from pipeline.stage_table import STAGES


def show(records: list[dict[str, Any]], console: Console, *, preview: bool = False) -> None:
    """Print the records, with a small picture of each complete slide if ``preview`` is set."""
    for record in records:
        show_record(record, console)
        if preview and record["state"] == "complete":
            from flows.cli.terminal_preview import show_preview

            show_preview(record, console)


def show_record(record: dict[str, Any], console: Console) -> None:
    """Print one record."""
    complete = record["state"] == "complete"
    console.print(
        f"[bold]{_text(record['path'])}[/]  [{'green' if complete else 'red'}]{record['state']}[/]", soft_wrap=True
    )
    lines = _lines(record) if complete else [record.get("cause", "run segment again to resume")]
    for line in lines:
        console.print(f"  {_text(line)}", soft_wrap=True, highlight=False)
    tables = [_classes(record), _stages(record)] if complete else []
    for table in (*tables, _arrays(record["arrays"])):
        if table.row_count:
            console.print(table)


def _lines(record: dict[str, Any]) -> Iterator[str]:
    plan = record["plan"]
    (height, width), mpp, (tall, wide) = plan["image"]["shape_yx"], plan["image"]["mpp"], record["size_mm"]
    yield f"{width} x {height} px at {mpp:g} um/px = {wide:.2f} x {tall:.2f} mm; {record['bytes'] / 1e6:.1f} MB on disk"
    yield (
        f"{record['objects']} objects on {record['tissue_mm2']} mm2 of tissue = {record['objects_per_mm2']} per mm2; "
        f"finished {record['finished']}"
    )
    yield (
        f"model {record['model']} in {plan['compute']['precision']} on {plan['compute']['device']}, tiles of "
        f"{plan['compute']['tile_px']} px, threshold {plan['threshold']:g}, objects from {plan['min_area_um2']:g} um2"
    )
    yield f"seams: {describe_seams(record['seam'])}"
    for name, levels in record["pyramids"].items():
        if levels:
            yield f"{name}: {len(levels)} levels, {_level(levels[0])} to {_level(levels[-1])}"
    yield f"plan: {', '.join(f'{stage} {digest[:8]}' for stage, digest in plan['hashes'].items())}"
    if pruned := record["pruned"]:
        yield f"pruned {pruned['when']}: {', '.join(pruned['parts'])}; {pruned['bytes'] / 1e6:.1f} MB"
    for path in record["dropped"]:
        yield f"dropped when complete: {path} (full resolution)"
    for warning in record["warnings"]:
        yield f"warning: {warning}"
    if record["flags"]:
        yield f"flags: {', '.join(record['flags'])}"


def _level(level: dict[str, Any]) -> str:
    height, width = level["shape"][-2:]
    return f"{width} x {height} px at {level['um_per_px']:g} um/px"


def _classes(record: dict[str, Any]) -> Table:
    """One row for each region and class: counts, areas, and quartiles of area and probability."""
    table = _table("class", "objects", "per mm2", "mm2", "share", "um2 quartiles", "probability")
    for row in record["classes"]:
        name = row["class"] if row["region"] is None else f"{row['class']} in {row['region']}"
        density, fraction = row["density_per_mm2"], row["fraction"]
        table.add_row(
            _text(str(name)),
            f"{row['count']}",
            "" if density is None else f"{density:.1f}",
            f"{row['area_mm2']:.4f}",
            "" if fraction is None else f"{100 * fraction:.2f} %",
            _quartiles(row, "area_um2", ".1f"),
            _quartiles(row, "probability", ".2f"),
        )
    return table


def _quartiles(row: dict[str, Any], name: str, how: str) -> str:
    values = [row[f"{name}_{quantile}"] for quantile in ("q25", "median", "q75")]
    return "" if None in values else "/".join(format(value, how) for value in values)


def _stages(record: dict[str, Any]) -> Table:
    table = _table("stage", "seconds", "share", "blocks computed", "runs")
    total = sum(stage["seconds"] for stage in record["stages"].values()) or 1.0
    for name in sorted(record["stages"], key=STAGES.index):
        stage = record["stages"][name]
        share = f"{100 * stage['seconds'] / total:.0f} %"
        table.add_row(name, f"{stage['seconds']:.1f}", share, str(stage["computed"]), str(stage["runs"]))
    return table


def _arrays(arrays: Iterable[dict[str, Any]]) -> Table:
    """One row for each array, or for all levels of a pyramid together."""
    table = _table("array", "shape", "type", "chunk/shard", "MB", "ratio", "blocks")
    for _, levels in groupby(arrays, key=_pyramid_of):
        first, *coarser = levels
        if "damaged" in first:
            table.add_row(first["path"], f"[red]{_text(first['damaged'])}[/]")
            continue
        alike = [first, *coarser]
        size, done, blocks = (sum(array[name] for array in alike) for name in ("bytes", "blocks_done", "blocks"))
        raw = sum(array["bytes"] * (array["ratio"] or 0) for array in alike)
        table.add_row(
            f"{first['path']}-{len(coarser) + int(first['path'][-1])}" if coarser else first["path"],
            _times(first["shape"]),
            first["dtype"],
            f"{first['chunk'][-1]}/{first['shard'][-1]}",
            f"{size / 1e6:.1f}",
            f"{raw / size:.3g}" if raw else "",
            f"{done} / {blocks}",
        )
    return table


def _pyramid_of(array: dict[str, Any]) -> str:
    """The group of an array: levels of one pyramid share it, a damaged array has its own."""
    path = str(array["path"])
    return path if "damaged" in array or not path[-1].isdigit() else path[:-1]


def _table(first: str, *others: str) -> Table:
    numbers = [Column(name, justify="right", no_wrap=True) for name in others]
    return Table(Column(first, overflow="fold", min_width=12), *numbers, box=SIMPLE_HEAD, padding=(0, 0, 0, 1))


def _times(lengths: Iterable[int]) -> str:
    return "x".join(map(str, lengths))


def _text(text: str) -> str:
    return escape(printable(text))
