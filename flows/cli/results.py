"""Commands that read results: inspect, export, report, view. They need no server and change no result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flows.cli.options import AsJson, ResultPath, ResultsFolder
from pipeline.errors import ConfigError
from pipeline.printable import printable

app = typer.Typer()


@app.command()
def inspect(
    path: ResultPath,
    as_json: AsJson = False,  # noqa: FBT002  typer's way to declare a flag
    preview: Annotated[bool, typer.Option("--preview", help="Print a picture of each slide, too.")] = False,  # noqa: FBT002  typer's way to declare a flag
) -> None:
    """Show what results hold and whether they are complete.

    Exit codes: 0 all results are complete, 3 a result is not complete.
    """
    from flows.reports.inspect import inspect_stores

    records = inspect_stores(path)
    if as_json:
        typer.echo(json.dumps(records, indent=1))
    else:
        from flows.cli.inspect_output import show

        show(records, Console(), preview=preview)
    raise typer.Exit(0 if all(record["state"] == "complete" for record in records) else 3)


@app.command()
def export(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", help="Results folders, or folders of slides in them.", show_default=False),
    ],
    to: Annotated[
        list[str],
        typer.Option(
            "--to", metavar="FORMAT", help="Format: geojson, geoparquet, csv, ngff04 or ome-tiff. Repeatable."
        ),
    ],
    into: Annotated[
        Path | None,
        typer.Option("--into", metavar="DIR", help="Folder for the copies. Default: 'exports' in each slide's folder."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,  # noqa: FBT002  typer's way to declare a flag
) -> None:
    """Export complete results to other formats.

    Exit codes: 0 all results were exported, 3 a result is not complete or pruned and was left out.
    """
    from flows.batch.result_records import slide_stores
    from pipeline.exports.formats import export as write
    from pipeline.exports.formats import missing_parts
    from pipeline.exports.vector_formats import CompleteResult

    stores = [store for path in paths for store in slide_stores(path)]
    if not stores:
        raise ConfigError(f"{paths[0]} holds no results: expected a folder that 'overtile segment' wrote")
    complete = []
    for store in stores:
        result = CompleteResult.open(store) if store.manifest.exists() else None
        gone = missing_parts(result, to) if result else ""
        if result is None or gone:
            why = f"pruned ({gone})" if result else "not complete"
            typer.echo(f"{why}, left out: {printable(str(store.root))}", err=True)
        else:
            complete.append(result)
    for result in complete:
        for path in write(result, to, into, force=force):
            typer.echo(printable(str(path)))
    raise typer.Exit(0 if len(complete) == len(stores) else 3)


@app.command()
def report(
    out: ResultsFolder,
) -> None:
    """Write report.html for a results folder.

    `segment` does so at the end of each run.
    """
    from flows.reports.batch_html import write_report

    typer.echo(printable(str(write_report(out))))


@app.command()
def view(
    path: ResultPath,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, metavar="N", help="Port on 127.0.0.1; 0 selects a free one.")
    ] = 0,
    origin: Annotated[
        list[str] | None,
        typer.Option("--origin", metavar="URL", help="Web origin that may read the arrays. Repeatable."),
    ] = None,
    browser: Annotated[bool, typer.Option("--browser", help="Open the page in the default browser.")] = False,  # noqa: FBT002  typer's way to declare a flag
) -> None:
    """View slides, layers and objects in a browser.

    The page is served to this machine only, until Ctrl-C.
    """
    import webbrowser

    from flows.view.catalog import Catalog
    from flows.view.server import serve

    def announce(address: str) -> None:
        typer.echo(address)
        if browser:
            webbrowser.open(address)

    serve(Catalog.at(path), port, tuple(origin or ()), announce)
