"""Words that more than one command understands, and understands alike."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="For scripts.")]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="F", help="YAML configuration; see configs/segment.yaml.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="section.key=value", help="Override one key. Repeatable.")
]
Until = Annotated[str | None, typer.Option("--until", metavar="HH:MM", help="Begin no block from this time of day on.")]
ResultPath = Annotated[
    Path, typer.Argument(metavar="PATH", help="A results folder, or one slide's folder in it.", show_default=False)
]
ResultsFolder = Annotated[
    Path, typer.Argument(metavar="OUT", help="The folder that segment writes to.", show_default=False)
]
