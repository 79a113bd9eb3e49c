"""Commands for what runs unattended: how it stands, and what to try again.

The one decision made here: they work on OUT alone, from its files, so they answer without a server and on any machine
that sees the folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flows.history import History, doer, note
from flows.plain import printable
from pipeline.errors import ConfigError

app = typer.Typer()

OutFolder = Annotated[
    Path, typer.Argument(metavar="OUT", help="The folder that segment writes to.", show_default=False)
]


@app.command()
def status(
    out: OutFolder,
    failed: Annotated[bool, typer.Option("--failed", help="Only slides that need somebody.")] = False,  # noqa: FBT002  typer's way to declare a flag
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,  # noqa: FBT002  typer's way to declare a flag
) -> None:
    """Say what became of every slide, why, and what to do. Ends as segment would: 0 when every slide is complete."""
    from flows.status import NEED_SOMEBODY, Status, show

    found = Status.of(out)
    slides = [slide for slide in found.slides if slide.state in NEED_SOMEBODY] if failed else found.slides
    if as_json:
        typer.echo(json.dumps(found.as_json(slides), indent=1))
    else:
        show(found, slides, Console())
    raise typer.Exit(found.exit_code())


@app.command()
def retry(
    out: OutFolder,
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="Slides that failed.", show_default=False)],
) -> None:
    """Let the next run try slides again that were quarantined because they failed three times."""
    strikes = History.read(out).strikes()
    if unknown := [key for key in keys if key not in strikes]:
        known = ", ".join(sorted(strikes)[:10]) or "none did"
        raise ConfigError(f"{unknown[0]}: expected the key of a slide that failed in {out}, found among them: {known}")
    note(out, "retry", {"keys": keys, **doer()})
    typer.echo(f"tried again in the next run: {printable(', '.join(keys))}")
