"""Commands for looking at results and for handing them on.

The one decision made here: they work on folders that ``segment`` wrote, need no server and never change a result.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer()

Place = Annotated[
    Path, typer.Argument(metavar="PATH", help="A results folder, or one slide's folder in it.", show_default=False)
]


@app.command()
def inspect(
    path: Place,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,  # noqa: FBT002  typer's way to declare a flag
    preview: Annotated[bool, typer.Option("--preview", help="The slides too, in colour.")] = False,  # noqa: FBT002  typer's way to declare a flag
) -> None:
    """Say what a result holds and whether it is complete. Ends with 3 when something is not."""
    from flows.inspect import inspect_stores

    records = inspect_stores(path)
    if as_json:
        typer.echo(json.dumps(records, indent=1))
    else:
        from flows.inspect_page import show

        show(records, Console(), preview=preview)
    raise typer.Exit(0 if all(record["state"] == "complete" for record in records) else 3)
